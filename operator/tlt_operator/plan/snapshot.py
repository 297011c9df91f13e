"""What was observed of one job at one moment."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from tlt_operator.api.job import Job
from tlt_operator.api.pod import Pod
from tlt_operator.api.pool_set import PoolSet
from tlt_operator.api.reasons import Obstacle
from tlt_operator.api.revision import Revision
from tlt_operator.placement.choice import choose
from tlt_operator.placement.strategy import Site
from tlt_operator.plan.shares import Wish
from tlt_workloads.contract import GatewayState, RolloutState, TrainerPhase, TrainerState


class Fault(enum.StrEnum):
    """Why the last question to a pod brought no answer."""

    UNREACHABLE = "Unreachable"
    ROUTE_MISSING = "RouteMissing"  # a plain vLLM server, or something else on that port
    TOKEN_REFUSED = "TokenRefused"  # noqa: S105 - a fault, not a secret
    INCOMPATIBLE = "Incompatible"  # the answer does not fit the contract


@dataclass(frozen=True, kw_only=True)
class RolloutView:
    """One rollout pod and its last answer.

    It holds moments of the snapshots' clock, no ages, so that it stays the same object for as long as there is no news
    of the pod: with a thousand of them, most are as they were in the pass before.
    """

    pod: Pod
    state: RolloutState | None = None
    heard_at: float = float("-inf")  # when the answer came
    silent_since: float = 0.0  # when the last answer came, or the pod was first seen
    fault: Fault | None = None
    fault_message: str = ""
    granting: bool = False  # a grant was sent that `state` cannot show yet
    refusals: Mapping[str, str] = field(default_factory=dict)  # revision -> why this boot of the pod refused it
    loading_since: float | None = None  # a drafter is on its way into it, as far as `state` can show
    load_held_back: bool = False  # the last load failed a moment ago, and the next try must wait

    def has(self, revision: Revision) -> bool:
        """Whether the pod's drafter is this revision, by name and content."""
        state = self.state
        return state is not None and (state.drafter_revision, state.drafter_digest) == (revision.name, revision.digest)


@dataclass(frozen=True, kw_only=True)
class TrainerView:
    """One trainer pod and its last answer."""

    pod: Pod
    state: TrainerState | None = None
    age: float = float("inf")
    known_for: float = 0.0  # since this process first saw the pod
    failed_for: float = 0.0  # since it first said that it failed; 0 when it does not
    fault: Fault | None = None
    fault_message: str = ""
    outdated: bool = False  # made from another manifest than the one wanted now


@dataclass(frozen=True, kw_only=True)
class PoolView:
    """What the operator keeps of the job's own pods; the pods themselves are among the rollout pods."""

    wanted: str  # digest of the template that they should be made from
    found: PoolSet | None = None  # None: there is no StatefulSet yet
    drifted: bool = False  # the StatefulSet may be another one than this process wrote
    removed: frozenset[str] = frozenset()  # pods (uids) deleted just now, which the watch may not show yet
    refusal: str | None = None  # why the API server takes no further pods, in its own words


@dataclass(frozen=True, kw_only=True)
class GatewayView:
    """The gateway's last answer."""

    state: GatewayState | None = None
    age: float = float("inf")
    silent_for: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The operator's own bounds, in seconds."""

    stale_after: float = 30.0  # an answer older than this says nothing about now
    silence: float = 30.0  # a pod that is silent for this long is worth a person's attention
    retry_lease_after: float = 5.0  # after a lease that was given back unasked
    retry_lease_after_error: float = 30.0  # after one that was given back because the window failed
    failed_for: float = 300.0  # a trainer that says it failed for this long is replaced; it retries by itself before
    pool_patience: float = 900.0  # a change of a pool that stands still for this long is worth a person's attention
    stuck_after: float = 5.0  # beyond the grace period, a lease that does not end costs the trainer pod


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything a decision depends on; `now` is a steady clock in seconds."""

    job: Job
    now: float
    rollouts: tuple[RolloutView, ...] = ()
    trainers: tuple[TrainerView, ...] = ()
    gateway: GatewayView | None = None  # None: the job has none
    lighthouse_ready: bool = False  # trainers can find each other
    pool: PoolView | None = None  # None: the job adopts its rollout pods
    revisions: tuple[Revision, ...] = ()
    site: Site = field(default_factory=Site)
    trainer_failures: Mapping[str, Obstacle] = field(default_factory=dict)  # rollout uid -> why it has no good trainer
    rivals: tuple[Wish, ...] = ()  # what the operator's other jobs hold and could use
    child_failure: str | None = None  # why the gateway, a Service or the Secret could not be applied
    limits: Limits = field(default_factory=Limits)

    @cached_property
    def by_uid(self) -> Mapping[str, RolloutView]:
        """The rollout pods by uid."""
        return {view.pod.uid: view for view in self.rollouts}

    @cached_property
    def obstacles(self) -> Mapping[str, Obstacle]:
        """Why no trainer can share the devices of a rollout pod, by its uid; pods that go away are left out."""
        obstacle, site = choose(self.job.spec.placement).obstacle, self.site
        return {
            view.pod.uid: found
            for view in self.rollouts
            if not view.pod.deleting and (found := obstacle(view.pod, site)) is not None
        }

    def age(self, view: RolloutView) -> float:
        """Seconds since the pod's last answer; infinite when there was none."""
        return self.now - view.heard_at

    def silence(self, view: RolloutView) -> float:
        """Seconds without a sign of life."""
        return self.now - view.silent_since

    def with_trainer(self, *phases: TrainerPhase) -> frozenset[str]:
        """Rollout pods (uids) whose trainer says that it is in one of these phases."""
        return frozenset(
            view.pod.rollout_uid
            for view in self.trainers
            if view.pod.rollout_uid is not None
            and view.state is not None
            and view.state.phase in phases
            and view.fault is None
            and view.age <= self.limits.stale_after
        )
