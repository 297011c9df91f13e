"""The arithmetic of the trainer's benchmark: operations of a step, and both ways of batching."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch warns of itself while speculators is imported
    import speculators.models.eagle3  # noqa: F401

from bench.trainer.card import SHAPES, operations
from bench.trainer.speed import Pace, packed, padded
from tlt_workloads.shards import CapturedSequence

LENGTHS = (300, 40, 131)


def answer(tokens: int) -> CapturedSequence:
    return CapturedSequence(
        token_ids=torch.arange(tokens, dtype=torch.int32),
        hidden_states=torch.ones(tokens - 1, 4, 8, dtype=torch.bfloat16),
        prompt_length=10,
        policy_version=0,
        finished=True,
    )


def test_packed_and_padded_batches_train_the_same_answers() -> None:
    answers = [answer(length) for length in LENGTHS]
    short, wide = packed(answers), padded(answers)
    assert short.trained_tokens == sum(length - 2 - 9 for length in LENGTHS)
    assert wide.tokens == len(LENGTHS) * (max(LENGTHS) - 2)
    assert short.tokens == sum(length - 2 for length in LENGTHS) + 2 * 3, "pieces overlap by two rows"


def test_operations_grow_with_rows_and_with_what_learns() -> None:
    tiny = SHAPES["tiny"]
    assert operations(tiny, rows=200) == 2 * operations(tiny, rows=100)
    wider = replace(tiny, intermediate_size=tiny.intermediate_size + 1)
    more = operations(wider, rows=1) - operations(tiny, rows=1)
    assert more == 3 * 6 * 3 * tiny.hidden_size, "three draft steps, three matrices of the MLP, six operations a weight"


def test_a_step_of_qwen3_8b_is_what_its_sizes_say() -> None:
    hidden, heads, wide = 4096, 4096, 8192
    layer = wide * (heads + 2 * 1024) + hidden * heads + 3 * hidden * 12288
    wanted = 6 * 3 * hidden * hidden + 3 * (6 * layer + 4 * 32000 * hidden) + 2 * 32000 * hidden
    assert operations(SHAPES["qwen3-8b"], rows=1) == wanted


def test_a_rate_is_tokens_per_second() -> None:
    assert Pace(tokens=100, seconds=4.0, steps=2).rate == pytest.approx(25.0)
