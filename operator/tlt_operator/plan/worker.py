"""The state of a worker (one rollout pod with its device), and every move between two states that may be observed."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from tlt_operator.plan.snapshot import RolloutView, Snapshot
from tlt_workloads.contract import LeasePhase


class WorkerState(enum.StrEnum):
    """What a rollout pod does.  Absent data is never idleness: a pod that cannot be asked is `UNKNOWN`, never lent."""

    UNAVAILABLE = "Unavailable"
    UNKNOWN = "Unknown"
    BUSY = "Busy"
    DRAINING = "Draining"
    IDLE = "Idle"
    LENT = "Lent"
    REVOKING = "Revoking"


MEANINGS: Mapping[WorkerState, str] = {
    WorkerState.UNAVAILABLE: "not started, not ready yet, or going away",
    WorkerState.UNKNOWN: "ready, but it gives no answer, or none that is fresh; never lent",
    WorkerState.BUSY: "generates, or has requests waiting",
    WorkerState.DRAINING: "nothing to generate, but not idle yet: within `idle.after`, paused, or taking new weights",
    WorkerState.IDLE: "nothing runs, waits, is paused or is updated, for `idle.after`; may be lent",
    WorkerState.LENT: "a trainer holds the lease",
    WorkerState.REVOKING: "the lease was asked back and has not ended yet",
}


@dataclass(frozen=True)
class Move:
    """One row of the table of moves: any of `before` to any of `after`."""

    before: tuple[WorkerState, ...]
    after: tuple[WorkerState, ...]
    cause: str
    skips: bool = False  # two moves whose middle passed between two answers


_SILENT = (WorkerState.UNKNOWN, WorkerState.UNAVAILABLE)
_ANSWERING = tuple(state for state in WorkerState if state not in _SILENT)

# The operator sees samples of what a pod does.  So the table holds what a pod does step by step, and the steps that two
# samples may skip.  What it does not hold is a lease on a pod that was not idle: no operator gave that one.
MOVES: tuple[Move, ...] = (
    Move((WorkerState.BUSY,), (WorkerState.DRAINING,), "the last request ended"),
    Move((WorkerState.DRAINING,), (WorkerState.IDLE,), "`idle.after` passed without a request"),
    Move((WorkerState.DRAINING, WorkerState.IDLE), (WorkerState.BUSY,), "a request arrived"),
    Move((WorkerState.IDLE,), (WorkerState.DRAINING,), "the pod was paused, or an update of its weights began"),
    Move((WorkerState.IDLE,), (WorkerState.LENT,), "the operator granted a lease"),
    Move(
        (WorkerState.LENT,),
        (WorkerState.REVOKING,),
        "the lease was asked back: by a request, a policy update, the operator, or the end of the window",
    ),
    Move((WorkerState.LENT,), (WorkerState.IDLE,), "the trainer gave the device back, or its lease expired"),
    Move(
        (WorkerState.REVOKING,),
        (WorkerState.BUSY, WorkerState.DRAINING, WorkerState.IDLE),
        "the device was handed back",
    ),
    Move((WorkerState.BUSY,), (WorkerState.IDLE,), "`Draining` passed between two answers", skips=True),
    Move((WorkerState.IDLE,), (WorkerState.REVOKING,), "`Lent` passed between two answers", skips=True),
    Move(
        (WorkerState.LENT,),
        (WorkerState.BUSY, WorkerState.DRAINING),
        "`Revoking` passed between two answers",
        skips=True,
    ),
    Move(_ANSWERING, (WorkerState.UNKNOWN,), "the pod has given no fresh answer"),
    Move((*_ANSWERING, WorkerState.UNKNOWN), (WorkerState.UNAVAILABLE,), "the pod is going away, or is not ready"),
    Move((WorkerState.UNAVAILABLE,), (WorkerState.UNKNOWN,), "the pod is ready and has not answered yet"),
    Move(_SILENT, _ANSWERING, "the pod answers"),
)

_LEGAL = frozenset((before, after) for move in MOVES for before in move.before for after in move.after)


def is_legal(before: WorkerState | None, after: WorkerState) -> bool:
    """Whether two answers in a row may say this; `before` is None for a pod that was not known."""
    return before is None or before is after or (before, after) in _LEGAL


def classify(view: RolloutView, *, now: float, stale_after: float) -> WorkerState:
    """The worker's state as of its last answer."""
    pod, state = view.pod, view.state
    if pod.deleting or pod.finished or pod.ip is None:
        return WorkerState.UNAVAILABLE
    if state is None or view.fault is not None or now - view.heard_at > stale_after:
        return WorkerState.UNKNOWN if pod.ready else WorkerState.UNAVAILABLE
    if state.lease is not None:
        return WorkerState.LENT if state.lease.phase is LeasePhase.GRANTED else WorkerState.REVOKING
    if state.running or state.waiting:
        return WorkerState.BUSY
    # A pod that calls itself idle and says in the same breath that it is paused or updated is not believed.
    return WorkerState.IDLE if state.idle and not state.paused and not state.updating else WorkerState.DRAINING


def classify_all(snapshot: Snapshot) -> dict[str, WorkerState]:
    """Worker states by pod uid."""
    now, stale_after = snapshot.now, snapshot.limits.stale_after
    return {view.pod.uid: classify(view, now=now, stale_after=stale_after) for view in snapshot.rollouts}
