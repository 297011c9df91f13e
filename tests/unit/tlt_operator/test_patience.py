"""Short gaps between requests never flap: what interruptions teach, and how it is forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.snapshots import busy, make_job, make_rollout, make_snapshot, make_state, make_trainer
from tlt_operator.api.names import ConditionType, Reason
from tlt_operator.plan.actions import GrantLease
from tlt_operator.plan.decision import Decision, Memory, decide
from tlt_operator.plan.lending import LeaseTerms
from tlt_operator.plan.patience import FIRST_SHARE, HALF_LIFE, LONGEST, Patience, learn_patience
from tlt_operator.plan.snapshot import RolloutView
from tlt_workloads.contract import EndedLease, LeasePhase, RevokeReason
from tlt_workloads.rollout.activity import ActivityClock
from tlt_workloads.rollout.lease import LeaseBook

LEAST = 5.0  # spec.idle.minWindow
FIRST = FIRST_SHARE * LEAST


def ended(
    number: int, *, duration: float, reason: RevokeReason | None = RevokeReason.REQUEST, ago: float = 0.0
) -> RolloutView:
    lease = EndedLease(id=f"lease-{number}", holder="t", duration=duration, hand_back=0.1, reason=reason, ended_ago=ago)
    return make_rollout("a", make_state(last_lease=lease))


def learn(before: dict[str, Patience], view: RolloutView, *, now: float) -> dict[str, Patience]:
    return learn_patience(before, make_snapshot(view, now=now))


def test_each_short_window_doubles_the_pause_and_a_long_one_halves_it() -> None:
    known: dict[str, Patience] = {}
    for number, pause in enumerate([2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 60.0]):
        known = learn(known, ended(number, duration=1.0), now=0.0)
        assert known["a-uid"].required(0.0) == pause
    known = learn(known, ended(99, duration=LEAST), now=0.0)
    assert known["a-uid"].required(0.0) == LONGEST / 2


def test_time_forgets() -> None:
    known = learn({}, ended(1, duration=1.0), now=0.0)
    assert known["a-uid"].required(HALF_LIFE) == FIRST / 2
    assert learn(known, ended(1, duration=1.0, ago=HALF_LIFE), now=HALF_LIFE) == known, "one lease counts once"


@pytest.mark.parametrize("reason", [None, *(reason for reason in RevokeReason if reason is not RevokeReason.REQUEST)])
def test_only_requests_teach_patience(reason: RevokeReason | None) -> None:
    assert learn({}, ended(1, duration=0.1, reason=reason), now=0.0)["a-uid"].required(0.0) == 0.0


def test_pod_that_falls_silent_is_not_forgotten_and_one_that_goes_is() -> None:
    known = learn({}, ended(1, duration=1.0), now=0.0)
    assert learn(known, make_rollout("a"), now=1.0) == known
    assert learn(known, make_rollout("b"), now=1.0) == {}


def test_reason_says_how_long_it_takes_still() -> None:
    lease = EndedLease(id="x", holder="t", duration=1.0, hand_back=0.1, reason=RevokeReason.REQUEST, ended_ago=1.0)
    resting = make_rollout("b", make_state(idle=True, idle_for=0.6, last_lease=lease))
    decision = decide(make_snapshot(busy("a"), resting, make_trainer("b")), Memory(), terms=LeaseTerms())
    found = next(item for item in decision.conditions if item.type is ConditionType.HARVESTING)
    assert found.reason is Reason.OFTEN_INTERRUPTED
    assert "1.9s" in found.message


class Pod:
    """One pod with the real lease book and activity clock, a trainer that obeys at once, and the operator's memory."""

    def __init__(self) -> None:
        self.now = 0.0
        self.activity = ActivityClock(started_at=0.0, idle_after=0.5)
        self.book = LeaseBook()
        self.memory = Memory()
        self.granted: list[tuple[float, float, float]] = []  # when, after which idleness, which was required

    def run(self, seconds: float, *, busy_now: bool, tick: float = 0.25) -> None:
        if busy_now:
            self.book.revoke(RevokeReason.REQUEST, now=self.now)
            self.activity.arrive(self.now)
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + tick)
            self.book.pass_time(now=self.now)
            holder = make_trainer("a").pod.holder
            self.book.heartbeat(holder, now=self.now)
            if self.book.current is not None and self.book.current.phase is LeasePhase.REVOKING:
                self.book.release(holder, now=self.now)
            self.decide()
        if busy_now:
            self.activity.depart(self.now)

    def decide(self) -> Decision:
        state = make_state(
            running=self.activity.in_flight,
            idle=self.activity.is_idle(self.now),
            idle_for=self.activity.idle_for(self.now),
            lease=self.book.view(now=self.now),
            last_lease=self.book.ended_view(now=self.now),
        )
        snapshot = make_snapshot(
            busy("other"),
            make_rollout("a", state),
            make_trainer("a"),
            now=self.now,
            job=make_job(idle={"minWindow": f"{LEAST}s"}),
        )
        decision = decide(snapshot, self.memory, terms=LeaseTerms())
        self.memory = decision.memory
        for action in decision.actions:
            if isinstance(action, GrantLease):
                known = self.memory.patience.get("a-uid")
                required = known.required(self.now) if known is not None else 0.0
                self.granted.append((self.now, state.idle_for, required))
                self.book.grant(action.request, id=str(self.now), now=self.now)
        return decision


@given(gap=st.floats(0.6, 2.2), work=st.floats(0.2, 3.0))
@settings(max_examples=10)
def test_alternation_that_is_faster_than_the_pause_is_not_lent(gap: float, work: float) -> None:
    """After the first lease that a request ended, gaps below the pause are left alone until time has forgotten it."""
    pod = Pod()
    pod.memory = Memory(patience={"a-uid": Patience(lease="", pause=FIRST, since=0.0)})
    while pod.memory.patience["a-uid"].required(pod.now + work + gap) > gap and pod.now < 60:
        pod.run(work, busy_now=True)
        pod.run(gap, busy_now=False)
    assert pod.now > 6, "several gaps were seen"
    assert pod.granted == []


@given(st.lists(st.tuples(st.floats(0.2, 12), st.floats(0.1, 3)), min_size=5, max_size=25))
@settings(max_examples=10)
def test_no_sequence_of_gaps_costs_more_leases_than_the_pauses_allow(cycles: list[tuple[float, float]]) -> None:
    pod = Pod()
    for gap, work in cycles:
        pod.run(gap, busy_now=False)
        pod.run(work, busy_now=True)
    for _, idle_for, required in pod.granted:
        assert idle_for >= required
        assert required <= LONGEST


def test_constant_flapping_ends_after_the_first_window_and_is_tried_again_seldom() -> None:
    pod = Pod()
    while pod.now < 300:
        pod.run(1.0, busy_now=True)
        pod.run(1.5, busy_now=False)
    assert 1 <= len(pod.granted) <= 4, "in 120 gaps"


def test_pod_with_long_gaps_is_lent_in_each_of_them() -> None:
    pod = Pod()
    for _ in range(10):
        pod.run(5.0, busy_now=True)
        pod.run(20.0, busy_now=False)
    assert len(pod.granted) == 10
    assert all(idle_for < 1.0 for _, idle_for, _ in pod.granted)
