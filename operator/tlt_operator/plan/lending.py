"""Which idle devices are lent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tlt_operator.api.names import Reason, lighthouse_name
from tlt_operator.plan.actions import GrantLease
from tlt_operator.plan.expectation import expect_rest
from tlt_operator.plan.generation import Generation, in_scope
from tlt_operator.plan.patience import Patience, still_to_wait
from tlt_operator.plan.shares import Wish, share_leases
from tlt_operator.plan.snapshot import RolloutView, Snapshot, TrainerView
from tlt_operator.plan.triggers import Need
from tlt_operator.plan.windows import WindowHistory
from tlt_operator.plan.worker import WorkerState
from tlt_workloads.contract import LeaseRequest, RevokeReason, TrainerPhase

Refusal = tuple[Reason, str]


@dataclass(frozen=True, kw_only=True)
class LeaseTerms:
    """What the operator's own settings say about leases; durations in seconds."""

    ttl: float = 10.0
    window: float = 600.0
    limit: int = 0  # leases of all jobs at one time, 0 = no limit
    teams: bool = False  # trainers of one job may find each other


@dataclass(frozen=True, kw_only=True)
class Lending:
    """Devices to lend, and in `reason` and `message` why no (further) one is; `wish` is for the other jobs to see."""

    grants: tuple[GrantLease, ...]
    lent: int
    reason: Reason
    message: str
    wish: Wish


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What a lease is decided by, beside the snapshot; `account` is the job's device time so far."""

    workers: Mapping[str, WorkerState]
    generation: Generation
    history: WindowHistory
    patience: Mapping[str, Patience]
    need: Need
    account: Wish
    terms: LeaseTerms
    leaving: frozenset[str] = frozenset()  # pods (uids) that are about to go, or get their first drafter just now


def decide_leases(snapshot: Snapshot, known: Knowledge) -> Lending:
    """Never lends a pod that is not `IDLE`, that is held, or whose trainer is not warm."""
    held = held_pods(snapshot, known.workers, terms=known.terms)
    taken = {view.pod.uid for view in held}
    # Trainers that cannot find each other would each train a copy of the same drafter.
    allowed = snapshot.job.spec.training.max_trainers if snapshot.lighthouse_ready else 1
    warm = warm_trainers(snapshot)
    in_use: frozenset[str] | None = None  # looked up only when a pod is to be lent: most passes lend none
    fit: list[tuple[RolloutView, TrainerView]] = []
    refusals: list[Refusal] = []
    idle = [
        view
        for view in snapshot.rollouts
        if known.workers[view.pod.uid] is WorkerState.IDLE
        and view.pod.uid not in known.leaving
        and view.pod.uid not in snapshot.obstacles
    ]
    general = _general_refusal(snapshot, known, idle)
    if general is not None:
        refusals.append(general)
        idle = []
    for view in sorted(idle, key=_idle_longest_first):
        if view.pod.uid in taken:
            continue
        trainer = warm.get(view.pod.uid)
        refusal = _refusal(snapshot, known, view, trainer)
        if refusal is None and trainer is not None:
            in_use = _devices_in_use(snapshot, known.workers) if in_use is None else in_use
            refusal = _shared_device(view, in_use)
        if refusal is None and trainer is not None:
            fit.append((view, trainer))
        else:
            refusals.append(refusal or _no_trainer(view))
    wish = replace(known.account, held=len(held), wanted=min(len(fit), max(0, allowed - len(held))))
    share = share_leases((wish, *snapshot.rivals), limit=known.terms.limit)[wish.job]
    grants = tuple(_grant(snapshot, view, trainer, terms=known.terms) for view, trainer in fit[:share])
    held += [view for view, _ in fit[:share]]
    wish = replace(wish, held=len(held), wanted=wish.wanted - share)
    if held:
        names = ", ".join(view.pod.name for view in held)
        message = f"The device of {names} trains the drafter"
        if len(held) > 1:
            message = f"The devices of {names} train the drafter together"
        if (
            known.terms.teams
            and len(fit) > share
            and not snapshot.lighthouse_ready
            and snapshot.job.spec.training.max_trainers > 1
        ):
            message += _no_lighthouse(snapshot, fit[-1][0])
        return Lending(grants=grants, lent=len(held), reason=Reason.LEASE_HELD, message=message, wish=wish)
    if fit:
        refusals.insert(0, _budget_spent(fit[0][0], known.terms))
    reason, message = refusals[0] if refusals else _nothing_idle(snapshot)
    return Lending(grants=(), lent=0, reason=reason, message=message, wish=wish)


def held_pods(snapshot: Snapshot, workers: Mapping[str, WorkerState], *, terms: LeaseTerms) -> list[RolloutView]:
    """Pods whose device a trainer has, or may still have."""
    at_work = snapshot.with_trainer(TrainerPhase.TRAINING, TrainerPhase.STOPPING)
    return [
        view
        for view in snapshot.rollouts
        if workers[view.pod.uid] is not WorkerState.UNAVAILABLE
        and (view.granting or view.pod.uid in at_work or _may_be_lent(snapshot, view, terms=terms))
    ]


def _may_be_lent(snapshot: Snapshot, view: RolloutView, *, terms: LeaseTerms) -> bool:
    """A pod that has fallen silent may be so for the operator alone: its lease counts until it must have ended."""
    lease = view.state.lease if view.state is not None else None
    if lease is None:
        return False
    age = snapshot.age(view)
    heard = view.fault is None and age <= snapshot.limits.stale_after
    return heard or age + lease.age <= terms.window + snapshot.job.spec.reclaim.grace + terms.ttl


def warm_trainers(snapshot: Snapshot) -> dict[str, TrainerView]:
    """Trainer pods that wait for a lease, by the uid of their rollout pod."""
    return {
        view.pod.rollout_uid: view
        for view in snapshot.trainers
        if view.pod.rollout_uid is not None
        and not view.pod.deleting
        and view.state is not None
        and view.state.phase is TrainerPhase.WAITING
        and view.fault is None
        and view.age <= snapshot.limits.stale_after
    }


def window_error(trainer: TrainerView) -> str | None:
    """What the last window of a trainer went wrong with."""
    window = trainer.state.last_window if trainer.state is not None else None
    if window is None or not window.stop_reason.startswith("Error"):
        return None
    return window.stop_reason.removeprefix("Error").lstrip(": ") or "no message"


def _general_refusal(snapshot: Snapshot, known: Knowledge, idle: list[RolloutView]) -> Refusal | None:
    """Why none of the idle pods is lent, for a reason that all of them have."""
    if snapshot.job.deleting or snapshot.job.spec.suspend or not idle:
        return _nothing_idle(snapshot)
    if known.generation.queued:
        return Reason.NO_IDLE_POD, f"The gateway has requests waiting, so {idle[0].pod.name} will not stay idle"
    if not known.need.due:
        return Reason.WAITING_FOR_DATA, known.need.message
    return None


def _refusal(snapshot: Snapshot, known: Knowledge, view: RolloutView, trainer: TrainerView | None) -> Refusal | None:
    """Why this idle pod is not lent, whatever the budget; the first reason counts."""
    spec, name, uid = snapshot.job.spec, view.pod.name, view.pod.uid
    if not in_scope(spec.idle.scope, known.generation, uid=uid, worker=known.workers[uid]):
        return Reason.OUT_OF_SCOPE, (
            f"{name} is idle, but no other pod generates, and spec.idle.scope is Tail (AnyIdle would lend it)"
        )
    rest = expect_rest(uid, history=known.history, generation=known.generation, scope=spec.idle.scope, now=snapshot.now)
    if rest is not None and rest.seconds < spec.idle.min_window:
        return Reason.WINDOW_TOO_SHORT, (
            f"{name} should stay idle for {rest.seconds:.1f}s more {rest.source}, "
            f"less than spec.idle.minWindow ({spec.idle.min_window:g}s)"
        )
    wait = still_to_wait(known.patience, view, now=snapshot.now)
    if wait > 0:
        return Reason.OFTEN_INTERRUPTED, (
            f"Requests interrupted the last windows of {name}; it is lent again after {wait:.1f}s more of idleness"
        )
    if trainer is not None and _just_given_back(snapshot, view, trainer):
        return Reason.GIVEN_BACK, f"The trainer gave the device of {name} back; it is offered again soon"
    return None


def _shared_device(view: RolloutView, in_use: frozenset[str]) -> Refusal | None:
    shared = ", ".join(sorted(view.pod.holdings & in_use))
    if not shared:
        return None
    return Reason.NO_IDLE_POD, f"{view.pod.name} is idle, but another pod that is not shares its device ({shared})"


def _no_trainer(view: RolloutView) -> Refusal:
    return Reason.TRAINER_STARTING, f"{view.pod.name} is idle, its trainer pod is not ready yet"


def _budget_spent(view: RolloutView, terms: LeaseTerms) -> Refusal:
    return Reason.BUDGET_SPENT, (
        f"{view.pod.name} could be lent, but the {terms.limit} leases that all jobs of this operator share "
        "(TLT_MAX_LEASES) are out, or go first to jobs that have harvested less of their idle time"
    )


def _no_lighthouse(snapshot: Snapshot, view: RolloutView) -> str:
    return (
        f"; that of {view.pod.name} waits for Deployment {lighthouse_name(snapshot.job.name)} to be ready, "
        "by which trainers find each other"
    )


def _nothing_idle(snapshot: Snapshot) -> Refusal:
    if snapshot.job.deleting:
        return Reason.DELETING, "The TLTJob is being deleted"
    if snapshot.job.spec.suspend:
        return Reason.SUSPENDED, "spec.suspend is true; set it to false to lend idle devices again"
    return Reason.NO_IDLE_POD, "No rollout pod is idle"


def _grant(snapshot: Snapshot, view: RolloutView, trainer: TrainerView, *, terms: LeaseTerms) -> GrantLease:
    return GrantLease(
        rollout_uid=view.pod.uid,
        trainer_uid=trainer.pod.uid,
        request=LeaseRequest(
            holder=trainer.pod.holder, ttl=terms.ttl, window=terms.window, memory=snapshot.job.spec.idle.memory
        ),
    )


def _just_given_back(snapshot: Snapshot, view: RolloutView, trainer: TrainerView) -> bool:
    last = view.state.last_lease if view.state is not None else None
    if last is None or last.reason not in (None, RevokeReason.EXPIRED):
        return False
    limits = snapshot.limits
    pause = limits.retry_lease_after_error if window_error(trainer) is not None else limits.retry_lease_after
    return last.ended_ago + snapshot.age(view) < pause


def _devices_in_use(snapshot: Snapshot, workers: Mapping[str, WorkerState]) -> frozenset[str]:
    """Claims and devices of the pods that are not idle, or cannot say so."""
    return frozenset(
        holding
        for view in snapshot.rollouts
        if workers[view.pod.uid] is not WorkerState.IDLE and not view.pod.finished
        for holding in view.pod.holdings
    )


def _idle_longest_first(view: RolloutView) -> tuple[float, str]:
    return (view.heard_at - view.state.idle_for if view.state is not None else 0.0, view.pod.name)
