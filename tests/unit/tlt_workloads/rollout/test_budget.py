"""The budget of a policy version goes to its long sequences, whenever they end."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlt_workloads.rollout.budget import OPEN_SHARE, StepBudget

# Tokens of 128 answers of SmolLM2-135M-Instruct at temperature 1, cut at 768: two steps of 64.
STEPS: list[list[int]] = json.loads((Path(__file__).parent / "answer_lengths.json").read_text())


def play(budget: StepBudget, lengths: list[int]) -> list[int]:
    """One step as an engine has it: all begin at once, shorter ones end earlier; what was kept."""
    kept = []
    for number, length in enumerate(ordered := sorted(lengths)):
        if budget.keeps(length, running=[min(item, length) for item in ordered[number + 1 :]]):
            kept.append(length)
    return kept


def first_come(rows: int, lengths: list[int]) -> list[int]:
    kept: list[int] = []
    for length in sorted(lengths):
        if sum(kept) + length <= rows:
            kept.append(length)
    return kept


def test_everything_is_kept_while_there_is_room() -> None:
    budget = StepBudget(sum(STEPS[0]))
    assert play(budget, STEPS[0]) == sorted(STEPS[0])
    assert budget.is_used_up


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_longest_of_a_real_step_are_kept(share: float) -> None:
    before, now = STEPS
    rows = int(share * sum(now))
    kept = play(StepBudget(rows, before=before), now)
    assert 0.8 * rows < sum(kept) <= rows
    long = sorted(now)[-len(now) // 4]  # the shortest of the longest quarter
    assert tokens_of(kept, at_least=long) > 0.8 * (1 - OPEN_SHARE) * rows
    assert tokens_of(first_come(rows, now), at_least=long) < 0.5 * tokens_of(kept, at_least=long)


def tokens_of(lengths: list[int], *, at_least: int) -> int:
    return sum(length for length in lengths if length >= at_least)


def test_short_ones_that_end_first_have_a_part_of_it_at_once() -> None:
    before, now = STEPS
    budget = StepBudget(sum(now) // 4, before=before)
    assert budget.keeps(min(now), running=[1] * 127)


def test_without_a_step_before_it_looks_at_what_runs() -> None:
    budget = StepBudget(1000)
    assert budget.keeps(200, running=[800])
    assert not budget.keeps(200, running=[800]), "the longer one wants the rest"
    assert budget.keeps(800, running=[])
    assert budget.is_used_up


def test_longer_answers_than_ever_are_not_refused_for_those_of_the_last_step() -> None:
    budget = StepBudget(1000, before=[300, 300])
    assert budget.keeps(900, running=[])


@given(
    rows=st.integers(1, 5000),
    before=st.lists(st.integers(1, 500), max_size=40),
    lengths=st.lists(st.integers(1, 500), max_size=40),
    seed=st.integers(),
)
def test_it_never_holds_more_than_it_may(rows: int, before: list[int], lengths: list[int], seed: int) -> None:
    random.Random(seed).shuffle(lengths)
    budget = StepBudget(rows, before=before)
    kept = [length for index, length in enumerate(lengths) if budget.keeps(length, running=lengths[index + 1 :])]
    assert sum(kept) == budget.used <= rows
    assert budget.finished == lengths
