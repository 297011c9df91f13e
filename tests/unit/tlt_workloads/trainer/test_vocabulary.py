"""Tokens that are worth drafting: what was said, and what might have been."""

from __future__ import annotations

import pytest
import torch

from tlt_workloads.drafter import draft_vocabulary
from tlt_workloads.shards import CapturedSequence
from tlt_workloads.trainer.stopping import StepAbandonedError
from tlt_workloads.trainer.vocabulary import ROWS, token_weights

CPU = torch.device("cpu")
WORDS, HIDDEN, PROMPT = 40, 40, 3
HEAD = torch.eye(WORDS, HIDDEN)


def answer(*said: int, thought_of: int | None = None, first_row: int = 0) -> CapturedSequence:
    """An answer whose policy was torn at each of its tokens between what it said and another word."""
    tokens = torch.tensor([WORDS - 1] * PROMPT + [*said], dtype=torch.int32)
    states = torch.zeros(len(tokens) - 1, 4, HIDDEN)
    for row in range(PROMPT - 1, len(states)):
        states[row, -1, int(tokens[row + 1])] = 20.0
        if thought_of is not None:
            states[row, -1, thought_of] = 20.0
    return CapturedSequence(
        tokens, states[first_row:], prompt_length=PROMPT, policy_version=1, finished=True, first_row=first_row
    )


def weigh(*answers: CapturedSequence) -> dict[int, float]:
    return token_weights(HEAD, answers, device=CPU, check=lambda: None)


def chosen(weights: dict[int, float], size: int) -> set[int]:
    vocabulary = draft_vocabulary(weights, draft_vocab_size=size, vocab_size=WORDS)
    return set(vocabulary.t2d.nonzero().flatten().tolist())


def test_a_word_that_was_thought_of_and_never_said_is_drafted() -> None:
    assert chosen(weigh(answer(20, 21, 22, thought_of=30)), 4) == {20, 21, 22, 30}


def test_what_was_said_counts_twice_what_was_as_likely() -> None:
    weights = weigh(answer(20, thought_of=30))
    assert weights[20] == pytest.approx(1.5)
    assert weights[30] == pytest.approx(0.5)


def test_the_prompt_does_not_count() -> None:
    assert weigh(answer(20, 21))[WORDS - 1] < 1e-6


def test_rows_that_a_prefix_cache_left_out_are_not_missed() -> None:
    weights = weigh(answer(20, 21, 22, thought_of=30, first_row=PROMPT + 1))
    assert weights[20] == pytest.approx(1.0)  # said; the row before it is not there
    assert weights[30] == pytest.approx(0.5)


def test_of_many_rows_a_few_stand_for_all() -> None:
    said = [20, 21] * ROWS * 2
    assert weigh(answer(*said, thought_of=30))[30] == pytest.approx(len(said) / 2, rel=0.01)


def test_without_answers_the_lowest_ids_are_drafted() -> None:
    assert chosen(weigh(), 4) == {0, 1, 2, 3}


def test_it_can_be_left_half_way() -> None:
    def check() -> None:
        raise StepAbandonedError

    with pytest.raises(StepAbandonedError):
        token_weights(HEAD, [answer(20)], device=CPU, check=check)
