"""Every sequence is one replica's, and what was trained is told exactly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tlt_workloads.trainer.team.split import (
    ENTRY_NUMBERS,
    LEDGER_ENTRIES,
    Share,
    ledger_entries,
    ledger_numbers,
    sequence_key,
)

KEYS = [
    sequence_key(f"hidden-states/pod-{pod}/{number:08d}-p1-t90.safetensors", index)
    for pod in range(2)
    for number in range(100)
    for index in range(2)
]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_sequence_has_one_owner(size: int) -> None:
    for key in KEYS:
        assert sum(Share(rank=rank, size=size).owns(key) for rank in range(size)) == 1


def test_replicas_have_about_as_much() -> None:
    owned = sum(Share(rank=0, size=2).owns(key) for key in KEYS)
    assert 0.4 < owned / len(KEYS) < 0.6


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 2**24 - 1)), max_size=20))
def test_a_ledger_survives_a_sum_in_float32(entries: list[tuple[int, int]]) -> None:
    numbers = torch.zeros(20 * ENTRY_NUMBERS)
    numbers[: len(entries) * ENTRY_NUMBERS] = torch.tensor(ledger_numbers(entries))
    summed = torch.zeros_like(numbers) + numbers + torch.zeros_like(numbers)
    assert [*ledger_entries(summed.tolist())] == entries


def test_there_is_room_for_the_pieces_of_a_large_batch() -> None:
    assert LEDGER_ENTRIES >= 8192 // 16
