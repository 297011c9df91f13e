"""Passes of the learned drafter that nobody needs yet.

The drafter keeps keys and values of its own for every token, so that vLLM runs it in each step even when it drafts
nothing.  TLT's engine leaves it out and computes everything anew when speculation begins; here the inputs of the passes
left out are kept and computed together, many tokens in one pass: before the first draft that needs them, or when many
have come together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch

MOST_ROWS = 2048  # kept on the device
MOST_STEPS = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class OwedStep:
    """Inputs of one pass.  Rows lie request after request, in the order of `requests`."""

    requests: tuple[str, ...]
    counts: tuple[int, ...]  # rows of each request that stand for accepted tokens
    tokens: torch.Tensor  # [sum(counts)]
    positions: torch.Tensor  # [sum(counts)], absolute
    hidden: torch.Tensor  # [sum(counts), features]
    slots: torch.Tensor  # [sum(counts)], where keys and values go
    following: torch.Tensor  # [requests], the token after each request's last row

    @property
    def rows(self) -> int:
        """Tokens."""
        return sum(self.counts)


class Backlog:
    """What the drafter owes.

    Args:
        propose: the drafter's own `propose`.
        largest: tokens that one pass can take.
    """

    def __init__(self, propose: Callable[..., Any], *, largest: int) -> None:
        self._propose = propose
        self._limit = min(MOST_ROWS, largest)
        self._steps: list[OwedStep] = []
        self._rows = 0

    def owe(self, step: OwedStep) -> None:
        """Keeps a pass for later."""
        self._steps.append(step)
        self._rows += step.rows

    def forget(self, requests: Set[str]) -> None:
        """What these owed is of no use any more: they are over, or will be computed from their beginning."""
        for index, step in enumerate(self._steps):
            if not requests.isdisjoint(step.requests):
                names = tuple("" if name in requests else name for name in step.requests)
                self._steps[index] = replace(step, requests=names)

    def is_full(self, rows: int) -> bool:
        """Whether so many more must not be owed."""
        return len(self._steps) >= MOST_STEPS or self._rows + rows > self._limit

    def settle(self, requests: Sequence[str], metadata: Any, sampling: Any) -> None:
        """Computes everything that is owed for these requests; what others owed is of no use any more.

        Args:
            requests: of the step at hand, in the order of its batch.
            metadata: vLLM's `CommonAttentionMetadata` of that step.
            sampling: its sampling metadata.
        """
        steps, self._steps, self._rows = self._steps, [], 0
        owed = _by_request(steps)
        rows = [index for index, name in enumerate(requests) if name in owed]
        if not rows:
            return
        names = [requests[index] for index in rows]
        device = metadata.seq_lens.device
        order = torch.tensor([row for name in names for row in owed[name].rows], device=device)
        ends = torch.tensor([owed[name].rows[-1] for name in names], device=device)
        starts = torch.tensor([0, *accumulate(len(owed[name].rows) for name in names)], dtype=torch.int32)
        positions = torch.cat([step.positions for step in steps])
        lengths = (positions[ends] + 1).to(metadata.seq_lens.dtype)
        following = torch.cat([step.following for step in steps])
        self._propose(
            num_speculative_tokens=0,
            target_token_ids=torch.cat([step.tokens for step in steps])[order],
            target_positions=positions[order],
            target_hidden_states=torch.cat([step.hidden for step in steps])[order],
            next_token_ids=following[torch.tensor([owed[name].following for name in names], device=device)],
            token_indices_to_sample=None,
            common_attn_metadata=replace(
                metadata,
                query_start_loc=starts.to(device),
                query_start_loc_cpu=starts,
                seq_lens=lengths,
                num_reqs=len(names),
                num_actual_tokens=len(order),
                max_query_len=int((starts[1:] - starts[:-1]).max()),
                block_table_tensor=metadata.block_table_tensor[torch.tensor(rows, device=device)],
                slot_mapping=torch.cat([step.slots for step in steps])[order],
                **dict.fromkeys(_OPTIONAL),
            ),
            sampling_metadata=sampling,
        )


@dataclass
class _Owed:
    rows: list[int]
    following: int  # index into the concatenated `following`


# Of the step at hand; each is optional for the attention of a drafter.
_OPTIONAL = (
    "logits_indices_padded",
    "num_logits_indices",
    "positions",
    "is_prefilling",
    "seq_lens_cpu_upper_bound",
    "req_idx",
)


def _by_request(steps: Sequence[OwedStep]) -> Mapping[str, _Owed]:
    """Indices of each request's rows in the steps' concatenated tensors."""
    owed: dict[str, _Owed] = {}
    offset = number = 0
    for step in steps:
        for name, (start, end) in zip(step.requests, pairwise(accumulate(step.counts, initial=offset)), strict=True):
            rows = list(range(start, end))
            if name in owed:
                owed[name].rows += rows
                owed[name].following = number
            else:
                owed[name] = _Owed(rows=rows, following=number)
            number += 1
        offset += step.rows
    return owed
