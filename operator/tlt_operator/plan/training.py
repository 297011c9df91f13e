"""Which trainer pods exist: one per rollout pod that may soon be lent, kept warm, gone when of no use.

A trainer takes tens of seconds to import its libraries and costs only memory while it waits.  So trainers start with
the rollout pods and before the first window, not when it is there.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from tlt_operator.api.names import Reason, is_trainer_name
from tlt_operator.placement.choice import choose
from tlt_operator.plan.actions import Action, CreateTrainer, DeleteTrainer
from tlt_operator.plan.recalls import Recall, is_overdue
from tlt_operator.plan.snapshot import RolloutView, Snapshot, TrainerView
from tlt_operator.plan.worker import WorkerState

START_AT = 0.5  # share of `minNewTokens` at which a window is near


def decide_trainers(
    snapshot: Snapshot,
    workers: Mapping[str, WorkerState],
    *,
    available_tokens: int,
    due: bool = False,
    recalls: Mapping[str, Recall] | None = None,
) -> tuple[Action, ...]:
    """Trainer pods to create and to delete.

    `due`: training is worth a window now.  `recalls`: devices that should be free, by the uid of the rollout pod.
    """
    rollouts = snapshot.by_uid
    near = due or _window_near(snapshot, workers, available_tokens=available_tokens)
    wanted = _wanted(snapshot, workers) if near else ()
    actions: list[Action] = []
    for trainer in snapshot.trainers:
        if trainer.pod.deleting:
            continue
        uid = trainer.pod.rollout_uid or ""
        overdue = is_overdue(snapshot, (recalls or {}).get(uid))
        delete = _deletion(snapshot, trainer, rollouts.get(uid), wanted, overdue=overdue)
        if delete is not None:
            actions.append(delete)
    return (*actions, *_creations(snapshot, rollouts, wanted))


def _creations(snapshot: Snapshot, rollouts: Mapping[str, RolloutView], wanted: tuple[str, ...]) -> list[CreateTrainer]:
    """A trainer that still goes away holds its devices: the next one on them waits, whichever rollout pod it is for."""
    present = {trainer.pod.rollout_uid for trainer in snapshot.trainers}
    missing = [uid for uid in wanted if uid not in present]
    if not missing:
        return []
    taken = _still_prepared(snapshot).union(*(trainer.pod.holdings for trainer in snapshot.trainers))
    found: list[CreateTrainer] = []
    for uid in missing:
        holdings = rollouts[uid].pod.holdings
        if not holdings & taken:
            found.append(CreateTrainer(rollout_uid=uid))
            taken |= holdings
    return found


def _still_prepared(snapshot: Snapshot) -> frozenset[str]:
    """Claims that are reserved for a trainer which is gone from the API server.

    The kubelet may still be at work on them, and a pod that comes too early has met kubelets that took the devices from
    it (https://github.com/kubernetes/kubernetes/pull/140212, https://github.com/kubernetes/kubernetes/pull/140527).
    """
    alive = {view.pod.uid for view in snapshot.rollouts} | {view.pod.uid for view in snapshot.trainers}
    return frozenset(
        claim.name
        for claim in snapshot.site.claims.values()
        if any(
            consumer.uid not in alive and is_trainer_name(consumer.name, job=snapshot.job.name)
            for consumer in claim.consumers
        )
    )


def _wanted(snapshot: Snapshot, workers: Mapping[str, WorkerState]) -> tuple[str, ...]:
    spec = snapshot.job.spec
    if spec.suspend or snapshot.job.deleting:
        return ()
    present = {trainer.pod.rollout_uid for trainer in snapshot.trainers}
    placement = choose(spec.placement)
    fit = [
        view
        for view in snapshot.rollouts
        if workers[view.pod.uid] not in (WorkerState.UNAVAILABLE, WorkerState.UNKNOWN)
        and view.pod.uid not in snapshot.obstacles
        and placement.ready(view.pod, snapshot.site)
    ]
    first = heapq.nsmallest(
        spec.training.max_trainers, fit, key=lambda view: (view.pod.uid not in present, -_idle_for(view), view.pod.name)
    )
    return tuple(view.pod.uid for view in first)


def _window_near(snapshot: Snapshot, workers: Mapping[str, WorkerState], *, available_tokens: int) -> bool:
    """Whether the next idle device may be worth lending: data is there, comes in, or the job has only just begun."""
    training = snapshot.job.spec.training
    return (
        available_tokens >= START_AT * training.trigger.min_new_tokens
        or WorkerState.BUSY in workers.values()
        or any(_serves_for(snapshot, view) < training.keep_warm for view in snapshot.rollouts)
    )


def _deletion(
    snapshot: Snapshot, trainer: TrainerView, rollout: RolloutView | None, wanted: tuple[str, ...], *, overdue: bool
) -> DeleteTrainer | None:
    pod = trainer.pod
    if pod.finished:
        failure = (pod.trouble or "it ended without a word") if pod.phase == "Failed" else None
        return DeleteTrainer(trainer_uid=pod.uid, why="it has ended", failure=failure)
    if rollout is None or rollout.pod.deleting or rollout.pod.finished:
        return DeleteTrainer(trainer_uid=pod.uid, why="its rollout pod is gone")
    lease = rollout.state.lease if rollout.state is not None else None
    if lease is not None and lease.holder == pod.holder:
        if overdue:
            return DeleteTrainer(
                trainer_uid=pod.uid, why="it did not hand the device back", failure="stuck while handing back"
            )
        return None
    if rollout.granting or _may_lend_unseen(snapshot, rollout):
        return None
    if pod.queued:
        return DeleteTrainer(
            trainer_uid=pod.uid,
            why="Kueue has put it into a queue",
            failure=f"Kueue has put trainer pods of namespace {pod.namespace} into a queue, where they cannot follow "
            "the idle time of a device; leave the namespace out of Kueue's managedJobsNamespaceSelector",
            reason=Reason.QUEUED,
        )
    obstacle = snapshot.obstacles.get(rollout.pod.uid)
    if obstacle is not None:
        return DeleteTrainer(trainer_uid=pod.uid, why=obstacle.message)
    if overdue:
        return DeleteTrainer(trainer_uid=pod.uid, why="it works on without a lease", failure="stuck without a lease")
    if snapshot.job.spec.suspend or snapshot.job.deleting:
        return DeleteTrainer(trainer_uid=pod.uid, why="the job lends no devices now")
    if trainer.state is not None and trainer.failed_for > snapshot.limits.failed_for:
        return DeleteTrainer(trainer_uid=pod.uid, why="it failed", failure=trainer.state.message or "no message")
    if trainer.outdated:
        return DeleteTrainer(trainer_uid=pod.uid, why="the job's trainers look different now")
    if pod.rollout_uid not in wanted and _unused_for(trainer) > snapshot.job.spec.training.keep_warm:
        return DeleteTrainer(trainer_uid=pod.uid, why="it had no window for spec.training.keepWarm")
    return None


def _may_lend_unseen(snapshot: Snapshot, rollout: RolloutView) -> bool:
    """Whether this process has only just begun to ask the pod, which may hold a lease that an earlier one granted."""
    return rollout.state is None and snapshot.now - rollout.silent_since < snapshot.limits.stale_after


def _unused_for(trainer: TrainerView) -> float:
    window = trainer.state.last_window if trainer.state is not None else None
    if window is None:
        return trainer.known_for
    return min(trainer.known_for, window.started_ago - window.seconds + trainer.age)


def _idle_for(view: RolloutView) -> float:
    return view.state.idle_for if view.state is not None else 0.0


def _serves_for(snapshot: Snapshot, view: RolloutView) -> float:
    """Seconds since the pod's engine first answered; endless while it is silent."""
    state = view.state
    return state.busy_seconds + state.idle_seconds + snapshot.age(view) if state is not None else float("inf")
