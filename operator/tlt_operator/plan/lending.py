"""Which idle devices are lent, and which are asked back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tlt_operator.api.names import Reason
from tlt_operator.plan.actions import Action, GrantLease, RevokeLease
from tlt_operator.plan.generation import Generation, in_scope
from tlt_operator.plan.snapshot import RolloutView, Snapshot, TrainerView
from tlt_operator.plan.windows import WindowHistory
from tlt_operator.plan.worker import WorkerState
from tlt_workloads.contract import LeaseRequest, RevokeReason, TrainerPhase

# Trainers of one job cannot join each other yet: two at once would each train a copy of the same drafter.
LEASES_AT_ONCE = 1

Refusal = tuple[Reason, str]


@dataclass(frozen=True, kw_only=True)
class LeaseTerms:
    """How long a lease may last, in seconds."""

    ttl: float = 10.0
    window: float = 600.0


@dataclass(frozen=True, kw_only=True)
class Lending:
    """What to do about leases, and in `reason` and `message` why no (further) device is lent."""

    actions: tuple[Action, ...]
    lent: int
    reason: Reason
    message: str


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What a lease is decided by, beside the snapshot."""

    workers: Mapping[str, WorkerState]
    generation: Generation
    history: WindowHistory
    available_tokens: int
    terms: LeaseTerms


def decide_leases(snapshot: Snapshot, known: Knowledge) -> Lending:
    """Grants and revocations.  Never grants a pod that is not `IDLE`, that is held, or whose trainer is not warm."""
    workers = known.workers
    actions: list[Action] = [
        revoke
        for view in snapshot.rollouts
        if workers[view.pod.uid] is WorkerState.LENT and (revoke := _revocation(snapshot, known, view)) is not None
    ]
    held = [view for view in snapshot.rollouts if _is_held(view, workers)]
    allowed = min(snapshot.job.spec.training.max_trainers, LEASES_AT_ONCE)
    warm = warm_trainers(snapshot)
    refusals: list[Refusal] = []
    for view in sorted(snapshot.rollouts, key=_idle_longest_first):
        if workers[view.pod.uid] is not WorkerState.IDLE or view.granting:
            continue
        trainer = warm.get(view.pod.uid)
        refusal = _refusal(snapshot, known, view, trainer)
        if refusal is not None or trainer is None:
            refusals.append(refusal or _no_trainer(view))
        elif len(held) >= allowed:
            refusals.append((Reason.BUDGET_SPENT, f"{len(held)} of {allowed} leases are out"))
        else:
            held.append(view)
            actions.append(_grant(snapshot, view, trainer, terms=known.terms))
    if held:
        message = f"The device of {', '.join(view.pod.name for view in held)} trains the drafter"
        return Lending(actions=tuple(actions), lent=len(held), reason=Reason.LEASE_HELD, message=message)
    reason, message = refusals[0] if refusals else _nothing_idle(snapshot)
    return Lending(actions=tuple(actions), lent=0, reason=reason, message=message)


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


def _refusal(snapshot: Snapshot, known: Knowledge, view: RolloutView, trainer: TrainerView | None) -> Refusal | None:
    """Why this idle pod is not lent, whatever the budget; the first reason counts."""
    spec, name, uid = snapshot.job.spec, view.pod.name, view.pod.uid
    if snapshot.job.deleting or spec.suspend:
        return _nothing_idle(snapshot)
    if not in_scope(spec.idle.scope, known.generation, uid=uid, worker=known.workers[uid]):
        return Reason.OUT_OF_SCOPE, (
            f"{name} is idle, but no other pod generates, and spec.idle.scope is Tail (AnyIdle would lend it)"
        )
    if known.generation.queued:
        return Reason.NO_IDLE_POD, f"The gateway has requests waiting, so {name} will not stay idle"
    needed = spec.training.trigger.min_new_tokens
    if known.available_tokens < needed:
        return Reason.WAITING_FOR_DATA, (
            f"{known.available_tokens} captured tokens wait, spec.training.trigger.minNewTokens is {needed}"
        )
    rest, least = known.history.expected_rest(uid, now=snapshot.now), spec.idle.min_window
    if rest is not None and rest < least:
        return Reason.WINDOW_TOO_SHORT, (
            f"{name} should stay idle for {rest:.1f}s more, less than spec.idle.minWindow ({least:g}s)"
        )
    if trainer is not None and _just_given_back(snapshot, view, trainer):
        return Reason.GIVEN_BACK, f"The trainer gave the device of {name} back; it is offered again soon"
    return None


def _no_trainer(view: RolloutView) -> Refusal:
    return Reason.TRAINER_STARTING, f"{view.pod.name} is idle, its trainer pod is not ready yet"


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


def _revocation(snapshot: Snapshot, known: Knowledge, view: RolloutView) -> RevokeLease | None:
    uid, spec = view.pod.uid, snapshot.job.spec
    if snapshot.job.deleting:
        return RevokeLease(rollout_uid=uid, reason=RevokeReason.OPERATOR, why="the TLTJob is being deleted")
    if spec.suspend:
        return RevokeLease(rollout_uid=uid, reason=RevokeReason.OPERATOR, why="spec.suspend is true")
    if not in_scope(spec.idle.scope, known.generation, uid=uid, worker=known.workers[uid]):
        return RevokeLease(rollout_uid=uid, reason=RevokeReason.WINDOW_END, why="no other pod generates any more")
    return None


def _just_given_back(snapshot: Snapshot, view: RolloutView, trainer: TrainerView) -> bool:
    last = view.state.last_lease if view.state is not None else None
    if last is None or last.reason not in (None, RevokeReason.EXPIRED):
        return False
    limits = snapshot.limits
    pause = limits.retry_lease_after_error if window_error(trainer) is not None else limits.retry_lease_after
    return last.ended_ago + view.age < pause


def _is_held(view: RolloutView, workers: Mapping[str, WorkerState]) -> bool:
    worker = workers[view.pod.uid]
    return worker in (WorkerState.LENT, WorkerState.REVOKING) or (view.granting and worker is WorkerState.IDLE)


def _idle_longest_first(view: RolloutView) -> tuple[float, str]:
    return (-(view.state.idle_for + view.age) if view.state is not None else 0.0, view.pod.name)
