"""Which idle devices are lent, and which are asked back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tlt_operator.api.job import Scope
from tlt_operator.api.names import Reason
from tlt_operator.plan.actions import Action, GrantLease, RevokeLease
from tlt_operator.plan.snapshot import RolloutView, Snapshot, TrainerView
from tlt_operator.plan.windows import WindowHistory, WindowPhase
from tlt_operator.plan.worker import WorkerState
from tlt_workloads.contract import LeaseRequest, RevokeReason, TrainerPhase

# Trainers of one job cannot join each other yet: two at once would each train a copy of the same drafter.
LEASES_AT_ONCE = 1


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


def generates_elsewhere(snapshot: Snapshot, workers: Mapping[str, WorkerState], uid: str | None = None) -> bool:
    """Whether any pod but this one still generates for the current step."""
    if any(state is WorkerState.BUSY for other, state in workers.items() if other != uid):
        return True
    gateway = snapshot.gateway
    # The pod in question is idle, so whatever the gateway still waits for is with the others.
    return (
        gateway is not None
        and gateway.state is not None
        and _fresh(snapshot, gateway.age)
        and (gateway.state.outstanding > 0)
    )


def window_phase(snapshot: Snapshot, workers: Mapping[str, WorkerState]) -> WindowPhase:
    """The part of the RL step that the job is in."""
    return WindowPhase.TAIL if generates_elsewhere(snapshot, workers) else WindowPhase.LEARNER


def lendable(snapshot: Snapshot, workers: Mapping[str, WorkerState]) -> frozenset[str]:
    """Pods (uids) whose device is lent, or could be by `idle.scope`."""
    return frozenset(
        uid
        for uid, state in workers.items()
        if state in (WorkerState.IDLE, WorkerState.LENT) and _in_scope(snapshot, workers, uid)
    )


def decide_leases(
    snapshot: Snapshot,
    workers: Mapping[str, WorkerState],
    *,
    history: WindowHistory,
    available_tokens: int,
    terms: LeaseTerms,
) -> Lending:
    """Grants and revocations.  Never grants a pod that is not `IDLE`, that is held, or whose trainer is not warm."""
    actions: list[Action] = []
    held = sum(state in (WorkerState.LENT, WorkerState.REVOKING) for state in workers.values())
    held += sum(view.granting and workers[view.pod.uid] is WorkerState.IDLE for view in snapshot.rollouts)
    for view in snapshot.rollouts:
        if workers[view.pod.uid] is WorkerState.LENT:
            revoke = _revocation(snapshot, workers, view)
            if revoke is not None:
                actions.append(revoke)
    allowed = min(snapshot.job.spec.training.max_trainers, LEASES_AT_ONCE)
    refusals: list[tuple[Reason, str]] = []
    for view in sorted(snapshot.rollouts, key=_idle_longest_first):
        if workers[view.pod.uid] is not WorkerState.IDLE or view.granting:
            continue
        trainer, refusal = _check(snapshot, workers, view, history=history, available_tokens=available_tokens)
        if trainer is None:
            refusals.append(refusal)
        elif held >= allowed:
            refusals.append((Reason.BUDGET_SPENT, f"{held} of {allowed} leases are out"))
        else:
            held += 1
            actions.append(_grant(snapshot, view, trainer, terms=terms))
    if held:
        granted = {action.rollout_uid for action in actions if isinstance(action, GrantLease)}
        names = ", ".join(
            view.pod.name for view in snapshot.rollouts if view.pod.uid in granted or _held(view, workers)
        )
        message = f"The device of {names} trains the drafter"
        return Lending(actions=tuple(actions), lent=held, reason=Reason.LEASE_HELD, message=message)
    reason, message = refusals[0] if refusals else _nothing_idle(snapshot)
    return Lending(actions=tuple(actions), lent=0, reason=reason, message=message)


def warm_trainer(snapshot: Snapshot, rollout_uid: str) -> TrainerView | None:
    """The trainer pod of this rollout pod, when it waits for a lease."""
    for view in snapshot.trainers:
        warm = view.state is not None and view.state.phase is TrainerPhase.WAITING
        if view.pod.rollout_uid == rollout_uid and warm and not view.pod.deleting and _answers(snapshot, view):
            return view
    return None


def window_error(trainer: TrainerView) -> str | None:
    """What the last window of a trainer went wrong with."""
    window = trainer.state.last_window if trainer.state is not None else None
    if window is None or not window.stop_reason.startswith("Error"):
        return None
    return window.stop_reason.removeprefix("Error").lstrip(": ") or "no message"


def _check(
    snapshot: Snapshot,
    workers: Mapping[str, WorkerState],
    view: RolloutView,
    *,
    history: WindowHistory,
    available_tokens: int,
) -> tuple[TrainerView | None, tuple[Reason, str]]:
    spec, name, uid = snapshot.job.spec, view.pod.name, view.pod.uid
    if snapshot.job.deleting:
        return None, (Reason.DELETING, "The TLTJob is being deleted")
    if spec.suspend:
        return None, (Reason.SUSPENDED, "spec.suspend is true; set it to false to lend idle devices again")
    if not _in_scope(snapshot, workers, uid):
        return None, (
            Reason.OUT_OF_SCOPE,
            f"{name} is idle, but no other pod generates, and spec.idle.scope is Tail (AnyIdle would lend it)",
        )
    if _gateway_queues(snapshot):
        return None, (Reason.NO_IDLE_POD, f"The gateway has requests waiting, so {name} will not stay idle")
    needed = spec.training.trigger.min_new_tokens
    if available_tokens < needed:
        return None, (
            Reason.WAITING_FOR_DATA,
            f"{available_tokens} captured tokens wait, spec.training.trigger.minNewTokens is {needed}",
        )
    rest = history.expected_rest(uid, now=snapshot.now)
    if rest is not None and rest < spec.idle.min_window:
        return None, (
            Reason.WINDOW_TOO_SHORT,
            f"{name} should stay idle for {rest:.1f}s more, less than spec.idle.minWindow ({spec.idle.min_window:g}s)",
        )
    trainer = warm_trainer(snapshot, uid)
    if trainer is None:
        return None, (Reason.TRAINER_STARTING, f"{name} is idle, its trainer pod is not ready yet")
    if _just_given_back(snapshot, view, trainer):
        return None, (Reason.GIVEN_BACK, f"The trainer gave the device of {name} back; it is offered again soon")
    return trainer, (Reason.LEASE_HELD, "")


def _grant(snapshot: Snapshot, view: RolloutView, trainer: TrainerView, *, terms: LeaseTerms) -> GrantLease:
    return GrantLease(
        rollout_uid=view.pod.uid,
        trainer_uid=trainer.pod.uid,
        request=LeaseRequest(
            holder=trainer.pod.holder, ttl=terms.ttl, window=terms.window, memory=snapshot.job.spec.idle.memory
        ),
    )


def _revocation(snapshot: Snapshot, workers: Mapping[str, WorkerState], view: RolloutView) -> RevokeLease | None:
    uid = view.pod.uid
    if snapshot.job.deleting:
        return RevokeLease(rollout_uid=uid, reason=RevokeReason.OPERATOR, why="the TLTJob is being deleted")
    if snapshot.job.spec.suspend:
        return RevokeLease(rollout_uid=uid, reason=RevokeReason.OPERATOR, why="spec.suspend is true")
    if not _in_scope(snapshot, workers, uid):
        return RevokeLease(rollout_uid=uid, reason=RevokeReason.WINDOW_END, why="no other pod generates any more")
    return None


def _in_scope(snapshot: Snapshot, workers: Mapping[str, WorkerState], uid: str) -> bool:
    if snapshot.job.spec.idle.scope is Scope.ANY_IDLE or generates_elsewhere(snapshot, workers, uid):
        return True
    # A lease that exists is taken back only when the tail is over for certain: a pod that cannot be asked might
    # generate, and one that has just ended its last request may get the next one at once.
    uncertain = (WorkerState.DRAINING, WorkerState.UNKNOWN)
    return workers[uid] is WorkerState.LENT and any(state in uncertain for state in workers.values())


def _just_given_back(snapshot: Snapshot, view: RolloutView, trainer: TrainerView) -> bool:
    last = view.state.last_lease if view.state is not None else None
    if last is None or last.reason not in (None, RevokeReason.EXPIRED):
        return False
    limits = snapshot.limits
    pause = limits.retry_lease_after_error if window_error(trainer) is not None else limits.retry_lease_after
    return last.ended_ago + view.age < pause


def _gateway_queues(snapshot: Snapshot) -> bool:
    gateway = snapshot.gateway
    return (
        gateway is not None and gateway.state is not None and _fresh(snapshot, gateway.age) and gateway.state.queued > 0
    )


def _answers(snapshot: Snapshot, view: TrainerView) -> bool:
    return view.state is not None and view.fault is None and _fresh(snapshot, view.age)


def _fresh(snapshot: Snapshot, age: float) -> bool:
    return age <= snapshot.limits.stale_after


def _held(view: RolloutView, workers: Mapping[str, WorkerState]) -> bool:
    return view.granting or workers[view.pod.uid] in (WorkerState.LENT, WorkerState.REVOKING)


def _idle_longest_first(view: RolloutView) -> tuple[float, str]:
    return (-(view.state.idle_for + view.age) if view.state is not None else 0.0, view.pod.name)


def _nothing_idle(snapshot: Snapshot) -> tuple[Reason, str]:
    if snapshot.job.deleting:
        return Reason.DELETING, "The TLTJob is being deleted"
    if snapshot.job.spec.suspend:
        return Reason.SUSPENDED, "spec.suspend is true; set it to false to lend idle devices again"
    return Reason.NO_IDLE_POD, "No rollout pod is idle"
