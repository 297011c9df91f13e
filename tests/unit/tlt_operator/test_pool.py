"""What is done about a pool, case by case; whole histories are in test_pool_properties."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.pool_world import pool_spec
from tests.support.snapshots import (
    make_job,
    make_lease,
    make_pod,
    make_rollout,
    make_snapshot,
    make_state,
    make_trainer,
    make_trainer_pod,
)
from tlt_operator.api.names import ConditionType, Phase, Reason
from tlt_operator.api.pod import parse_pod
from tlt_operator.api.pool_set import PoolSet, parse_pool_set
from tlt_operator.placement.strategy import Site
from tlt_operator.plan.actions import (
    Action,
    ApplyPool,
    CreateTrainer,
    DeleteTrainer,
    GrantLease,
    ReplacePod,
    RevokeLease,
)
from tlt_operator.plan.conditions import Condition, Status
from tlt_operator.plan.decision import Decision, Memory, decide
from tlt_operator.plan.lending import LeaseTerms
from tlt_operator.plan.pool import Progress
from tlt_operator.plan.snapshot import Fault, PoolView, RolloutView, TrainerView
from tlt_operator.plan.status import job_status, significant
from tlt_workloads.contract import TrainerPhase


def pod(index: int, *, template: str = "new", state: dict[str, Any] | None = None, **fields: Any) -> RolloutView:
    """A pod of the pool, idle unless told otherwise."""
    view = {name: fields.pop(name) for name in ("fault", "silent_for", "granting") if name in fields}
    found = make_pod(f"demo-rollout-{index}", **{"template": template, "started": True, **fields})
    return make_rollout(found.name, make_state(**(state or {"idle": True, "idle_for": 5.0})), pod=found, **view)


def starting(index: int, **fields: Any) -> RolloutView:
    """A pod whose server has not come up."""
    values: dict[str, Any] = {"ready": False, "started": False, "fault": Fault.UNREACHABLE, **fields}
    return pod(index, **values)


BUSY = {"running": 1}
UPDATING = {"updating": True}
LENT = {"idle": True, "idle_for": 5.0, "lease": make_lease(make_trainer_pod("demo-rollout-1").holder)}


def plan(*views: RolloutView | TrainerView, replicas: int, kept: int | None = None, **fields: Any) -> Decision:
    """The decision about a pool of `replicas` pods whose StatefulSet keeps `kept` (as many, unless told otherwise)."""
    found = PoolSet(uid="set", replicas=replicas if kept is None else kept, template=fields.pop("applied", "new"))
    memory = Memory(pool=fields.pop("before", None))
    pool = PoolView(**{"wanted": "new", "found": found, **fields.pop("pool", {})})
    job = make_job(rollout=pool_spec(replicas), **fields.pop("job", {}))
    return decide(make_snapshot(*views, job=job, pool=pool, **fields), memory, terms=LeaseTerms())


def deeds(decision: Decision) -> list[Action]:
    """The actions that touch pods that exist, and what is on them."""
    kinds = (ApplyPool, ReplacePod, DeleteTrainer, RevokeLease, GrantLease)
    return [action for action in decision.actions if isinstance(action, kinds)]


def of_pool(decision: Decision) -> list[Action]:
    return [action for action in decision.actions if isinstance(action, ApplyPool | ReplacePod)]


def condition(decision: Decision, kind: ConditionType) -> Condition:
    return next(item for item in decision.conditions if item.type is kind)


def test_a_pool_begins_with_all_its_pods() -> None:
    decision = plan(replicas=3, pool={"found": None})
    assert of_pool(decision) == [ApplyPool(replicas=3, template="new")]
    found = condition(decision, ConditionType.ROLLOUT_READY)
    assert (found.status, found.reason) == (Status.FALSE, Reason.POOL_SCALING)
    assert "0 of 3 pods are ready" in found.message
    assert decision.phase is Phase.PENDING


def test_it_grows_at_once_and_beside_work() -> None:
    assert of_pool(plan(pod(0, state=BUSY), replicas=3, kept=1)) == [ApplyPool(replicas=3, template="new")]


@pytest.mark.parametrize(
    ("last", "kept"),
    [
        ({}, 1),
        ({"state": BUSY}, 3),
        ({"state": UPDATING}, 3),
        ({"state": LENT}, 3),
        ({"fault": Fault.UNREACHABLE}, 3),  # it is ready, and may generate
        ({"granting": True}, 3),
        ({"deleting": True}, 1),
        ({"ready": False, "started": False, "fault": Fault.UNREACHABLE}, 1),
        ({"ready": False, "fault": Fault.UNREACHABLE}, 3),  # it has served, and nobody knows what it does
        ({"phase": "Failed", "ready": False}, 1),
    ],
)
def test_it_shrinks_by_unused_pods_from_its_end(last: dict[str, Any], kept: int) -> None:
    applied = [action for action in of_pool(plan(pod(0), pod(1), pod(2, **last), replicas=1, kept=3)) if action]
    assert [action.replicas for action in applied if isinstance(action, ApplyPool)] == ([kept] if kept < 3 else [])


def test_a_pod_in_the_middle_does_not_go_before_the_last_one() -> None:
    decision = plan(pod(0), pod(1), pod(2, state=BUSY), replicas=1, kept=3)
    assert of_pool(decision) == []
    found = condition(decision, ConditionType.ROLLOUT_READY)
    assert (found.status, found.reason) == (Status.TRUE, Reason.POOL_SCALING)
    assert "demo-rollout-2 is Busy" in found.message


def test_a_lent_pod_that_is_to_go_gives_its_device_back_first_and_loses_its_trainer_next() -> None:
    trainer = make_trainer("demo-rollout-1", phase=TrainerPhase.TRAINING)
    views = [pod(0, state=BUSY), pod(1, state=LENT), trainer]
    [revoke] = deeds(plan(*views, replicas=1, kept=2))
    assert isinstance(revoke, RevokeLease)
    assert "about to go" in revoke.why
    still_writing = make_trainer("demo-rollout-1", phase=TrainerPhase.STOPPING)
    assert deeds(plan(pod(0), pod(1), still_writing, replicas=1, kept=2)) == []
    [delete] = deeds(plan(pod(0), pod(1), make_trainer("demo-rollout-1"), replicas=1, kept=2))
    assert isinstance(delete, DeleteTrainer)
    [apply] = of_pool(plan(pod(0), pod(1), replicas=1, kept=2))
    assert apply == ApplyPool(replicas=1, template="new", removed=("demo-rollout-1-uid",))


def test_a_pod_that_is_to_go_is_neither_lent_nor_gets_a_trainer() -> None:
    lent = plan(pod(0), make_trainer("demo-rollout-0"), replicas=1, job={"idle": {"scope": "AnyIdle"}})
    assert [type(action) for action in deeds(lent)] == [GrantLease]
    leaving = plan(pod(0), pod(1), pod(2), pod(3, state=BUSY), make_trainer("demo-rollout-2"), replicas=1, kept=4)
    created = [action.rollout_uid for action in leaving.actions if isinstance(action, CreateTrainer)]
    assert created == ["demo-rollout-0-uid"]
    assert leaving.lending.grants == ()


def test_a_new_template_goes_into_the_set_before_any_pod_is_replaced() -> None:
    old = [pod(index, template="old") for index in (0, 1)]
    assert of_pool(plan(*old, replicas=2, applied="old")) == [ApplyPool(replicas=2, template="new")]
    unsettled = PoolSet(uid="set", replicas=2, template="new", settled=False)
    assert of_pool(plan(*old, replicas=2, pool={"found": unsettled})) == []
    assert [type(action) for action in of_pool(plan(*old, replicas=2))] == [ReplacePod]


def test_a_set_that_somebody_else_changed_is_written_again() -> None:
    assert of_pool(plan(pod(0), replicas=1, pool={"drifted": True})) == [ApplyPool(replicas=1, template="new")]


def test_the_pod_that_is_idle_and_not_lent_goes_first() -> None:
    views: list[RolloutView | TrainerView] = [
        pod(0, template="old", state=BUSY),
        pod(1, template="old", state=LENT),
        pod(2, template="old"),
        make_trainer("demo-rollout-1", phase=TrainerPhase.TRAINING),
    ]
    decision = plan(*views, replicas=3)
    assert of_pool(decision) == [ReplacePod(rollout_uid="demo-rollout-2-uid", template="new")]
    assert "0 of 3 pods have the new template" in condition(decision, ConditionType.ROLLOUT_READY).message


def test_a_lent_pod_is_asked_for_when_no_other_is_idle() -> None:
    trainer = make_trainer("demo-rollout-1", phase=TrainerPhase.TRAINING)
    [revoke] = deeds(plan(pod(0, template="old", state=BUSY), pod(1, template="old", state=LENT), trainer, replicas=2))
    assert isinstance(revoke, RevokeLease)
    assert revoke.rollout_uid == "demo-rollout-1-uid"


@pytest.mark.parametrize(
    "other",
    [
        pod(0, deleting=True),
        starting(0),
        pod(0, ready=False),
        starting(0, template="old", state=BUSY, started=True),
    ],
)
def test_nobody_is_replaced_while_another_is_out(other: RolloutView) -> None:
    assert of_pool(plan(other, pod(1, template="old"), replicas=2)) == []


def test_nobody_is_replaced_while_one_is_missing_or_was_deleted_just_now() -> None:
    assert of_pool(plan(pod(1, template="old"), replicas=2)) == []
    views = [pod(0, template="old"), pod(1, template="old")]
    assert of_pool(plan(*views, replicas=2, pool={"removed": frozenset({"demo-rollout-0-uid"})})) == []


def test_a_pod_that_never_came_up_goes_before_one_that_serves() -> None:
    views = [pod(0, template="old"), starting(1, template="broken")]
    assert of_pool(plan(*views, replicas=2)) == [ReplacePod(rollout_uid="demo-rollout-1-uid", template="new")]


def test_a_suspended_job_is_scaled_and_rolled_as_well_and_a_deleted_one_is_not() -> None:
    old = [pod(0, template="old")]
    assert [type(action) for action in of_pool(plan(*old, replicas=1, job={"suspend": True}))] == [ReplacePod]
    assert of_pool(plan(*old, replicas=1, job={"deleting": True})) == []


def test_a_pod_that_does_not_start_stops_the_roll_and_is_told() -> None:
    trouble = "ImagePullBackOff: no such image"
    broken = starting(1, trouble=trouble, silent_for=31.0)
    decision = plan(pod(0, template="old"), broken, replicas=2)
    assert of_pool(decision) == []
    found = condition(decision, ConditionType.DEGRADED)
    assert (found.status, found.reason) == (Status.TRUE, Reason.POOL_STUCK)
    assert "demo-rollout-1" in found.message
    assert trouble in found.message
    assert "no further pod is replaced" in found.message
    assert condition(decision, ConditionType.ROLLOUT_READY).status is Status.TRUE, "the other one serves"


@pytest.mark.parametrize(("since", "reason"), [(200.0, Reason.AS_EXPECTED), (99.0, Reason.POOL_STUCK)])
def test_a_change_that_stands_still_is_told_after_a_while(since: float, reason: Reason) -> None:
    before = Progress(replicas=1, ready=1, updated=0, wanted="new", since=since)
    decision = plan(pod(0, template="old", state=BUSY), replicas=1, before=before, now=1000.0)
    found = condition(decision, ConditionType.DEGRADED)
    assert found.reason is reason
    assert of_pool(decision) == [], "it generates, and nothing is worth more"
    if reason is Reason.POOL_STUCK:
        assert "15 minutes" in found.message
        assert "demo-rollout-0 is Busy" in found.message


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        ('pods "demo-rollout-1" is forbidden: exceeded quota: few', Reason.QUOTA_EXCEEDED),
        ('pods "demo-rollout-1" is forbidden: violates PodSecurity', Reason.PODS_REFUSED),
    ],
)
def test_refused_pods_are_told_in_the_api_servers_words(refusal: str, reason: Reason) -> None:
    some = plan(pod(0), replicas=2, pool={"refusal": refusal})
    found = condition(some, ConditionType.DEGRADED)
    assert (found.reason, refusal in found.message) == (reason, True)
    assert condition(some, ConditionType.ROLLOUT_READY).status is Status.TRUE
    none = condition(plan(replicas=2, pool={"refusal": refusal}), ConditionType.ROLLOUT_READY)
    assert (none.status, none.reason) == (Status.FALSE, reason)


def test_a_cluster_without_claims_is_told() -> None:
    found = condition(plan(replicas=1, site=Site(claims_served=False)), ConditionType.ROLLOUT_READY)
    assert (found.status, found.reason) == (Status.FALSE, Reason.NO_DRA)
    assert "spec.rollout.selector" in found.message


def test_status_counts_the_pods() -> None:
    views = [pod(0), pod(1, template="old"), starting(2)]
    decision = plan(*views, replicas=3)
    snapshot = make_snapshot(*views, job=make_job(rollout=pool_spec(3)))
    status = job_status(snapshot, decision, previous={}, gateway_url=None, now="2026-01-01T00:00:00Z")
    selector = "tlt.dev/job=demo,tlt.dev/component=rollout"
    assert status["pool"] == {"replicas": 3, "ready": 2, "updated": 2, "selector": selector}
    assert "pool" in significant(status), "progress is worth a write at once"


def test_what_kubernetes_says_of_pods_and_set_is_read() -> None:
    owner = {"uid": "set-uid", "controller": True}
    body = {
        "metadata": {
            "name": "demo-rollout-12",
            "namespace": "default",
            "uid": "u",
            "labels": {"apps.kubernetes.io/pod-index": "12"},
            "annotations": {"tlt.dev/template": "new"},
            "ownerReferences": [owner],
        },
        "status": {"containerStatuses": [{"started": True, "ready": False}]},
    }
    found = parse_pod(body)
    assert (found.ordinal, found.started, found.ready, found.controller) == (12, True, False, "set-uid")
    template = {"metadata": {"annotations": {"tlt.dev/template": "new"}}}
    made = {"metadata": {"uid": "s", "generation": 3}, "spec": {"replicas": 2, "template": template}}
    assert parse_pool_set(made) == PoolSet(uid="s", replicas=2, template="new", generation=3, settled=False)
    assert parse_pool_set({**made, "status": {"observedGeneration": 3}}).settled
