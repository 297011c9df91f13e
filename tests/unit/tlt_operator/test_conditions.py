"""Conditions: each trouble gets its reason and a sentence that names field, object and fix."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.support.snapshots import (
    busy,
    holds,
    idle,
    lent,
    make_job,
    make_pod,
    make_revision,
    make_rollout,
    make_snapshot,
    make_state,
    make_trainer,
    make_trainer_pod,
)
from tlt_operator.api.names import ConditionType, Phase, Reason, RevisionPhase
from tlt_operator.api.reasons import EXPLANATIONS, QUESTIONS, Obstacle
from tlt_operator.placement.strategy import Site
from tlt_operator.plan.conditions import Condition, Status
from tlt_operator.plan.decision import Decision, Memory, decide
from tlt_operator.plan.lending import LeaseTerms
from tlt_operator.plan.snapshot import Fault, Snapshot
from tlt_operator.plan.status import job_status
from tlt_workloads.contract import TrainerPhase


def decision(snapshot: Snapshot) -> Decision:
    return decide(snapshot, Memory(), terms=LeaseTerms())


def condition(snapshot: Snapshot, kind: ConditionType) -> Condition:
    return next(item for item in decision(snapshot).conditions if item.type is kind)


NO_MODEL = Obstacle(reason=Reason.TRAINER_FAILED, message="no model")
NO_CLAIM = make_rollout("a", make_state(), pod=make_pod("a", claims=()))


def test_pods_that_cannot_be_lent_hold_up_nobody_else() -> None:
    mixed = make_snapshot(NO_CLAIM, idle("b"), busy("c"))
    assert condition(mixed, ConditionType.HARVESTING).reason is Reason.WAITING_FOR_DATA
    assert condition(mixed, ConditionType.DEGRADED).reason is Reason.NO_CLAIM
    both = make_snapshot(NO_CLAIM, make_rollout("b", make_state(), pod=make_pod("b", claims=())))
    found = condition(both, ConditionType.HARVESTING)
    assert found.reason is Reason.NO_CLAIM
    assert "(2 of 2 pods cannot be lent)" in found.message


def test_trainer_that_finds_no_room_is_not_said_to_have_failed() -> None:
    full = Obstacle(reason=Reason.QUOTA_EXCEEDED, message="exceeded quota: team")
    found = condition(make_snapshot(busy("a"), trainer_failures={"a-uid": full}), ConditionType.DEGRADED)
    assert found.reason is Reason.QUOTA_EXCEEDED
    assert found.message.startswith("There is no trainer on the device of a")


def silent(fault: Fault | None = None, **fields: Any) -> Any:
    return make_rollout("a", fault=fault, silent_for=40.0, **fields)


@pytest.mark.parametrize(
    ("snapshot", "reason", "words"),
    [
        (make_snapshot(), Reason.NO_PODS_MATCH, ("spec.rollout.selector", "app=rollout", "default")),
        (make_snapshot(silent(Fault.ROUTE_MISSING)), Reason.PLUGIN_MISSING, ("Pod a", "/tlt/v1/state", "8000")),
        (make_snapshot(silent(Fault.TOKEN_REFUSED)), Reason.TOKEN_REFUSED, ("Pod a", "demo-tlt-control")),
        (
            make_snapshot(silent(Fault.INCOMPATIBLE, fault_message="seq: required")),
            Reason.INCOMPATIBLE,
            ("pod a", "seq: required"),
        ),
        (make_snapshot(silent(Fault.UNREACHABLE)), Reason.PODS_UNREACHABLE, ("Pod a", "8000", "spec.port")),
        (
            make_snapshot(silent(pod=make_pod("a", ready=False, phase="Pending", trouble="no device"))),
            Reason.PODS_NOT_READY,
            ("Pod a", "no device"),
        ),
    ],
)
def test_rollout_that_cannot_be_watched(snapshot: Snapshot, reason: Reason, words: tuple[str, ...]) -> None:
    found = condition(snapshot, ConditionType.ROLLOUT_READY)
    assert (found.status, found.reason) == (Status.FALSE, reason)
    assert all(word in found.message for word in words), found.message


@pytest.mark.parametrize(
    ("snapshot", "reason", "words"),
    [
        (make_snapshot(NO_CLAIM), Reason.NO_CLAIM, ("pod a", "resources.claims")),
        (make_snapshot(busy("a"), site=Site(claims_served=False)), Reason.NO_DRA, ("resource.k8s.io",)),
        (make_snapshot(busy("a"), silent(Fault.ROUTE_MISSING)), Reason.PLUGIN_MISSING, ("Pod a",)),
        (
            make_snapshot(busy("a"), trainer_failures={"a-uid": NO_MODEL}),
            Reason.TRAINER_FAILED,
            ("a", "no model"),
        ),
        (
            make_snapshot(busy("a"), make_trainer("a", phase=TrainerPhase.FAILED, message="model /x does not exist")),
            Reason.TRAINER_FAILED,
            ("trainer-of-a", "model /x does not exist"),
        ),
        (
            make_snapshot(
                busy("a"),
                dataclasses.replace(
                    make_trainer("a", pod=make_trainer_pod("a", trouble="ErrImagePull: nope")), state=None
                ),
            ),
            Reason.TRAINER_FAILED,
            ("trainer-of-a", "ErrImagePull"),
        ),
        (make_snapshot(busy("a"), child_failure="TLT_OPERATOR_IMAGE: set it"), Reason.CHILD_NOT_APPLIED, ("set it",)),
        (
            make_snapshot(
                dataclasses.replace(busy("a"), refusals={"demo-r1": "bad shape"}),
                revisions=(make_revision(1, RevisionPhase.ACTIVE),),
            ),
            Reason.REVISION_REFUSED,
            ("Pod a", "demo-r1", "bad shape"),
        ),
    ],
)
def test_what_needs_a_person_is_degraded(snapshot: Snapshot, reason: Reason, words: tuple[str, ...]) -> None:
    found = condition(snapshot, ConditionType.DEGRADED)
    assert (found.status, found.reason) == (Status.TRUE, reason)
    assert all(word in found.message for word in words), found.message
    assert decision(snapshot).phase is Phase.DEGRADED
    assert decision(snapshot).message == found.message


def test_pod_that_is_silent_for_a_moment_needs_nobody() -> None:
    blink = make_rollout("a", make_state(), fault=Fault.UNREACHABLE, silent_for=3.0)
    assert condition(make_snapshot(busy("b"), blink), ConditionType.DEGRADED).status is Status.FALSE


@pytest.mark.parametrize(
    ("snapshot", "phase"),
    [
        (make_snapshot(), Phase.PENDING),
        (make_snapshot(busy("a")), Phase.READY),
        (make_snapshot(busy("b"), lent("a")), Phase.HARVESTING),
        (make_snapshot(busy("b"), lent("a"), job=make_job(suspend=True)), Phase.SUSPENDED),
        (make_snapshot(NO_CLAIM), Phase.DEGRADED),
    ],
)
def test_phase_follows_from_the_conditions(snapshot: Snapshot, phase: Phase) -> None:
    assert decision(snapshot).phase is phase


def test_data_ready() -> None:
    few = make_snapshot(busy("a"), make_trainer("a", available=1))
    assert condition(few, ConditionType.DATA_READY).reason is Reason.NOT_ENOUGH_TOKENS
    enough = make_snapshot(busy("a"), make_trainer("a", available=100))
    assert condition(enough, ConditionType.DATA_READY).status is Status.TRUE
    off = make_snapshot(busy("a"), job=make_job(capture={"sampleRate": 0}))
    assert "spec.capture.sampleRate" in condition(off, ConditionType.DATA_READY).message
    assert condition(make_snapshot(silent()), ConditionType.DATA_READY).status is Status.UNKNOWN


def test_drafter_ready() -> None:
    plain = make_snapshot(busy("a", drafter_method=None))
    assert condition(plain, ConditionType.DRAFTER_READY).reason is Reason.SPECULATION_OFF
    assert condition(make_snapshot(busy("a")), ConditionType.DRAFTER_READY).reason is Reason.NO_REVISION
    loading = make_snapshot(busy("a"), revisions=(make_revision(1, RevisionPhase.ACTIVE),))
    assert condition(loading, ConditionType.DRAFTER_READY).reason is Reason.REVISION_LOADING
    tried = make_snapshot(busy("a"), busy("b"), revisions=(make_revision(1),))
    assert condition(tried, ConditionType.DRAFTER_READY).reason is Reason.REVISION_ON_TRIAL
    pinned = make_snapshot(busy("a"), job=make_job(release={"pin": "demo-r9"}))
    assert condition(pinned, ConditionType.DRAFTER_READY).reason is Reason.PIN_NOT_FOUND
    both = make_snapshot(
        busy("a", **holds(1)),
        busy("b", **holds(1)),
        revisions=(make_revision(1, RevisionPhase.ACTIVE), make_revision(2)),
    )
    found = condition(both, ConditionType.DRAFTER_READY)
    assert found.reason is Reason.REVISION_ACTIVE
    assert "demo-r2 is on trial" in found.message
    back = make_snapshot(busy("a"), revisions=(make_revision(1, RevisionPhase.ROLLED_BACK),))
    assert condition(back, ConditionType.DRAFTER_READY).reason is Reason.REVISION_REFUSED


def test_transition_time_moves_with_the_status_only() -> None:
    def status(snapshot: Snapshot, previous: dict[str, Any], now: str) -> dict[str, Any]:
        return job_status(snapshot, decision(snapshot), previous=previous, gateway_url=None, now=now)

    first = status(make_snapshot(busy("b"), lent("a")), {}, "2026-01-01T00:00:01Z")
    same = status(make_snapshot(busy("b"), lent("a")), first, "2026-01-01T00:00:02Z")
    other = status(make_snapshot(busy("b"), idle("a")), same, "2026-01-01T00:00:03Z")
    times = [
        next(item for item in found["conditions"] if item["type"] == "Harvesting")["lastTransitionTime"]
        for found in (first, same, other)
    ]
    assert times == ["2026-01-01T00:00:01Z", "2026-01-01T00:00:01Z", "2026-01-01T00:00:03Z"]


def test_reasons_are_words_that_the_schema_takes() -> None:
    assert all(reason.value.isalpha() and reason.value[0].isupper() for reason in Reason)


def test_every_reason_is_explained_in_one_sentence() -> None:
    assert set(EXPLANATIONS) == set(QUESTIONS) == set(ConditionType)
    assert {reason for reasons in EXPLANATIONS.values() for reason in reasons} == set(Reason)
    for reasons in EXPLANATIONS.values():
        assert all(meaning.endswith(".") and meaning.count(". ") == 0 for meaning in reasons.values())
