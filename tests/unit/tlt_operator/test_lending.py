"""Which devices are lent and which are asked back."""

from __future__ import annotations

import dataclasses

import pytest

from tests.support.snapshots import (
    NOW,
    busy,
    idle,
    lent,
    make_job,
    make_lease,
    make_pod,
    make_rollout,
    make_snapshot,
    make_state,
    make_trainer,
    make_trainer_pod,
)
from tlt_operator.api.claim import Claim
from tlt_operator.api.names import Reason
from tlt_operator.api.pod import DeviceClaim
from tlt_operator.placement.strategy import Site
from tlt_operator.plan.acceptance import AcceptanceMemory
from tlt_operator.plan.actions import GrantLease, RevokeLease
from tlt_operator.plan.generation import observe_generation
from tlt_operator.plan.lending import Knowledge, LeaseTerms, Lending, decide_leases
from tlt_operator.plan.patience import learn_patience
from tlt_operator.plan.recalls import decide_recalls
from tlt_operator.plan.shares import Wish
from tlt_operator.plan.snapshot import Fault, GatewayView, Snapshot, TrainerView
from tlt_operator.plan.triggers import assess_need
from tlt_operator.plan.windows import OpenWindow, WindowHistory, WindowPhase
from tlt_operator.plan.worker import WorkerState, classify, classify_all
from tlt_workloads.contract import (
    EndedLease,
    GatewayState,
    LeasePhase,
    MemoryMode,
    RevokeReason,
    RolloutState,
    TrainerPhase,
    WindowReport,
)


def decide(
    snapshot: Snapshot,
    *,
    tokens: int = 1000,
    history: WindowHistory | None = None,
    account: Wish | None = None,
    limit: int = 0,
) -> Lending:
    workers = classify_all(snapshot)
    known = Knowledge(
        workers=workers,
        generation=observe_generation(snapshot, workers),
        history=history or WindowHistory(),
        patience=learn_patience({}, snapshot),
        need=assess_need(snapshot, active=None, acceptance=AcceptanceMemory(), available_tokens=tokens),
        account=account or Wish(job="default/demo"),
        terms=LeaseTerms(ttl=10.0, window=600.0, limit=limit, teams=True),
    )
    return decide_leases(snapshot, known)


def grants(lending: Lending) -> tuple[GrantLease, ...]:
    return lending.grants


def revokes(snapshot: Snapshot) -> tuple[RevokeLease, ...]:
    workers = classify_all(snapshot)
    return decide_recalls(snapshot, workers, observe_generation(snapshot, workers), before={}).actions


def gateway(*, queued: int = 0, outstanding: int = 0, remaining: float | None = None, age: float = 0.0) -> GatewayView:
    state = GatewayState(
        seq=1,
        boot="g",
        queued=queued,
        outstanding=outstanding,
        batch_size=0,
        completed=0,
        backends=(),
        requests=0,
        retried_requests=0,
        failed_requests=0,
        policy_version=1,
        remaining=remaining,
    )
    return GatewayView(state=state, age=age)


def test_idle_pod_is_lent_to_its_own_trainer_while_another_generates() -> None:
    lending = decide(make_snapshot(busy("a"), idle("b"), make_trainer("a"), make_trainer("b")))
    (grant,) = grants(lending)
    assert grant.rollout_uid == "b-uid"
    assert grant.request.holder == make_trainer("b").pod.holder
    assert grant.request.memory is MemoryMode.RESERVE
    assert lending.reason is Reason.LEASE_HELD
    assert "b" in lending.message


@pytest.mark.parametrize(
    ("snapshot", "reason"),
    [
        (make_snapshot(busy("a"), busy("b")), Reason.NO_IDLE_POD),
        (make_snapshot(idle("a"), idle("b"), make_trainer("a")), Reason.OUT_OF_SCOPE),
        (make_snapshot(busy("a"), idle("b")), Reason.TRAINER_STARTING),
        (make_snapshot(busy("a"), idle("b"), make_trainer("b", phase=TrainerPhase.STARTING)), Reason.TRAINER_STARTING),
        (make_snapshot(busy("a"), idle("b"), make_trainer("b"), job=make_job(suspend=True)), Reason.SUSPENDED),
        (make_snapshot(busy("a"), idle("b"), make_trainer("b"), job=make_job(deleting=True)), Reason.DELETING),
    ],
    ids=["all busy", "tail over", "no trainer", "trainer cold", "suspended", "deleting"],
)
def test_nothing_is_lent_and_the_reason_is_named(snapshot: Snapshot, reason: Reason) -> None:
    lending = decide(snapshot)
    assert grants(lending) == ()
    assert lending.reason is reason


@pytest.mark.parametrize(
    "trainer",
    [
        make_trainer("b", fault=Fault.UNREACHABLE),
        make_trainer("b", age=31.0),
        make_trainer("b", pod=make_trainer_pod("b", deleting=True)),
    ],
    ids=["unreachable", "stale", "going away"],
)
def test_trainer_that_cannot_be_asked_or_goes_away_gets_no_device(trainer: TrainerView) -> None:
    lending = decide(make_snapshot(busy("a"), idle("b"), trainer))
    assert lending.grants == ()
    assert lending.reason is Reason.TRAINER_STARTING


def test_too_little_data_is_named_with_the_field() -> None:
    lending = decide(make_snapshot(busy("a"), idle("b"), make_trainer("b")), tokens=99)
    assert grants(lending) == ()
    assert lending.reason is Reason.WAITING_FOR_DATA
    assert "spec.training.trigger.minNewTokens" in lending.message


def test_any_idle_lends_in_the_learners_phase() -> None:
    job = make_job(idle={"scope": "AnyIdle"})
    assert len(grants(decide(make_snapshot(idle("a"), make_trainer("a"), job=job)))) == 1


def test_work_that_the_gateway_waits_for_is_a_tail() -> None:
    snapshot = make_snapshot(idle("a"), make_trainer("a"), gateway=gateway(outstanding=3))
    assert len(grants(decide(snapshot))) == 1
    stale = make_snapshot(idle("a"), make_trainer("a"), gateway=gateway(outstanding=3, age=1e6))
    assert decide(stale).reason is Reason.OUT_OF_SCOPE


def test_pod_is_not_lent_while_the_gateway_has_requests_to_give() -> None:
    snapshot = make_snapshot(busy("b"), idle("a"), make_trainer("a"), gateway=gateway(queued=2, outstanding=3))
    assert grants(decide(snapshot)) == ()


@pytest.mark.parametrize("lengths", [(1.0, 2.0, 3.0), (0.5, 0.5, 4.9)])
def test_short_rest_of_the_window_is_not_worth_it(lengths: tuple[float, ...]) -> None:
    history = WindowHistory(
        open={"b-uid": OpenWindow(started=1000.0, phase=WindowPhase.TAIL)}, closed={WindowPhase.TAIL: lengths}
    )
    lending = decide(make_snapshot(busy("a"), idle("b"), make_trainer("b")), history=history)
    assert lending.reason is Reason.WINDOW_TOO_SHORT


def test_too_few_windows_say_nothing() -> None:
    history = WindowHistory(
        open={"b-uid": OpenWindow(started=1000.0, phase=WindowPhase.TAIL)}, closed={WindowPhase.TAIL: (0.1, 0.1)}
    )
    assert grants(decide(make_snapshot(busy("a"), idle("b"), make_trainer("b")), history=history))


def past(*lengths: float, phase: WindowPhase = WindowPhase.TAIL, started: float = 1000.0) -> WindowHistory:
    return WindowHistory(open={"b-uid": OpenWindow(started=started, phase=phase)}, closed={phase: lengths})


@pytest.mark.parametrize(
    ("remaining", "age", "lent"),
    [(5.0, 0.0, True), (4.9, 0.0, False), (7.0, 2.1, False), (60.0, 2.1, True), (0.0, 25.0, False)],
)
def test_tail_lasts_as_long_as_the_gateway_expects(remaining: float, age: float, lent: bool) -> None:
    """Whatever the past windows say: they know nothing of this step."""
    view = gateway(outstanding=1, remaining=remaining, age=age)
    snapshot = make_snapshot(busy("a"), idle("b"), make_trainer("b"), gateway=view)
    for history in (WindowHistory(), past(0.1, 0.1, 0.1), past(99.0, 99.0, 99.0)):
        lending = decide(snapshot, history=history)
        assert bool(lending.grants) == lent
        if not lent:
            assert lending.reason is Reason.WINDOW_TOO_SHORT
            assert "gateway" in lending.message


def test_gateway_that_knows_nothing_leaves_it_to_the_past_windows() -> None:
    for view in (gateway(outstanding=1), gateway(outstanding=1, remaining=60.0, age=31.0), None):
        snapshot = make_snapshot(busy("a"), idle("b"), make_trainer("b"), gateway=view)
        lending = decide(snapshot, history=past(1.0, 1.0, 1.0))
        assert lending.reason is Reason.WINDOW_TOO_SHORT
        assert "past windows" in lending.message
        assert decide(snapshot, history=past(9.0, 9.0, 9.0)).grants


def test_any_idle_window_outlasts_the_tail() -> None:
    job = make_job(idle={"scope": "AnyIdle"})
    view = gateway(outstanding=1, remaining=2.0)
    snapshot = make_snapshot(busy("a"), idle("b"), make_trainer("b"), gateway=view, job=job)
    assert decide(snapshot, history=past(30.0, 30.0, 30.0)).grants, "into the learner's phase"
    assert decide(snapshot, history=past(1.0, 1.0, 1.0)).reason is Reason.WINDOW_TOO_SHORT
    longer = make_snapshot(
        busy("a"), idle("b"), make_trainer("b"), gateway=gateway(outstanding=1, remaining=20.0), job=job
    )
    assert decide(longer, history=past(1.0, 1.0, 1.0)).grants, "at least to the end of the tail"


def test_windows_are_compared_with_those_of_the_same_phase() -> None:
    job = make_job(idle={"scope": "AnyIdle"})
    snapshot = make_snapshot(idle("b"), make_trainer("b"), job=job)
    short_tails = WindowHistory(
        open={"b-uid": OpenWindow(started=1000.0, phase=WindowPhase.LEARNER)},
        closed={WindowPhase.TAIL: (1.0, 1.0, 1.0), WindowPhase.LEARNER: (30.0, 30.0, 30.0)},
    )
    assert decide(snapshot, history=short_tails).grants


def test_without_a_lighthouse_one_lease_at_a_time_and_the_longest_idle_first() -> None:
    snapshot = make_snapshot(busy("a"), idle("b"), idle("c", idle_for=9.0), make_trainer("b"), make_trainer("c"))
    (grant,) = grants(decide(snapshot))
    assert grant.rollout_uid == "c-uid"
    held = make_snapshot(busy("a"), idle("b"), lent("c"), make_trainer("b"), make_trainer("c"))
    assert grants(decide(held)) == ()
    assert "demo-lighthouse" in decide(held).message
    alone = make_job(training={"maxTrainers": 1, "trigger": {"minNewTokens": 100}})
    assert "lighthouse" not in decide(dataclasses.replace(held, job=alone)).message


def test_trainers_that_find_each_other_get_as_many_devices_as_they_may_be() -> None:
    views = [busy("a"), *(idle(name) for name in "bcd"), *(make_trainer(name) for name in "bcd")]
    together = make_snapshot(*views, lighthouse_ready=True)
    assert len(grants(decide(together))) == 3
    two = make_job(training={"maxTrainers": 2, "trigger": {"minNewTokens": 100}})
    assert len(grants(decide(dataclasses.replace(together, job=two)))) == 2


@pytest.mark.parametrize(
    ("neighbour", "lent"),
    [
        (make_state(idle=True), True),
        (make_state(running=1), False),
        (make_state(), False),
        (make_state(idle=True, lease=make_lease("trainer/1")), False),
        (None, False),
    ],
    ids=["idle", "busy", "draining", "lent", "silent"],
)
def test_device_that_pods_share_is_lent_only_when_all_of_them_are_idle(
    neighbour: RolloutState | None, lent: bool
) -> None:
    claim = (DeviceClaim(name="gpu", claim="one-gpu"),)
    pods = [
        make_rollout("b", make_state(idle=True, idle_for=9.0), pod=make_pod("b", claims=claim)),
        make_rollout("c", neighbour, pod=make_pod("c", claims=claim)),
    ]
    assert bool(decide(make_snapshot(busy("a"), *pods, make_trainer("b"))).grants) == lent


def test_grant_under_way_counts_as_held() -> None:
    from dataclasses import replace

    snapshot = make_snapshot(
        busy("a"), replace(idle("b"), granting=True), idle("c"), make_trainer("b"), make_trainer("c")
    )
    lending = decide(snapshot)
    assert grants(lending) == ()
    assert lending.lent == 1


def test_device_that_was_given_back_unasked_rests_for_a_moment() -> None:
    last = EndedLease(id="x", holder="t", duration=1, hand_back=0, reason=None, ended_ago=1.0)
    resting = make_snapshot(busy("a"), idle("b", last_lease=last), make_trainer("b"))
    assert decide(resting).reason is Reason.GIVEN_BACK
    window = WindowReport(
        lease_id="x",
        started_ago=9,
        seconds=1,
        lease_to_first_step=None,
        steps=0,
        tokens=0,
        loss_first=None,
        loss_last=None,
        stop_reason="Error: out of memory",
        stop_seconds=0,
    )
    longer = EndedLease(id="x", holder="t", duration=1, hand_back=0, reason=None, ended_ago=20.0)
    failing = make_snapshot(busy("a"), idle("b", last_lease=longer), make_trainer("b", last_window=window))
    assert decide(failing).reason is Reason.GIVEN_BACK
    fine = make_snapshot(busy("a"), idle("b", last_lease=longer), make_trainer("b"))
    assert len(grants(decide(fine))) == 1


def test_lease_is_asked_back_when_the_tail_is_over_for_certain() -> None:
    (revoke,) = revokes(make_snapshot(idle("a"), lent("b"), make_trainer("b")))
    assert revoke.rollout_uid == "b-uid"
    assert revoke.reason is RevokeReason.WINDOW_END
    settling = make_rollout("a", make_state())
    assert classify(settling, now=NOW, stale_after=30) is WorkerState.DRAINING
    assert revokes(make_snapshot(settling, lent("b"), make_trainer("b"))) == ()
    silent = make_rollout("a", make_state(), fault=Fault.UNREACHABLE)
    assert revokes(make_snapshot(silent, lent("b"), make_trainer("b"))) == ()


@pytest.mark.parametrize("job", [make_job(suspend=True), make_job(deleting=True)], ids=["suspend", "delete"])
def test_lease_is_asked_back_when_the_job_lends_no_more(job: object) -> None:
    (revoke,) = revokes(make_snapshot(busy("a"), lent("b"), make_trainer("b"), job=job))
    assert revoke.reason is RevokeReason.OPERATOR


def test_lease_that_is_being_handed_back_is_not_asked_for_again() -> None:
    revoking = make_rollout("b", make_state(lease=make_lease("t", phase=LeasePhase.REVOKING)))
    assert revokes(make_snapshot(idle("a"), revoking, job=make_job(suspend=True))) == ()


def test_warm_trainer_gets_no_lease_on_a_claim_that_is_being_deleted() -> None:
    snapshot = make_snapshot(busy("a"), idle("b"), make_trainer("b"))
    assert decide(snapshot).grants
    site = Site(claims={"b-gpu": Claim(name="b-gpu", uid="claim-uid", deleting=True)})
    assert not decide(dataclasses.replace(snapshot, site=site)).grants
