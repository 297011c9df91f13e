"""What makes training worth a window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.snapshots import busy, holds, idle, make_job, make_revision, make_snapshot, make_trainer
from tlt_operator.api.names import ConditionType, Reason, RevisionPhase
from tlt_operator.api.revision import Revision
from tlt_operator.plan.acceptance import ENOUGH_DRAFTS, AcceptanceMemory, ByLength, find_fall, follow_acceptance
from tlt_operator.plan.actions import CreateTrainer, GrantLease
from tlt_operator.plan.conditions import Status
from tlt_operator.plan.decision import Memory, decide
from tlt_operator.plan.lending import LeaseTerms
from tlt_operator.plan.snapshot import RolloutView
from tlt_operator.plan.triggers import Need, assess_need
from tlt_workloads.contract import AcceptanceCounters, LengthCounters

ACTIVE = make_revision(1, RevisionPhase.ACTIVE, last_policy_version=1)
STEP = ENOUGH_DRAFTS


class Engine:
    """A pod that counts what its drafter guesses, and the operator's memory of it."""

    def __init__(self) -> None:
        self.drafts = self.accepted = 0
        self.long = LengthCounters(draft_length=5, drafts=0, accepted_tokens=0)
        self.version = 1
        self.boot = "boot"
        self.memory = AcceptanceMemory()

    def look(self, active: Revision | None = ACTIVE) -> None:
        self.memory = follow_acceptance(self.memory, make_snapshot(self.view()), active)

    def view(self) -> RolloutView:
        short = LengthCounters(draft_length=3, drafts=self.drafts, accepted_tokens=self.accepted)
        counters = AcceptanceCounters(
            drafts=self.drafts + self.long.drafts,
            accepted_tokens=self.accepted + self.long.accepted_tokens,
            by_length=(short, self.long) if self.long.drafts else (),
        )
        return busy("a", **holds(1), boot=self.boot, policy_version=self.version, acceptance=counters)

    def generate(self, drafts: int, *, length: float) -> None:
        self.drafts += drafts
        self.accepted += round(drafts * (length - 1))
        self.look()

    def update_policy(self) -> None:
        self.version += 1
        self.look()

    def step(self, *, length: float, drafts: int = STEP) -> None:
        self.generate(drafts // 2, length=length)
        self.generate(drafts - drafts // 2, length=length)
        self.update_policy()

    def fall(self) -> float | None:
        found = find_fall(self.memory)
        return found.share if found is not None else None


def drafts_of(counts: ByLength | None) -> int:
    return sum(item.drafts for item in (counts or {}).values())


def test_shorter_drafts_are_no_fall() -> None:
    """An engine that chooses its lengths drafts long ones in one step and short ones in another."""
    engine = Engine()
    engine.update_policy()
    for long, short in ((9, 1), (9, 1), (1, 9)):
        drafts = engine.long.drafts + long * STEP
        engine.long = LengthCounters(draft_length=5, drafts=drafts, accepted_tokens=2 * drafts)
        engine.step(length=1.5, drafts=short * STEP)
    assert engine.fall() is None
    engine.step(length=1.2, drafts=9 * STEP)
    assert engine.fall() == pytest.approx(0.2, abs=0.01)


def test_fall_is_seen_between_whole_steps() -> None:
    engine = Engine()
    engine.step(length=1.2)  # the step in which the revision came in: only a part of it counts, so none
    engine.step(length=2.0)
    assert engine.fall() is None
    engine.generate(STEP, length=1.5)
    assert engine.fall() is None, "the step is not over"
    engine.update_policy()
    assert engine.fall() == pytest.approx(0.25)
    engine.step(length=2.0)
    assert engine.fall() is None


def test_small_steps_are_counted_together() -> None:
    engine = Engine()
    engine.step(length=2.0)
    engine.step(length=2.0)
    for _ in range(9):
        engine.step(length=1.5, drafts=STEP // 10)
    assert engine.fall() is None
    engine.step(length=1.5, drafts=STEP // 10)
    assert engine.fall() == pytest.approx(0.25)


def test_reboot_and_another_revision_begin_anew() -> None:
    engine = Engine()
    engine.step(length=2.0)
    engine.step(length=2.0)
    engine.boot, engine.drafts, engine.accepted = "next", 0, 0
    engine.look()
    engine.step(length=2.0)
    assert engine.fall() is None
    assert drafts_of(engine.memory.latest) == STEP
    engine.look(make_revision(2, RevisionPhase.ACTIVE))
    assert engine.memory.baseline is None


@given(st.lists(st.tuples(st.integers(0, 3 * STEP), st.floats(1.9, 2.1)), min_size=3, max_size=12))
def test_fall_that_chance_explains_is_none(steps: list[tuple[int, float]]) -> None:
    """With three draft tokens the mean of a step of 2,000 drafts is uncertain by 0.03 at most."""
    engine = Engine()
    for drafts, length in steps:
        engine.step(length=length, drafts=drafts)
    fall = find_fall(engine.memory)
    assert fall is None or fall.before - fall.now > 0.05


@given(
    st.lists(st.tuples(st.integers(0, STEP), st.integers(0, STEP), st.booleans(), st.booleans()), max_size=20),
)
def test_nothing_is_counted_twice_or_out_of_nothing(moves: list[tuple[int, int, bool, bool]]) -> None:
    engine, counted = Engine(), 0
    engine.look()
    for drafts, accepted, update, reboot in moves:
        if reboot:
            engine.boot, engine.drafts, engine.accepted = engine.boot + "'", 0, 0
            engine.look()
        engine.drafts += drafts
        engine.accepted += accepted
        counted += drafts
        engine.look()
        if update:
            engine.update_policy()
        memory = engine.memory
        parts = [memory.running, memory.latest]
        assert sum(drafts_of(part) for part in parts) <= counted
        assert memory.latest is None or drafts_of(memory.latest) >= ENOUGH_DRAFTS


def need(*views: RolloutView, tokens: int, active: Revision | None = ACTIVE, engine: Engine | None = None) -> Need:
    return assess_need(
        make_snapshot(*views),  # minNewTokens is 100
        active=active,
        acceptance=engine.memory if engine is not None else AcceptanceMemory(),
        available_tokens=tokens,
    )


def test_new_tokens_are_enough() -> None:
    assert need(busy("a"), tokens=100, active=None) == Need(
        due=True,
        reason=Reason.ENOUGH_TOKENS,
        message="100 captured tokens wait, spec.training.trigger.minNewTokens is 100",
    )
    assert not need(busy("a"), tokens=99, active=None).due


def test_drafter_that_lags_behind_the_policy_needs_less_data() -> None:
    near, far = busy("a", policy_version=5), busy("a", policy_version=6)
    assert not need(near, tokens=10).due
    found = need(far, tokens=10)
    assert (found.due, found.reason) == (True, Reason.POLICY_LAG)
    assert "demo-r1" in found.message
    assert "spec.training.trigger.maxPolicyLag" in found.message
    little = need(far, tokens=9)
    assert (little.due, little.reason) == (False, Reason.NOT_ENOUGH_TOKENS)
    assert "demo-r1" in little.message
    assert "needs 10" in little.message


def test_drafter_that_guesses_worse_needs_less_data() -> None:
    engine = Engine()
    for length in (2.0, 2.0, 1.5):
        engine.step(length=length)
    found = need(busy("a"), tokens=10, engine=engine)
    assert (found.due, found.reason) == (True, Reason.ACCEPTANCE_DROPPED)
    assert "from 2.00 to 1.50, by 25%" in found.message
    assert "spec.training.trigger.acceptanceDrop is 5%" in found.message


def test_lag_lends_and_is_named_in_the_conditions() -> None:
    snapshot = make_snapshot(
        busy("a", **holds(1), policy_version=9),
        idle("b", **holds(1), policy_version=9, idle_seconds=1e4),
        make_trainer("b", available=50),
        job=make_job(training={"trigger": {"minNewTokens": 500}}),
        revisions=(ACTIVE,),
    )
    decision = decide(snapshot, Memory(), terms=LeaseTerms())
    assert [item.rollout_uid for item in decision.actions if isinstance(item, GrantLease)] == ["b-uid"]
    data = next(item for item in decision.conditions if item.type is ConditionType.DATA_READY)
    assert (data.status, data.reason) == (Status.TRUE, Reason.POLICY_LAG)


def test_trainer_is_started_for_a_drafter_that_lags() -> None:
    old = {"busy_seconds": 1e4, **holds(1), "policy_version": 9}
    snapshot = make_snapshot(idle("a", **old), make_trainer("b", available=50), revisions=(ACTIVE,))
    decision = decide(snapshot, Memory(), terms=LeaseTerms())
    assert [item.rollout_uid for item in decision.actions if isinstance(item, CreateTrainer)] == ["a-uid"]
