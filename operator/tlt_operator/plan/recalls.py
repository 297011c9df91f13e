"""Which leases are asked back, and since when: a device that does not come back in time costs the trainer pod."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tlt_operator.plan.actions import RevokeLease
from tlt_operator.plan.generation import Generation, in_scope
from tlt_operator.plan.snapshot import RolloutView, Snapshot
from tlt_operator.plan.worker import WorkerState
from tlt_workloads.contract import LeasePhase, LeaseView, RevokeReason, TrainerPhase


@dataclass(frozen=True, kw_only=True)
class Recall:
    """A device that should be free since `since`; `lease` is None when the pod shows none and yet a trainer works."""

    lease: str | None
    since: float


@dataclass(frozen=True, kw_only=True)
class Recalls:
    """Leases to ask back now, and all devices that are on their way back, by the uid of the rollout pod."""

    actions: tuple[RevokeLease, ...]
    open: Mapping[str, Recall]


def decide_recalls(
    snapshot: Snapshot,
    workers: Mapping[str, WorkerState],
    generation: Generation,
    *,
    before: Mapping[str, Recall],
    leaving: frozenset[str] = frozenset(),
) -> Recalls:
    """Asks for as long as the pod shows the lease as granted, also a pod that has fallen silent.

    `leaving`: pods (uids) that are about to go.
    """
    actions: list[RevokeLease] = []
    found: dict[str, Recall] = {}
    at_work = snapshot.with_trainer(TrainerPhase.TRAINING)  # one that stops has left, and may write for long
    for view in snapshot.rollouts:
        uid, lease = view.pod.uid, view.state.lease if view.state is not None else None
        worker, since = workers[uid], snapshot.now
        if worker is WorkerState.UNAVAILABLE:
            continue
        if lease is None:
            should_be_free = uid in at_work and worker is not WorkerState.UNKNOWN and not view.granting
        else:
            revoke = _revocation(snapshot, view, lease, worker=worker, generation=generation)
            if revoke is None and uid in leaving and lease.phase is LeasePhase.GRANTED:
                revoke = RevokeLease(rollout_uid=uid, reason=RevokeReason.OPERATOR, why="the pod is about to go")
            if revoke is not None:
                actions.append(revoke)
            returning = lease.phase is LeasePhase.REVOKING
            should_be_free = returning or revoke is not None
            since -= lease.revoking_for + snapshot.age(view) if returning else 0.0
        if should_be_free:
            found[uid] = _recall(before.get(uid), lease=lease.id if lease is not None else None, since=since)
    return Recalls(actions=tuple(actions), open=found)


def is_overdue(snapshot: Snapshot, recall: Recall | None) -> bool:
    """Whether the device should be free by now, with time to spare."""
    if recall is None:
        return False
    return snapshot.now - recall.since > snapshot.job.spec.reclaim.grace + snapshot.limits.stuck_after


def _recall(known: Recall | None, *, lease: str | None, since: float) -> Recall:
    return Recall(lease=lease, since=min(since, known.since) if known is not None and known.lease == lease else since)


def _revocation(
    snapshot: Snapshot, view: RolloutView, lease: LeaseView, *, worker: WorkerState, generation: Generation
) -> RevokeLease | None:
    uid = view.pod.uid
    if lease.phase is LeasePhase.REVOKING:
        return None
    if snapshot.job.deleting:
        return RevokeLease(rollout_uid=uid, reason=RevokeReason.OPERATOR, why="the TLTJob is being deleted")
    if snapshot.job.spec.suspend:
        return RevokeLease(rollout_uid=uid, reason=RevokeReason.OPERATOR, why="spec.suspend is true")
    if worker is WorkerState.UNKNOWN:
        return None  # what it lends was right when it was last heard, and the lease has an end of its own
    if all(trainer.pod.holder != lease.holder for trainer in snapshot.trainers):
        return RevokeLease(
            rollout_uid=uid, reason=RevokeReason.OPERATOR, why=f"{lease.holder} is no trainer of this job"
        )
    if not in_scope(snapshot.job.spec.idle.scope, generation, uid=uid, worker=worker):
        return RevokeLease(rollout_uid=uid, reason=RevokeReason.WINDOW_END, why="no other pod generates any more")
    return None
