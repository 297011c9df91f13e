"""What a drafter owes is computed once, in order, for those who still need it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tlt_workloads.rollout.backlog import MOST_STEPS, Backlog, OwedStep


@dataclass
class Metadata:
    """The fields of vLLM's `CommonAttentionMetadata` that matter here."""

    query_start_loc: torch.Tensor
    query_start_loc_cpu: torch.Tensor
    seq_lens: torch.Tensor
    num_reqs: int
    num_actual_tokens: int
    max_query_len: int
    block_table_tensor: torch.Tensor
    slot_mapping: torch.Tensor
    logits_indices_padded: Any = None
    num_logits_indices: Any = None
    positions: Any = None
    is_prefilling: Any = None
    seq_lens_cpu_upper_bound: Any = None
    req_idx: Any = None


def of_batch(requests: int) -> Metadata:
    empty = torch.zeros(requests + 1, dtype=torch.int32)
    return Metadata(
        query_start_loc=empty,
        query_start_loc_cpu=empty,
        seq_lens=torch.zeros(requests, dtype=torch.int32),
        num_reqs=requests,
        num_actual_tokens=requests,
        max_query_len=1,
        block_table_tensor=torch.arange(requests).view(-1, 1),
        slot_mapping=torch.zeros(requests),
    )


def owed(**rows: list[int]) -> OwedStep:
    """A step with rows at these positions; tokens, slots and hidden states are made of them."""
    positions = torch.tensor([position for found in rows.values() for position in found])
    names = torch.tensor([ord(name) for name, found in rows.items() for _ in found])
    return OwedStep(
        requests=tuple(rows),
        counts=tuple(len(found) for found in rows.values()),
        tokens=names * 100 + positions,
        positions=positions,
        hidden=(names * 1000 + positions).float().view(-1, 1),
        slots=names * 10 + positions,
        following=torch.tensor([ord(name) * 100 + found[-1] + 1 for name, found in rows.items()]),
    )


class Drafter:
    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def propose(self, **inputs: Any) -> None:
        self.calls.append(inputs)


A, B = ord("a"), ord("b")


def test_rows_of_all_steps_come_together_request_by_request() -> None:
    drafter = Drafter()
    backlog = Backlog(drafter.propose, largest=100)
    backlog.owe(owed(a=[4], b=[7]))
    backlog.owe(owed(b=[8, 9], a=[5]))  # the batch was put in another order, b had an accepted draft
    backlog.settle(("b", "c", "a"), of_batch(3), None)
    [call] = drafter.calls
    assert call["num_speculative_tokens"] == 0
    assert call["target_positions"].tolist() == [7, 8, 9, 4, 5]
    assert call["target_token_ids"].tolist() == [B * 100 + 7, B * 100 + 8, B * 100 + 9, A * 100 + 4, A * 100 + 5]
    assert call["target_hidden_states"].flatten().tolist() == [B * 1000 + p for p in (7, 8, 9)] + [
        A * 1000 + p for p in (4, 5)
    ]
    assert call["next_token_ids"].tolist() == [B * 100 + 10, A * 100 + 6]
    metadata = call["common_attn_metadata"]
    assert metadata.query_start_loc.tolist() == [0, 3, 5]
    assert metadata.seq_lens.tolist() == [10, 6]
    assert (metadata.num_reqs, metadata.num_actual_tokens, metadata.max_query_len) == (2, 5, 3)
    assert metadata.block_table_tensor.flatten().tolist() == [0, 2]
    assert metadata.slot_mapping.tolist() == [B * 10 + 7, B * 10 + 8, B * 10 + 9, A * 10 + 4, A * 10 + 5]


def test_nothing_is_computed_twice_or_for_nobody() -> None:
    drafter = Drafter()
    backlog = Backlog(drafter.propose, largest=100)
    backlog.settle(("a",), of_batch(1), None)
    backlog.owe(owed(b=[7]))
    backlog.settle(("a",), of_batch(1), None)
    backlog.settle(("b",), of_batch(1), None)  # it was not there when the others paid
    assert drafter.calls == []


def test_what_is_forgotten_is_not_written_into_blocks_of_others() -> None:
    drafter = Drafter()
    backlog = Backlog(drafter.propose, largest=100)
    backlog.owe(owed(a=[4], b=[7]))
    backlog.forget({"b"})
    backlog.owe(owed(a=[5]))
    backlog.settle(("a", "b"), of_batch(2), None)
    [call] = drafter.calls
    assert call["target_positions"].tolist() == [4, 5]


def test_it_is_full_by_steps_and_by_rows() -> None:
    backlog = Backlog(lambda **_: None, largest=10)
    for position in range(8):
        assert not backlog.is_full(2)
        backlog.owe(owed(a=[position]))
    assert not backlog.is_full(2)
    assert backlog.is_full(3)
    roomy = Backlog(lambda **_: None, largest=10_000)
    for position in range(MOST_STEPS):
        assert not roomy.is_full(1)
        roomy.owe(owed(a=[position]))
    assert roomy.is_full(1)
