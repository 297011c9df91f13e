"""What all jobs share."""

from __future__ import annotations

from dataclasses import dataclass, field

import aiohttp

from tlt_operator.clients.kube import Kubernetes
from tlt_operator.config import Settings
from tlt_operator.reconcile.clock import Clock
from tlt_operator.reconcile.wishes import Wishes
from tlt_operator.telemetry.metrics import Metrics


@dataclass(frozen=True, kw_only=True)
class Context:
    """Connections, options, clocks, metrics and what the jobs want; `instance` names this process in Events."""

    kube: Kubernetes
    session: aiohttp.ClientSession
    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    clock: Clock = field(default_factory=Clock)
    wishes: Wishes = field(default_factory=Wishes)
    instance: str = "tlt-operator"
