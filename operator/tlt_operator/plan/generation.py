"""Who still generates for the current step of the learner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tlt_operator.api.job import Scope
from tlt_operator.plan.snapshot import Snapshot
from tlt_operator.plan.windows import WindowPhase
from tlt_operator.plan.worker import WorkerState


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What pods and gateway say is left of the step; made once per pass, asked for each pod."""

    busy: frozenset[str]  # uids of pods that generate
    uncertain: bool  # a pod cannot be asked, or has ended its last request only just now
    outstanding: bool  # the gateway waits for answers
    queued: bool  # the gateway has requests that no pod has yet
    remaining: float | None = None  # seconds until the last of them is answered, as far as the gateway can tell

    def elsewhere(self, uid: str) -> bool:
        """Whether any pod but this idle one generates; what the gateway waits for must be with the others."""
        return self.outstanding or len(self.busy) > (uid in self.busy)

    @property
    def phase(self) -> WindowPhase:
        """The part of the RL step that the job is in."""
        return WindowPhase.TAIL if self.outstanding or self.busy else WindowPhase.LEARNER


def observe_generation(snapshot: Snapshot, workers: Mapping[str, WorkerState]) -> Generation:
    """The generation as of this snapshot."""
    gateway = snapshot.gateway
    state = gateway.state if gateway is not None and gateway.age <= snapshot.limits.stale_after else None
    return Generation(
        busy=frozenset(uid for uid, worker in workers.items() if worker is WorkerState.BUSY),
        uncertain=any(worker in (WorkerState.DRAINING, WorkerState.UNKNOWN) for worker in workers.values()),
        outstanding=state is not None and state.outstanding > 0,
        queued=state is not None and state.queued > 0,
        remaining=(
            max(0.0, state.remaining - gateway.age)
            if gateway is not None and state is not None and state.remaining is not None
            else None
        ),
    )


def in_scope(scope: Scope, generation: Generation, *, uid: str, worker: WorkerState) -> bool:
    """Whether `idle.scope` allows this pod's device to be lent, or to stay lent.

    A lease that exists is taken back only when the tail is over for certain: a pod that cannot be asked might generate,
    and one that has just ended its last request may get the next one at once.
    """
    if scope is Scope.ANY_IDLE or generation.elsewhere(uid):
        return True
    return worker is WorkerState.LENT and generation.uncertain


def lendable(snapshot: Snapshot, workers: Mapping[str, WorkerState], generation: Generation) -> frozenset[str]:
    """Pods (uids) whose device is lent, or could be by `idle.scope`."""
    scope = snapshot.job.spec.idle.scope
    return frozenset(
        uid
        for uid, worker in workers.items()
        if worker in (WorkerState.IDLE, WorkerState.LENT) and in_scope(scope, generation, uid=uid, worker=worker)
    )
