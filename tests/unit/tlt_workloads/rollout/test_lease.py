"""The lease as a state machine: whatever happens in whatever order, these stay true."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tlt_workloads.contract import LeasePhase, LeaseRequest, RevokeReason
from tlt_workloads.rollout.lease import LeaseBook, LeaseHeldError, NotHolderError

HOLDERS = ("trainer-a", "trainer-b")


def request(holder: str = "trainer-a", *, ttl: float = 10.0, window: float = 0.0) -> LeaseRequest:
    return LeaseRequest(holder=holder, ttl=ttl, window=window)


def test_a_second_holder_is_refused() -> None:
    book = LeaseBook()
    book.grant(request("trainer-a"), id="1", now=0)
    with pytest.raises(LeaseHeldError, match="trainer-a"):
        book.grant(request("trainer-b"), id="2", now=1)


def test_asking_again_answers_the_same_lease_and_counts_as_a_heartbeat() -> None:
    book = LeaseBook()
    first = book.grant(request(ttl=10), id="1", now=0)
    again = book.grant(request(ttl=10), id="2", now=8)
    assert again.id == first.id
    assert again.expires_at == 18


def test_a_lease_that_is_asked_back_is_not_granted_again_to_its_holder() -> None:
    book = LeaseBook()
    book.grant(request(), id="1", now=0)
    book.revoke(RevokeReason.REQUEST, now=1)
    with pytest.raises(LeaseHeldError, match="Revoking"):
        book.grant(request(), id="2", now=2)


def test_the_first_reason_stays_and_the_hand_back_is_timed() -> None:
    book = LeaseBook()
    book.grant(request(), id="1", now=0)
    assert book.revoke(RevokeReason.REQUEST, now=5)
    assert not book.revoke(RevokeReason.OPERATOR, now=6)
    book.release("trainer-a", now=5.25)
    ended = book.ended_view(now=7.25)
    assert ended is not None
    assert (ended.reason, ended.hand_back, ended.duration, ended.ended_ago) == (RevokeReason.REQUEST, 0.25, 5.25, 2.0)


def test_a_silent_holder_loses_the_lease() -> None:
    book = LeaseBook()
    book.grant(request(ttl=10), id="1", now=0)
    assert book.heartbeat("trainer-a", now=6)
    assert not book.pass_time(now=15.9)
    assert book.pass_time(now=16)
    assert book.current is None
    assert book.last is not None
    assert book.last.reason is RevokeReason.EXPIRED


def test_a_holder_that_falls_silent_while_revoking_keeps_the_reason() -> None:
    book = LeaseBook()
    book.grant(request(ttl=10), id="1", now=0)
    book.revoke(RevokeReason.REQUEST, now=1)
    book.pass_time(now=10)
    assert book.last is not None
    assert book.last.reason is RevokeReason.REQUEST


def test_a_window_that_is_over_asks_the_lease_back() -> None:
    book = LeaseBook()
    book.grant(request(ttl=10, window=4), id="1", now=0)
    assert book.next_deadline() == 4
    assert book.pass_time(now=4)
    view = book.view(now=4.5)
    assert view is not None
    assert (view.phase, view.reason, view.revoking_for) == (LeasePhase.REVOKING, RevokeReason.WINDOW_END, 0.5)


def test_only_the_holder_gives_it_back_and_twice_is_fine() -> None:
    book = LeaseBook()
    book.grant(request("trainer-a"), id="1", now=0)
    with pytest.raises(NotHolderError, match="trainer-b"):
        book.release("trainer-b", now=1)
    book.release("trainer-a", now=1)
    book.release("trainer-a", now=2)
    assert book.last is not None
    assert book.last.ended_at == 1


class LeaseLife(RuleBasedStateMachine):
    """Random callers and a clock that only moves forward."""

    def __init__(self) -> None:
        super().__init__()
        self.book = LeaseBook()
        self.now = 0.0
        self.number = 0
        self.granted: set[str] = set()

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.book.pass_time(now=self.now)

    @rule(holder=st.sampled_from(HOLDERS), ttl=st.floats(0.1, 20), window=st.floats(0, 20))
    def ask(self, holder: str, ttl: float, window: float) -> None:
        before = self.book.current
        self.number += 1
        try:
            lease = self.book.grant(request(holder, ttl=ttl, window=window), id=str(self.number), now=self.now)
        except LeaseHeldError:
            assert before is not None
            assert self.book.current == before
            return
        assert lease.holder == holder
        assert lease.phase is LeasePhase.GRANTED
        self.granted.add(lease.id)

    @rule(holder=st.sampled_from(HOLDERS))
    def beat(self, holder: str) -> None:
        held = self.book.current
        assert self.book.heartbeat(holder, now=self.now) == (held is not None and held.holder == holder)

    @rule(reason=st.sampled_from(RevokeReason))
    def revoke(self, reason: RevokeReason) -> None:
        held = self.book.current
        changed = self.book.revoke(reason, now=self.now)
        assert changed == (held is not None and held.phase is LeasePhase.GRANTED)
        assert held is None or self.book.current is not None  # asking back never ends a lease by itself

    @precondition(lambda self: self.book.current is not None)
    @rule()
    def give_back(self) -> None:
        assert self.book.current is not None
        self.book.release(self.book.current.holder, now=self.now)
        assert self.book.current is None

    @invariant()
    def a_deadline_exists_exactly_while_a_lease_does(self) -> None:
        deadline = self.book.next_deadline()
        assert (deadline is None) == (self.book.current is None)
        assert deadline is None or deadline >= 0

    @invariant()
    def after_time_was_booked_nothing_is_overdue(self) -> None:
        self.book.pass_time(now=self.now)
        lease = self.book.current
        assert lease is None or lease.expires_at > self.now
        assert not self.book.pass_time(now=self.now)

    @invariant()
    def the_last_lease_makes_sense(self) -> None:
        ended = self.book.ended_view(now=self.now)
        if ended is not None:
            assert ended.id in self.granted
            assert 0 <= ended.hand_back <= ended.duration
            assert ended.ended_ago >= 0


TestLeaseLife = LeaseLife.TestCase
