"""What to do with the pods of a pool: how many there should be, and which one gives way to a newer one next.

A pod that generates is never taken away, however long that lasts: work in flight is worth more than a new template.
So both ways out wait until a pod is idle, ask its device back first and end its trainer, and only then let it go.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from tlt_operator.api.job import Pool
from tlt_operator.api.names import Reason
from tlt_operator.plan.actions import Action, ApplyPool, DeleteTrainer, ReplacePod
from tlt_operator.plan.snapshot import PoolView, RolloutView, Snapshot
from tlt_operator.plan.worker import WorkerState
from tlt_workloads.contract import TrainerPhase

UNSCHEDULABLE = "Unschedulable"  # may pass by itself: nodes are on their way, devices come free


class Change(enum.Enum):
    """What is going on in a pool."""

    NONE = enum.auto()
    SCALING = enum.auto()
    ROLLING = enum.auto()


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the pool has come, and since when it is no further (steady clock)."""

    replicas: int
    ready: int
    updated: int
    wanted: str
    since: float


@dataclass(frozen=True, kw_only=True)
class PoolPlan:
    """What follows for a pool; `leaving` are pods (uids) that must not be lent, for they are the next to go."""

    actions: tuple[Action, ...] = ()
    leaving: frozenset[str] = frozenset()
    desired: int = 0
    existing: int = 0
    ready: int = 0
    updated: int = 0
    change: Change = Change.NONE
    message: str = ""
    trouble: tuple[Reason, str] | None = None
    progress: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class _Pods:
    """The pool's pods as far as the plan needs them."""

    snapshot: Snapshot
    pool: PoolView
    workers: Mapping[str, WorkerState]
    at_work: frozenset[str]  # pods whose trainer has the device, or still writes what it learned
    trainers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by the uid of the rollout pod

    @property
    def views(self) -> tuple[RolloutView, ...]:
        return self.snapshot.rollouts

    def is_going(self, view: RolloutView) -> bool:
        return view.pod.deleting or view.pod.uid in self.pool.removed

    def is_current(self, view: RolloutView) -> bool:
        return view.pod.template == self.pool.wanted

    def is_ready(self, view: RolloutView) -> bool:
        return view.pod.ready and not self.is_going(view)

    def is_unused(self, view: RolloutView) -> bool:
        """Whether it certainly does not generate: it says so, or its server never came up."""
        if view.pod.finished or (not view.pod.started and self.workers[view.pod.uid] is WorkerState.UNAVAILABLE):
            return True
        return self.workers[view.pod.uid] is WorkerState.IDLE and not view.granting

    def may_go(self, view: RolloutView) -> bool:
        """Whether nothing is on it or on its device any more."""
        return self.is_unused(view) and view.pod.uid not in self.trainers

    def farewell(self, view: RolloutView) -> tuple[Action, ...]:
        """What must end before an unused pod may go; a lease is asked back with all others of the job."""
        if not self.is_unused(view) or view.pod.uid in self.at_work:
            return ()
        return tuple(
            DeleteTrainer(trainer_uid=trainer, why=f"pod {view.pod.name} is about to go")
            for trainer in self.trainers.get(view.pod.uid, ())
        )


def decide_pool(
    snapshot: Snapshot, workers: Mapping[str, WorkerState], *, before: Progress | None = None
) -> PoolPlan | None:
    """The plan for the job's pool; None when the job adopts its pods."""
    wish, view = snapshot.job.spec.rollout.pool, snapshot.pool
    if wish is None or view is None:
        return None
    trainers: dict[str, tuple[str, ...]] = {}
    for trainer in snapshot.trainers:
        uid = trainer.pod.rollout_uid or ""
        trainers[uid] = (*trainers.get(uid, ()), trainer.pod.uid)
    pods = _Pods(
        snapshot=snapshot,
        pool=view,
        workers=workers,
        at_work=snapshot.with_trainer(TrainerPhase.TRAINING, TrainerPhase.STOPPING),
        trainers=trainers,
    )
    apply, keeps = _apply(wish, pods)
    retiring = tuple(item for item in pods.views if _ordinal(item) >= wish.replicas)
    rolling, next_one = _roll(wish, pods) if apply is None and not retiring else ((), None)
    leaving = frozenset(item.pod.uid for item in (*retiring, *((next_one,) if next_one is not None else ())))
    farewells = tuple(action for item in retiring for action in pods.farewell(item))
    ready = sum(pods.is_ready(item) for item in pods.views)
    updated = sum(pods.is_current(item) and not pods.is_going(item) for item in pods.views)
    progress = _progress(pods, before, replicas=keeps, ready=ready, updated=updated)
    change, message = _describe(wish, pods, retiring=retiring, next_one=next_one, ready=ready, updated=updated)
    actions: tuple[Action, ...] = (*((apply,) if apply is not None else ()), *farewells, *rolling)
    if snapshot.job.deleting:
        actions, leaving = (), frozenset()
    return PoolPlan(
        actions=actions,
        leaving=leaving,
        desired=wish.replicas,
        existing=len(pods.views),
        ready=ready,
        updated=updated,
        change=change,
        message=message,
        trouble=_trouble(pods, change, message, progress),
        progress=progress,
    )


def _apply(wish: Pool, pods: _Pods) -> tuple[ApplyPool | None, int]:
    """The StatefulSet as it should be now: grows at once, shrinks by the pods at its end that may go."""
    found = pods.pool.found
    if found is None:
        return ApplyPool(replicas=wish.replicas, template=pods.pool.wanted), wish.replicas
    by_ordinal = {_ordinal(item): item for item in pods.views}
    replicas, removed = max(found.replicas, wish.replicas), []
    while replicas > wish.replicas:
        last = by_ordinal.get(replicas - 1)
        if last is not None and not pods.is_going(last):
            if not pods.may_go(last):
                break
            removed.append(last.pod.uid)
        replicas -= 1
    if replicas == found.replicas and found.template == pods.pool.wanted and not pods.pool.drifted:
        return None, replicas
    return ApplyPool(replicas=replicas, template=pods.pool.wanted, removed=tuple(removed)), replicas


def _roll(wish: Pool, pods: _Pods) -> tuple[tuple[Action, ...], RolloutView | None]:
    """The pod to replace next, and what to do for that now.  Nobody else may be missing meanwhile."""
    found = pods.pool.found
    if found is None or not found.settled or len(pods.views) < wish.replicas:
        return (), None
    if any(pods.is_going(item) for item in pods.views):
        return (), None
    old = [item for item in pods.views if not pods.is_current(item)]
    if any(pods.is_current(item) and not item.pod.ready for item in pods.views):
        return (), None  # the last one has not come up: the next would not either
    broken = [item for item in old if not item.pod.ready]
    candidates = [item for item in broken if pods.is_unused(item)] if broken else old
    fit = [item for item in candidates if pods.is_unused(item) or pods.workers[item.pod.uid] is WorkerState.LENT]
    if not fit:
        return (), None
    chosen = min(fit, key=lambda item: (not pods.may_go(item), not pods.is_unused(item), -_idle_for(pods, item)))
    if not pods.may_go(chosen):
        return pods.farewell(chosen), chosen
    return (ReplacePod(rollout_uid=chosen.pod.uid, template=pods.pool.wanted),), chosen


def _describe(
    wish: Pool,
    pods: _Pods,
    *,
    retiring: tuple[RolloutView, ...],
    next_one: RolloutView | None,
    ready: int,
    updated: int,
) -> tuple[Change, str]:
    """What goes on, in one sentence that says what it waits for."""
    if retiring:
        last = max(retiring, key=_ordinal)
        return Change.SCALING, (
            f"{len(retiring)} pods more than spec.rollout.pool.replicas ({wish.replicas}) are to go; "
            f"{_waits_for(pods, last)}"
        )
    old = [item for item in pods.views if not pods.is_current(item)]
    if old:
        done = f"{updated} of {wish.replicas} pods have the new template"
        fresh = next((item for item in pods.views if pods.is_current(item) and not item.pod.ready), None)
        if fresh is not None:
            return Change.ROLLING, f"{done}; pod {fresh.pod.name} is not ready yet{_why(fresh)}"
        going = next((item for item in pods.views if pods.is_going(item)), None)
        if going is not None:
            return Change.ROLLING, f"{done}; pod {going.pod.name} is being replaced"
        if len(pods.views) < wish.replicas:
            return Change.ROLLING, f"{done}; {wish.replicas - len(pods.views)} pods are missing"
        return Change.ROLLING, f"{done}; {_waits_for(pods, next_one or old[0])}"
    if ready < wish.replicas:
        first = next((item for item in pods.views if not item.pod.ready), None)
        why = f"; pod {first.pod.name} is not ready yet{_why(first)}" if first is not None else ""
        return Change.SCALING, f"{ready} of {wish.replicas} pods are ready, {len(pods.views)} exist{why}"
    return Change.NONE, f"All {wish.replicas} pods are ready"


def _waits_for(pods: _Pods, view: RolloutView) -> str:
    name, worker = view.pod.name, pods.workers[view.pod.uid]
    if pods.is_going(view):
        return f"pod {name} is going"
    if pods.may_go(view):
        return f"pod {name} is next"
    if worker in (WorkerState.LENT, WorkerState.REVOKING) or pods.is_unused(view):
        return f"pod {name} is next, when its device is back"
    return f"pod {name} is {worker.value} and stays until it is idle"


def _progress(pods: _Pods, before: Progress | None, *, replicas: int, ready: int, updated: int) -> Progress:
    now = Progress(replicas=replicas, ready=ready, updated=updated, wanted=pods.pool.wanted, since=pods.snapshot.now)
    if before is None:
        return now
    same = (before.replicas, before.updated, before.wanted) == (now.replicas, now.updated, now.wanted)
    return before if same and ready <= before.ready else now


def _trouble(pods: _Pods, change: Change, message: str, progress: Progress) -> tuple[Reason, str] | None:
    """What needs a person: pods that cannot be made or do not come up, or no progress for long."""
    refusal, limits = pods.pool.refusal, pods.snapshot.limits
    if refusal is not None:
        reason = Reason.QUOTA_EXCEEDED if "exceeded quota" in refusal else Reason.PODS_REFUSED
        return reason, f"Pods of the pool are refused: {refusal}"
    if change is Change.NONE:
        return None
    for view in pods.views:
        trouble = view.pod.trouble
        if view.pod.ready or trouble is None or trouble.startswith(UNSCHEDULABLE):
            continue
        if pods.snapshot.silence(view) > limits.silence and not pods.is_going(view):
            held = "; no further pod is replaced until it is ready" if change is Change.ROLLING else ""
            return Reason.POOL_STUCK, f"Pod {view.pod.name} does not start: {trouble}{held}"
    stood = pods.snapshot.now - progress.since
    if stood > limits.pool_patience:
        return Reason.POOL_STUCK, f"No progress for {stood / 60:.0f} minutes: {message}"
    return None


def _why(view: RolloutView) -> str:
    return f" ({view.pod.trouble})" if view.pod.trouble else ""


def _ordinal(view: RolloutView) -> int:
    return view.pod.ordinal if view.pod.ordinal is not None else -1


def _idle_for(pods: _Pods, view: RolloutView) -> float:
    return view.state.idle_for + pods.snapshot.age(view) if view.state is not None else 0.0
