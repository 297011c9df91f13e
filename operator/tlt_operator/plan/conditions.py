"""Facts in, conditions out: type, status, reason and a sentence that names the field, the object and the fix."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from tlt_operator.api.names import ConditionType, Phase, Reason, token_secret_name
from tlt_operator.plan.lending import Lending, window_error
from tlt_operator.plan.pool import Change, PoolPlan
from tlt_operator.plan.revisions import Rollout
from tlt_operator.plan.snapshot import Fault, RolloutView, Snapshot
from tlt_operator.plan.triggers import Need
from tlt_operator.plan.worker import WorkerState
from tlt_workloads.contract import STATE_ROUTE, TrainerPhase


class Status(enum.StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One fact about a job."""

    type: ConditionType
    status: Status
    reason: Reason
    message: str


def rollout_ready(snapshot: Snapshot, workers: Mapping[str, WorkerState], pool: PoolPlan | None = None) -> Condition:
    """Whether rollout pods can be watched; `pool` is what goes on when the operator runs them."""
    if pool is not None and not snapshot.rollouts:
        reason, message = _pool_trouble(snapshot, pool) or (Reason.POOL_SCALING, pool.message)
        return _condition(ConditionType.ROLLOUT_READY, Status.FALSE, reason, message)
    if not snapshot.rollouts:
        selector = snapshot.job.spec.rollout.selector
        query = selector.query() if selector is not None else ""
        return _condition(
            ConditionType.ROLLOUT_READY,
            Status.FALSE,
            Reason.NO_PODS_MATCH,
            f"spec.rollout.selector ({query}) matches no pod in namespace {snapshot.job.namespace}; "
            "give the rollout pods these labels",
        )
    known = [
        view
        for view in snapshot.rollouts
        if workers[view.pod.uid] not in (WorkerState.UNKNOWN, WorkerState.UNAVAILABLE)
    ]
    total = len(snapshot.rollouts)
    if known and pool is not None and pool.change is not Change.NONE:
        reason = Reason.POOL_ROLLING if pool.change is Change.ROLLING else Reason.POOL_SCALING
        return _condition(ConditionType.ROLLOUT_READY, Status.TRUE, reason, pool.message)
    if len(known) == total:
        return _condition(
            ConditionType.ROLLOUT_READY, Status.TRUE, Reason.PODS_READY, f"All {total} rollout pods answer"
        )
    if known:
        return _condition(
            ConditionType.ROLLOUT_READY,
            Status.TRUE,
            Reason.SOME_PODS_READY,
            f"{len(known)} of {total} rollout pods answer",
        )
    reason, message = _why_silent(snapshot, snapshot.rollouts[0])
    return _condition(ConditionType.ROLLOUT_READY, Status.FALSE, reason, message)


def data_ready(snapshot: Snapshot, need: Need) -> Condition:
    """Whether what was captured is worth training on, and by which trigger."""
    spec = snapshot.job.spec
    if spec.capture.sample_rate == 0:
        return _condition(
            ConditionType.DATA_READY,
            Status.FALSE,
            Reason.CAPTURE_OFF,
            "spec.capture.sampleRate is 0, so nothing is recorded; set it above 0 to train",
        )
    if not any(view.state is not None for view in snapshot.rollouts):
        return _condition(ConditionType.DATA_READY, Status.UNKNOWN, Reason.NO_ANSWER, "No rollout pod has answered yet")
    return _condition(ConditionType.DATA_READY, Status.TRUE if need.due else Status.FALSE, need.reason, need.message)


def harvesting(snapshot: Snapshot, lending: Lending) -> Condition:
    """Whether an idle device trains now, and if not, why not."""
    if lending.lent:
        return _condition(ConditionType.HARVESTING, Status.TRUE, lending.reason, lending.message)
    obstacle = _lending_obstacle(snapshot)
    nothing_to_lend = all(view.pod.deleting or view.pod.uid in snapshot.obstacles for view in snapshot.rollouts)
    if obstacle is not None and nothing_to_lend and lending.reason not in (Reason.SUSPENDED, Reason.DELETING):
        return _condition(ConditionType.HARVESTING, Status.FALSE, *obstacle)
    return _condition(ConditionType.HARVESTING, Status.FALSE, lending.reason, lending.message)


def drafter_ready(snapshot: Snapshot, rollout: Rollout) -> Condition:
    """Whether the pods have the drafter that they should have."""
    answering = [view for view in snapshot.rollouts if view.state is not None and view.fault is None]
    if answering and all(view.state is not None and view.state.drafter_method is None for view in answering):
        return _condition(
            ConditionType.DRAFTER_READY,
            Status.FALSE,
            Reason.SPECULATION_OFF,
            f"Pod {answering[0].pod.name} was started without speculation and cannot take a drafter; "
            "start vLLM with --speculative-config",
        )
    if rollout.missing_pin is not None:
        return _condition(
            ConditionType.DRAFTER_READY,
            Status.FALSE,
            Reason.PIN_NOT_FOUND,
            f"spec.release.pin names {rollout.missing_pin}, which is no DrafterRevision of this job; nothing is pinned",
        )
    wanted, counts, trial = rollout.active or rollout.candidate, rollout.counts, rollout.trial
    if rollout.active is None and trial is not None and rollout.candidate is not None and not rollout.refusals:
        where = f"in {counts.loaded} of {len(trial.canaries)} canaries" if trial.canaries else "in no pod yet"
        return _condition(
            ConditionType.DRAFTER_READY,
            Status.FALSE,
            Reason.REVISION_ON_TRIAL,
            f"Revision {rollout.candidate.name} is on trial {where}; the other pods have their server's own drafter",
        )
    if wanted is None:
        refused = [item for item in snapshot.revisions if item.phase is not None and item.phase.value == "RolledBack"]
        if refused:
            newest = max(refused, key=lambda item: item.number)
            return _condition(
                ConditionType.DRAFTER_READY,
                Status.FALSE,
                Reason.REVISION_REFUSED,
                f"Revision {newest.name} was rolled back; `kubectl describe drafterrevision {newest.name}` says why",
            )
        return _condition(
            ConditionType.DRAFTER_READY, Status.FALSE, Reason.NO_REVISION, "No revision has been trained yet"
        )
    if counts.total and counts.loaded == counts.total:
        tried = f"; {rollout.candidate.name} is on trial" if trial is not None and rollout.candidate else ""
        return _condition(
            ConditionType.DRAFTER_READY,
            Status.TRUE,
            Reason.REVISION_ACTIVE,
            f"Revision {wanted.name} is in {counts.loaded} of {counts.total} rollout pods{tried}",
        )
    if rollout.refusals:
        pod, why = next(iter(rollout.refusals.items()))
        return _condition(
            ConditionType.DRAFTER_READY,
            Status.FALSE,
            Reason.REVISION_REFUSED,
            f"Pod {pod} refused revision {wanted.name}: {why}",
        )
    return _condition(
        ConditionType.DRAFTER_READY,
        Status.FALSE,
        Reason.REVISION_LOADING,
        f"Revision {wanted.name} is in {counts.loaded} of {counts.total} rollout pods",
    )


def degraded(
    snapshot: Snapshot, workers: Mapping[str, WorkerState], rollout: Rollout, pool: PoolPlan | None = None
) -> Condition:
    """Whether something needs a person."""
    found = _first_trouble(snapshot, workers, rollout, pool)
    if found is None:
        return _condition(ConditionType.DEGRADED, Status.FALSE, Reason.AS_EXPECTED, "Nothing needs attention")
    return _condition(ConditionType.DEGRADED, Status.TRUE, *found)


def phase_of(conditions: tuple[Condition, ...], *, suspended: bool) -> Phase:
    """The conditions in one word."""
    status = {item.type: item.status for item in conditions}
    if suspended:
        return Phase.SUSPENDED
    if status.get(ConditionType.DEGRADED) is Status.TRUE:
        return Phase.DEGRADED
    if status.get(ConditionType.HARVESTING) is Status.TRUE:
        return Phase.HARVESTING
    return Phase.READY if status.get(ConditionType.ROLLOUT_READY) is Status.TRUE else Phase.PENDING


def message_of(conditions: tuple[Condition, ...]) -> str:
    """The sentence that matters most: what is wrong, else what is missing, else what goes on."""
    by_type = {item.type: item for item in conditions}
    trouble = by_type[ConditionType.DEGRADED]
    if trouble.status is Status.TRUE:
        return trouble.message
    if by_type[ConditionType.ROLLOUT_READY].status is not Status.TRUE:
        return by_type[ConditionType.ROLLOUT_READY].message
    return by_type[ConditionType.HARVESTING].message


def invalid_spec(message: str) -> tuple[Condition, ...]:
    """The conditions of a job whose spec cannot be read at all."""
    return (
        _condition(ConditionType.ROLLOUT_READY, Status.UNKNOWN, Reason.INVALID_SPEC, message),
        _condition(ConditionType.HARVESTING, Status.FALSE, Reason.INVALID_SPEC, message),
        _condition(ConditionType.DEGRADED, Status.TRUE, Reason.INVALID_SPEC, message),
    )


def _first_trouble(
    snapshot: Snapshot, workers: Mapping[str, WorkerState], rollout: Rollout, pool: PoolPlan | None
) -> tuple[Reason, str] | None:
    if pool is not None:
        found = _pool_trouble(snapshot, pool)
        if found is not None:
            return found
    obstacle = _lending_obstacle(snapshot)
    if obstacle is not None:
        return obstacle
    if snapshot.child_failure is not None:
        return Reason.CHILD_NOT_APPLIED, snapshot.child_failure
    for view in snapshot.rollouts:
        if workers[view.pod.uid] is WorkerState.UNKNOWN and snapshot.silence(view) > snapshot.limits.silence:
            return _why_silent(snapshot, view)
    for uid, failure in snapshot.trainer_failures.items():
        name = next((view.pod.name for view in snapshot.rollouts if view.pod.uid == uid), uid)
        if failure.reason is Reason.TRAINER_FAILED:
            told = f"The trainer on the device of {name} failed and will be tried again: {failure.message}"
        else:
            told = f"There is no trainer on the device of {name}, and it will be tried again: {failure.message}"
        return failure.reason, told
    for trainer in snapshot.trainers:
        if trainer.state is not None and trainer.state.phase is TrainerPhase.FAILED:
            return Reason.TRAINER_FAILED, f"Trainer pod {trainer.pod.name} failed: {trainer.state.message}"
        error = window_error(trainer)
        if error is not None:
            return Reason.TRAINER_FAILED, f"The last window of trainer pod {trainer.pod.name} failed: {error}"
        slow = trainer.known_for > snapshot.limits.silence and trainer.state is None
        if slow and trainer.pod.trouble is not None and not trainer.pod.deleting:
            return Reason.TRAINER_FAILED, f"Trainer pod {trainer.pod.name} does not start: {trainer.pod.trouble}"
    refused = rollout.active or rollout.candidate
    if rollout.refusals and refused is not None:
        pod, why = next(iter(rollout.refusals.items()))
        return Reason.REVISION_REFUSED, f"Pod {pod} refused revision {refused.name}: {why}"
    gateway = snapshot.gateway
    if gateway is not None and gateway.silent_for > 2 * snapshot.limits.silence:
        return Reason.GATEWAY_UNREACHABLE, (
            f"The gateway has not answered for {gateway.silent_for:.0f}s; "
            f"see `kubectl describe deployment {snapshot.job.name}-gateway`"
        )
    return None


def _pool_trouble(snapshot: Snapshot, pool: PoolPlan) -> tuple[Reason, str] | None:
    if not snapshot.site.claims_served:
        return Reason.NO_DRA, (
            "The cluster has no resource.k8s.io API, which gives the pods of spec.rollout.pool their devices; "
            "use Kubernetes 1.34 or later with a DRA driver, or run the pods yourself and name them in "
            "spec.rollout.selector"
        )
    return pool.trouble


def _lending_obstacle(snapshot: Snapshot) -> tuple[Reason, str] | None:
    """What keeps pods from being lent at all: the first such pod's obstacle, and how many have one."""
    obstacles = list(snapshot.obstacles.values())
    if not obstacles:
        return None
    others = f" ({len(obstacles)} of {len(snapshot.rollouts)} pods cannot be lent)" if len(obstacles) > 1 else ""
    return obstacles[0].reason, obstacles[0].message + others


def _why_silent(snapshot: Snapshot, view: RolloutView) -> tuple[Reason, str]:
    name, port = view.pod.name, snapshot.job.spec.port
    match view.fault:
        case Fault.ROUTE_MISSING:
            return Reason.PLUGIN_MISSING, (
                f"Pod {name} does not know {STATE_ROUTE} on port {port}: it runs without the rollout plugin, "
                "and is not lent; use the workloads image or install tlt-operator[rollout] beside vLLM"
            )
        case Fault.TOKEN_REFUSED:
            return Reason.TOKEN_REFUSED, (
                f"Pod {name} refuses the token; mount the whole Secret {token_secret_name(snapshot.job.name)} "
                "at /var/run/secrets/tlt in the rollout pods, without subPath"
            )
        case Fault.INCOMPATIBLE:
            return Reason.INCOMPATIBLE, (
                f"The answer of pod {name} cannot be read ({view.fault_message}); "
                "bring rollout image and operator to one version"
            )
    if not view.pod.ready:
        trouble = f": {view.pod.trouble}" if view.pod.trouble else ""
        return Reason.PODS_NOT_READY, f"Pod {name} is {view.pod.phase} and not ready{trouble}"
    return Reason.PODS_UNREACHABLE, (
        f"Pod {name} has not answered on port {port} for {snapshot.silence(view):.0f}s "
        f"({view.fault_message or 'no answer yet'}); check spec.port and NetworkPolicies"
    )


def _condition(kind: ConditionType, status: Status, reason: Reason, message: str) -> Condition:
    return Condition(type=kind, status=status, reason=reason, message=message[:1024])
