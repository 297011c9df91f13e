"""The state of a worker: one rollout pod with its device."""

from __future__ import annotations

import enum

from tlt_operator.plan.snapshot import RolloutView, Snapshot
from tlt_workloads.contract import LeasePhase


class WorkerState(enum.StrEnum):
    """What a rollout pod does.  Absent data is never idleness: a pod that cannot be asked is `UNKNOWN`, never lent."""

    UNAVAILABLE = "Unavailable"  # not started, not ready yet, or going away
    UNKNOWN = "Unknown"  # ready, but it gives no (fresh) answer
    BUSY = "Busy"  # generates, or has requests waiting
    DRAINING = "Draining"  # nothing to generate, but not idle yet: weights are updated, paused, or within `idle.after`
    IDLE = "Idle"
    LENT = "Lent"
    REVOKING = "Revoking"  # lent, and asked back


def classify(view: RolloutView, *, stale_after: float) -> WorkerState:
    """The worker's state as of its last answer."""
    pod, state = view.pod, view.state
    if pod.deleting or pod.finished or pod.ip is None:
        return WorkerState.UNAVAILABLE
    if state is None or view.fault is not None or view.age > stale_after:
        return WorkerState.UNKNOWN if pod.ready else WorkerState.UNAVAILABLE
    if state.lease is not None:
        return WorkerState.LENT if state.lease.phase is LeasePhase.GRANTED else WorkerState.REVOKING
    if state.running or state.waiting:
        return WorkerState.BUSY
    return WorkerState.IDLE if state.idle else WorkerState.DRAINING


def classify_all(snapshot: Snapshot) -> dict[str, WorkerState]:
    """Worker states by pod uid."""
    return {view.pod.uid: classify(view, stale_after=snapshot.limits.stale_after) for view in snapshot.rollouts}
