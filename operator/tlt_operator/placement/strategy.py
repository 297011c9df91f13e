"""What every placement answers: what is in its way, and what of a trainer pod's spec comes from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tlt_operator.api.claim import Claim
from tlt_operator.api.pod import Pod
from tlt_operator.api.reasons import Obstacle


@dataclass(frozen=True, kw_only=True)
class Site:
    """What of the cluster and of the operator's settings placements depend on."""

    claims: Mapping[str, Claim] = field(default_factory=dict)  # of the job's namespace, by name
    claims_served: bool = True  # the cluster has dynamic resource allocation
    claims_hidden: str | None = None  # why the operator cannot list claims
    visible_devices: bool = False  # the settings allow devices without a claim


@dataclass(frozen=True, kw_only=True)
class Share:
    """A placement's part of a trainer pod; the mappings are Kubernetes fields."""

    pod: Mapping[str, Any] = field(default_factory=dict)  # fields of `spec`
    environment: Mapping[str, str] = field(default_factory=dict)
    claims: tuple[Mapping[str, str], ...] = ()  # the container's `resources.claims`


class Strategy(Protocol):
    """One way to place a trainer pod on the devices of a rollout pod.  All methods are pure."""

    def obstacle(self, pod: Pod, site: Site) -> Obstacle | None:
        """Why no trainer can share the devices of this pod, by all that is known of it so far; None when one can."""
        ...

    def ready(self, pod: Pod, site: Site) -> bool:
        """Whether everything that a trainer pod must name is known by now; only for a pod without an obstacle."""
        ...

    def share(self, pod: Pod, site: Site) -> Share:
        """The placement's part of the trainer pod; only for a pod that is `ready`."""
        ...
