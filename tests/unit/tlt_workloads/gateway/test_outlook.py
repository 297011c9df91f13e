"""What the gateway expects of the work in flight."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlt_workloads.gateway.outlook import ENOUGH, PIECES, STEPS, Outlook


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Steps:
    """Runs steps whose pieces all begin at once."""

    def __init__(self) -> None:
        self.clock, self.outlook = Clock(), Outlook()
        self.in_flight: list[object] = []  # a piece that nobody holds would end

    def run(self, durations: Sequence[float], *, until: float = float("inf"), end: bool = True) -> None:
        """Lets all pieces end that take no longer than `until`, then ends the step or leaves the others in flight."""
        began = self.clock.now
        pieces = [(duration, self.outlook.work(clock=self.clock)) for duration in sorted(durations)]
        self.in_flight += pieces
        for _, piece in pieces:
            piece.__enter__()
        for duration, piece in pieces:
            if duration <= until:
                self.clock.now = began + duration
                piece.__exit__(None, None, None)
        if until < float("inf"):
            self.clock.now = began + until
        if end:
            self.outlook.end_step()

    def remaining(self) -> float | None:
        return self.outlook.remaining(now=self.clock.now)


def test_piece_is_expected_to_need_what_longer_ones_needed() -> None:
    steps = Steps()
    steps.run([1, 2, 3, 4, 5, 10, 20, 30])
    steps.run([100], until=6, end=False)
    assert steps.remaining() == 20 - 6
    steps.clock.now += 15
    assert steps.remaining() == 30 - 21


def test_nothing_is_promised_without_work_or_knowledge_or_beyond_it() -> None:
    steps = Steps()
    assert steps.remaining() is None
    steps.run([5.0] * (ENOUGH - 1))
    steps.run([9.0], until=1, end=False)
    assert steps.remaining() is None
    known = Steps()
    known.run([5.0] * ENOUGH)
    assert known.remaining() is None
    known.run([9.0], until=5.5, end=False)
    assert known.remaining() is None


def test_short_pieces_of_a_step_say_nothing_before_it_is_over() -> None:
    steps = Steps()
    steps.run([10.0] * ENOUGH)
    steps.run([1.0] * 100 + [10.0], until=2, end=False)
    assert steps.remaining() == pytest.approx(8.0)


def test_last_of_several_pieces_counts() -> None:
    steps = Steps()
    steps.run([4.0] * ENOUGH)
    steps.run([9.0], until=3, end=False)
    steps.run([9.0], until=0, end=False)
    assert steps.remaining() == 4.0


def test_piece_that_fails_is_forgotten() -> None:
    steps = Steps()
    with pytest.raises(ValueError, match="lost"), steps.outlook.work(clock=steps.clock):
        raise ValueError("lost")
    steps.run([5.0] * (ENOUGH - 1))
    steps.run([9.0], until=1, end=False)
    assert steps.remaining() is None


def test_old_steps_are_forgotten_and_a_large_one_outweighs_no_other() -> None:
    steps = Steps()
    steps.run([1.0] * (10 * PIECES))
    steps.run([50.0] * PIECES)
    steps.run([99.0], until=0.5, end=False)
    assert steps.remaining() == pytest.approx(0.5)
    later = Steps()
    later.run([1.0] * PIECES)
    for _ in range(STEPS):
        later.run([50.0] * ENOUGH)
    later.run([99.0], until=0.0, end=False)
    assert later.remaining() == 50.0


@given(
    st.lists(st.lists(st.floats(0.001, 1e4), min_size=1, max_size=40), max_size=12),
    st.floats(0, 1e4),
)
def test_promise_is_within_what_was_seen(past: list[list[float]], age: float) -> None:
    steps = Steps()
    for durations in past:
        steps.run(durations)
    steps.run([2e4], until=age, end=False)
    kept = [duration for durations in past[-STEPS:] for duration in durations]
    remaining, tolerance = steps.remaining(), 1e-6
    if remaining is None:
        assert len(kept) < ENOUGH or max(kept) <= age + tolerance
    else:
        assert -tolerance <= remaining <= max(kept) - age + tolerance
