"""What a step takes is the mean that tokens are compared with, at one pace."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlt_workloads.contract import DraftSource
from tlt_workloads.rollout.plans import OFF, DraftPlan
from tlt_workloads.rollout.step_times import LARGEST_BATCH, StepTimes

NGRAM = DraftPlan(2, DraftSource.NGRAM)


def new_times() -> StepTimes:
    return StepTimes()


def noted(times: StepTimes, size: int, plan: DraftPlan, *seconds: float) -> StepTimes:
    for item in seconds:
        times.note(size, plan, item)
    return times


def test_the_few_steps_in_which_ngrams_are_found_count_as_long_as_they_take() -> None:
    times = noted(new_times(), 8, NGRAM, *([1.0] * 7 + [1.8] * 3) * 20)
    assert times.seconds(8, NGRAM) == pytest.approx(0.7 * 1.0 + 0.3 * 1.8, rel=0.05)


def test_a_stall_of_the_machine_counts_for_little() -> None:
    times = noted(new_times(), 8, OFF, *[1.0] * 40, 500.0, *[1.0] * 10)
    assert times.seconds(8, OFF) == pytest.approx(1.0, rel=0.03)


def test_times_are_told_at_the_usual_pace() -> None:
    times = noted(new_times(), 4, OFF, *[1.0] * 60)
    noted(times, 4, OFF, *[1.5] * 60)
    assert times.pace == pytest.approx(1.5, rel=0.05)
    assert times.seconds(4, OFF) == pytest.approx(1.0, rel=0.05)
    noted(times, 2, OFF, *[1.2] * 20)
    assert times.seconds(2, OFF) == pytest.approx(1.2 / 1.5, rel=0.05), "what is timed while it is slow as well"


def test_a_steady_machine_has_one_pace_however_long_it_runs() -> None:
    dice, times = random.Random(1), new_times()
    for number in range(4000):
        size = (2, 8)[number // 50 % 2]
        times.note(size, OFF, size * dice.lognormvariate(0.0, 0.08))
    found = {size: times.measured(size)[OFF] * times.pace for size in (2, 8)}
    assert found[8] / found[2] == pytest.approx(4.0, rel=0.02)
    assert found[2] == pytest.approx(2.0, rel=0.06)


def test_rows_tell_what_was_never_timed() -> None:
    """Two requests with one drafted token each have four rows, as four requests have."""
    times = noted(noted(noted(new_times(), 8, OFF, 1.6), 4, OFF, 1.2), 2, OFF, 1.0)
    assert times.expected(2, DraftPlan(1)) == pytest.approx(1.2, rel=0.04)
    assert times.expected(2, DraftPlan(2)) == pytest.approx(1.4, rel=0.04)  # six rows
    assert times.expected(8, DraftPlan(1)) is None, "nothing had more rows, and nothing was drafted for"


def test_ngrams_take_less_than_all_the_rows_that_they_may_have() -> None:
    times = noted(noted(noted(new_times(), 8, OFF, 2.0), 4, OFF, 1.5), 2, OFF, 1.0)
    noted(times, 4, DraftPlan(1, DraftSource.NGRAM), 1.6)  # eight rows would take 2.0
    assert times.expected(2, DraftPlan(1, DraftSource.NGRAM)) == pytest.approx(1.5 * 0.8, rel=0.04)


@given(st.integers(1, 2 * LARGEST_BATCH))
def test_every_batch_size_has_a_name_that_is_its_own(batch: int) -> None:
    times = new_times()
    size = times.size(batch)
    assert times.size(size) == size
    assert size >= min(batch, LARGEST_BATCH)
