"""What the benchmark of adaptive speculation asks for is what the policy says by itself."""

from __future__ import annotations

import itertools
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch warns of itself while speculators is imported
    from bench import speculation

from bench.rl_task import GENERATIONS
from bench.speculation import ROLLOUT_REQUESTS, SURVEYED, TAIL, Bench


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """After a survey in which question 7 was answered in 70 to 73 tokens, and so on."""
    prompts = [str(number) for number in range(SURVEYED)]
    extra = {prompt: itertools.count() for prompt in prompts}
    monkeypatch.setattr(speculation.rl_task, "prompts", lambda count, seed: prompts[:count])
    lesson: Any = SimpleNamespace(server=None, answer=lambda prompt: 10 * int(prompt) + next(extra[prompt]))
    made = Bench(lesson, seed=1)
    made.survey()
    assert {next(count) for count in extra.values()} == {GENERATIONS}
    return made


def test_no_answer_is_to_go_on_beyond_the_shortest_one_that_was_seen(bench: Bench) -> None:
    for turn in range(SURVEYED):
        drawn = bench.draw(turn=turn)
        assert len({request.prompt for request in drawn}) == ROLLOUT_REQUESTS
        assert all(request.tokens <= max(1, 10 * int(request.prompt)) for request in drawn)


def test_every_rollout_has_a_tail_of_its_own(bench: Bench) -> None:
    tails = [bench.draw(turn=turn) for turn in range(3)]
    for drawn in tails:
        ends = sorted(request.tokens for request in drawn)
        assert ends[-TAIL] >= 2 * ends[-TAIL - 1]
    assert len({request.prompt for drawn in tails for request in drawn[:TAIL]}) == 3 * TAIL
