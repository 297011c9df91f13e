"""Leases that are asked back: repeated until they have ended, and at last at the cost of the trainer pod."""

from __future__ import annotations

import dataclasses
from typing import Any

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
from tlt_operator.plan.actions import DeleteTrainer, GrantLease, RevokeLease
from tlt_operator.plan.decision import Decision, Memory, decide
from tlt_operator.plan.lending import LeaseTerms
from tlt_operator.plan.snapshot import Fault, Limits, RolloutView
from tlt_workloads.contract import LeasePhase, RevokeReason, TrainerPhase

SUSPENDED = make_job(suspend=True)
OVERDUE = SUSPENDED.spec.reclaim.grace + Limits().stuck_after


def look(*views: Any, memory: Memory | None = None, **fields: Any) -> Decision:
    return decide(make_snapshot(*views, **fields), memory or Memory(), terms=LeaseTerms())


def revokes(decision: Decision) -> list[RevokeLease]:
    return [item for item in decision.actions if isinstance(item, RevokeLease)]


def deleted(decision: Decision) -> list[str]:
    return [item.trainer_uid for item in decision.actions if isinstance(item, DeleteTrainer)]


def silent(view: RolloutView, *, age: float = 1.0) -> RolloutView:
    return dataclasses.replace(view, fault=Fault.UNREACHABLE, heard_at=NOW - age)


def test_lease_of_a_stranger_is_asked_back_and_its_device_lent_to_nobody_else() -> None:
    decision = look(busy("a"), lent("b", holder="stranger/1"), idle("c"), make_trainer("b"), make_trainer("c"))
    (revoke,) = revokes(decision)
    assert revoke.rollout_uid == "b-uid"
    assert revoke.reason is RevokeReason.OPERATOR
    assert "stranger/1" in revoke.why
    assert not any(isinstance(item, GrantLease) for item in decision.actions)


@pytest.mark.parametrize("job", [SUSPENDED, make_job(deleting=True)], ids=["suspended", "deleted"])
def test_silent_pod_is_asked_too_when_the_job_lends_no_more(job: Any) -> None:
    assert revokes(look(busy("a"), silent(lent("b")), make_trainer("b"), job=job))
    assert not revokes(look(idle("a"), silent(lent("b")), make_trainer("b"))), "out of scope now, right when heard"
    assert not revokes(look(busy("a"), silent(lent("b", holder="stranger/1"))))


def test_device_that_cannot_be_asked_back_costs_the_trainer_pod() -> None:
    views = (busy("a"), silent(lent("b"), age=40.0), make_trainer("b"))
    decision = look(*views, job=SUSPENDED, now=1000.0)
    assert deleted(decision) == []
    decision = look(*views, job=SUSPENDED, now=1000.0 + OVERDUE, memory=decision.memory)
    assert deleted(decision) == []
    assert revokes(decision), "asked again"
    decision = look(*views, job=SUSPENDED, now=1000.1 + OVERDUE, memory=decision.memory)
    assert deleted(decision) == ["trainer-of-b-uid"]


def test_patience_begins_anew_when_the_lease_is_no_longer_asked_back() -> None:
    views = (busy("a"), lent("b"), make_trainer("b"))
    decision = look(*views, job=SUSPENDED, now=1000.0)
    decision = look(*views, now=1005.0, memory=decision.memory)
    decision = look(*views, job=SUSPENDED, now=1010.0, memory=decision.memory)
    assert deleted(decision) == []


def test_what_the_pod_says_counts_after_a_restart_of_the_operator() -> None:
    lease = make_lease(make_trainer_pod("b").holder, phase=LeasePhase.REVOKING, revoking_for=OVERDUE + 0.1)
    assert deleted(look(make_rollout("b", make_state(lease=lease)), make_trainer("b"))) == ["trainer-of-b-uid"]


def test_pod_that_goes_away_is_not_asked() -> None:
    going = make_rollout("b", lent("b").state, pod=make_pod("b", deleting=True))
    assert not revokes(look(going, make_trainer("b"), job=SUSPENDED))


def test_silent_pod_counts_as_lent_until_its_lease_must_have_ended() -> None:
    """The trainer there may still train: a second lease would train a second copy of the drafter."""
    others = (busy("a"), idle("c"), make_trainer("c"), make_trainer("b"))
    longest = 600.0 + 2.0 + 10.0 - 1.0  # window, grace, ttl; the lease was one second old
    assert not any(isinstance(item, GrantLease) for item in look(silent(lent("b"), age=longest), *others).actions)
    later = look(silent(lent("b"), age=longest + 1), *others)
    assert [item.rollout_uid for item in later.actions if isinstance(item, GrantLease)] == ["c-uid"]


def test_trainer_that_works_on_without_a_lease_is_deleted() -> None:
    """Else it would count as a lease for ever, and the job would never lend again."""
    views = (busy("a"), idle("b"), make_trainer("b", phase=TrainerPhase.TRAINING), idle("c"), make_trainer("c"))
    decision = look(*views, now=1000.0)
    decision = look(*views, now=1000.0 + OVERDUE, memory=decision.memory)
    assert deleted(decision) == []
    decision = look(*views, now=1000.1 + OVERDUE, memory=decision.memory)
    assert deleted(decision) == ["trainer-of-b-uid"]


def test_trainer_that_still_writes_its_checkpoint_is_left_alone_and_its_device_is_not_lent() -> None:
    views = (busy("a"), idle("b"), make_trainer("b", phase=TrainerPhase.STOPPING))
    decision = look(*views, now=1000.0)
    decision = look(*views, now=1001.0 + OVERDUE, memory=decision.memory)
    assert deleted(decision) == []
    assert not any(isinstance(item, GrantLease) for item in decision.actions)


def test_trainer_that_is_ahead_of_the_news_of_its_lease_is_left_alone() -> None:
    ahead = (busy("a"), idle("b"), make_trainer("b", phase=TrainerPhase.TRAINING))
    decision = look(*ahead, now=1000.0)
    decision = look(busy("a"), lent("b"), ahead[-1], now=1001.0, memory=decision.memory)
    decision = look(*ahead, now=1002.0 + OVERDUE, memory=decision.memory)
    assert deleted(decision) == []


def test_trainer_that_says_that_it_works_counts_as_a_lease() -> None:
    """After a restart of the operator nothing may be known of a pod but what its trainer tells."""
    working = make_trainer("b", phase=TrainerPhase.TRAINING)
    decision = look(busy("a"), make_rollout("b"), idle("c"), working, make_trainer("c"))
    assert not any(isinstance(item, GrantLease) for item in decision.actions)
