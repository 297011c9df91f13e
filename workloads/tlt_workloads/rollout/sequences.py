"""From the steps of an engine to whole sequences: rows by absolute position, tokens as they were really sampled.

A rejected draft leaves a row that the next step's row at the same position overwrites, so what remains belongs to the
sequence.  Rows that an older policy computed are left out: a sequence keeps the end that its last policy computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from tlt_workloads.rollout.capture import NewRequest, StepRows
from tlt_workloads.shards import CapturedSequence

_FIRST_ROWS = 256  # rows of a new buffer; it doubles when full


@dataclass(eq=False)
class OpenSequence:
    """A request that is still running."""

    request: NewRequest
    policy_version: int
    first_row: int
    generated: list[int] = field(default_factory=list)
    end: int = 0  # one past the last row written, rejected drafts included
    _rows: torch.Tensor | None = None

    @property
    def size(self) -> int:
        """Bytes of its buffer."""
        return 0 if self._rows is None else self._rows.numel() * self._rows.element_size()

    def continues_at(self, start: int) -> bool:
        """Whether a step at this position follows what is known: the next piece of a prompt, or the last token."""
        return start in (self.end, len(self.request.prompt_ids) + len(self.generated) - 1)

    def write(self, start: int, rows: torch.Tensor, *, policy_version: int) -> None:
        """Rows [count, layers, hidden] of the tokens from position `start` on."""
        if policy_version != self.policy_version or start < self.first_row:
            self.first_row = start
            self.policy_version = policy_version
        self.end = start + len(rows)
        buffer = self._grown(rows, self.end)
        buffer[start : self.end] = rows

    def close(self) -> CapturedSequence | None:
        """The finished sequence, None when not a single generated token was captured with its rows."""
        length, finished = final_length(self.request, self.generated)
        tokens = [*self.request.prompt_ids, *self.generated[: length - len(self.request.prompt_ids)]]
        end = min(self.end, length - 1)  # the last token was never fed back
        if self._rows is None or end <= max(self.first_row, len(self.request.prompt_ids) - 1):
            return None
        return CapturedSequence(
            token_ids=torch.tensor(tokens, dtype=torch.int32),
            hidden_states=self._rows[self.first_row : end].clone(),
            prompt_length=len(self.request.prompt_ids),
            policy_version=self.policy_version,
            finished=finished,
            first_row=self.first_row,
        )

    def _grown(self, like: torch.Tensor, end: int) -> torch.Tensor:
        if self._rows is None or end > len(self._rows):
            capacity = max(_FIRST_ROWS, end, 2 * (0 if self._rows is None else len(self._rows)))
            grown = torch.empty((capacity, *like.shape[1:]), dtype=like.dtype)
            if self._rows is not None:
                grown[: len(self._rows)] = self._rows
            self._rows = grown
        return self._rows


def final_length(request: NewRequest, generated: list[int]) -> tuple[int, bool]:
    """Where a sequence ends, prompt included, and whether it ended by itself.

    The last step may have accepted drafts beyond the end: a stop token or the request's cap cuts them off.
    """
    limit = len(generated) if request.max_tokens is None else min(len(generated), request.max_tokens)
    for index, token in enumerate(generated[:limit]):
        if token in request.stop_ids:
            return len(request.prompt_ids) + index + 1, True
    return len(request.prompt_ids) + limit, request.max_tokens is not None and limit == request.max_tokens


class SequenceTable:
    """All running requests that are captured."""

    def __init__(self) -> None:
        self._open: dict[str, OpenSequence] = {}

    @property
    def size(self) -> int:
        """Bytes of all buffers."""
        return sum(sequence.size for sequence in self._open.values())

    def add(self, step: StepRows, *, admit: frozenset[str]) -> int:
        """Takes a step; of its new requests only those in `admit` are captured.

        Returns:
            Rows lost because a step before this one is missing: a sequence with a hole has the wrong tokens.
        """
        offset = lost = 0
        for index, (name, count) in enumerate(zip(step.requests, step.counts, strict=True)):
            start = int(step.positions[offset])
            rows = step.rows[offset : offset + count]
            offset += count
            # A request that is first seen behind its prompt ran before the capture began; its tokens are not all known.
            if name in admit and start < len(step.new[name].prompt_ids):
                self._open[name] = OpenSequence(
                    request=step.new[name], policy_version=step.policy_version, first_row=start, end=start
                )
            sequence = self._open.get(name)
            if sequence is None:
                continue
            if name in step.resumed:
                del sequence.generated[step.resumed[name] :]
            elif not sequence.continues_at(start):
                lost += self.forget(name)
                continue
            sequence.write(start, rows, policy_version=step.policy_version)
            if not step.partial[index]:
                sequence.generated.extend(token for token in step.sampled[index].tolist() if token >= 0)
        return lost

    def close(self, name: str) -> CapturedSequence | None:
        """Ends a request; None when it was not captured."""
        sequence = self._open.pop(name, None)
        return None if sequence is None else sequence.close()

    def forget(self, name: str) -> int:
        """Drops a request; how many of its tokens were lost."""
        sequence = self._open.pop(name, None)
        return 0 if sequence is None else sequence.end - sequence.first_row
