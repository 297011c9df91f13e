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
    generated: list[int] = field(default_factory=list)
    first_row: int = 0
    last_start: int = 0  # where the last step began
    end: int = 0  # one past the last row written, rejected drafts included
    _rows: torch.Tensor | None = None  # from position `request.first_row` on

    @property
    def size(self) -> int:
        """Bytes of its buffer."""
        return 0 if self._rows is None else self._rows.numel() * self._rows.element_size()

    @property
    def rows(self) -> int:
        """Rows so far."""
        return self.end - self.first_row

    def continues_at(self, start: int) -> bool:
        """Whether a step at this position follows what is known: the next piece of a prompt, or the last token."""
        if self._rows is None and start < len(self.request.prompt_ids):
            return True  # what lies before it was cached, or is not wanted
        last_token = len(self.request.prompt_ids) + len(self.generated) - 1
        return start == self.end or (bool(self.generated) and start == last_token)

    def write(self, start: int, rows: torch.Tensor, *, policy_version: int) -> None:
        """Rows [count, layers, hidden] of the tokens from position `start` on."""
        early = max(0, self.request.first_row - start)
        start, rows = start + early, rows[early:]
        if not len(rows):
            return
        if self._rows is None or policy_version != self.policy_version or start < self.first_row:
            self.first_row = start
            self.policy_version = policy_version
        self.last_start, self.end = start, start + len(rows)
        base = self.request.first_row
        buffer = self._grown(rows, self.end - base)
        buffer[start - base : self.end - base] = rows

    def cut(self) -> None:
        """A step is missing: only what was there before the last one is certain.

        The missing step may be one after a preemption, which takes the tokens of a step in flight back.
        """
        self.end = min(self.end, self.last_start + 1)
        del self.generated[max(0, self.end - len(self.request.prompt_ids)) :]

    def close(self) -> CapturedSequence | None:
        """The finished sequence, None when not a single generated token was captured with its rows."""
        length, finished = final_length(self.request, self.generated)
        tokens = [*self.request.prompt_ids, *self.generated[: length - len(self.request.prompt_ids)]]
        end = min(self.end, length - 1)  # the last token was never fed back
        if self._rows is None or end <= max(self.first_row, len(self.request.prompt_ids) - 1):
            return None
        base = self.request.first_row
        return CapturedSequence(
            token_ids=torch.tensor(tokens, dtype=torch.int32),
            hidden_states=self._rows[self.first_row - base : end - base].clone(),
            prompt_length=len(self.request.prompt_ids),
            policy_version=self.policy_version,
            finished=finished,
            first_row=self.first_row,
            temperature=self.request.temperature,
        )

    def _grown(self, like: torch.Tensor, needed: int) -> torch.Tensor:
        if self._rows is None or needed > len(self._rows):
            capacity = max(_FIRST_ROWS, needed, 2 * (0 if self._rows is None else len(self._rows)))
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

    def lengths(self) -> list[int]:
        """Rows so far of each sequence."""
        return [sequence.rows for sequence in self._open.values()]

    def add(self, step: StepRows) -> list[str]:
        """Takes a step.

        Returns:
            Requests of which a step before this one is missing; close them as cut: with a hole, tokens would be wrong.
        """
        for name, request in step.new.items():
            self._open[name] = OpenSequence(request=request, policy_version=step.policy_version)
        offset, torn = 0, []
        for index, (name, count) in enumerate(zip(step.requests, step.counts, strict=True)):
            rows = step.rows[offset : offset + count]
            start = int(step.positions[offset]) if count else None
            offset += count
            sequence = self._open.get(name)
            if sequence is None:
                continue
            if name in step.resumed:
                del sequence.generated[step.resumed[name] :]
            elif start is not None and not sequence.continues_at(start):
                torn.append(name)
                continue
            if start is not None:
                sequence.write(start, rows, policy_version=step.policy_version)
            if not step.partial[index]:
                sequence.generated.extend(token for token in step.sampled[index].tolist() if token >= 0)
        return torn

    def close(self, name: str, *, cut: bool = False) -> CapturedSequence | None:
        """Ends a request; None when it was not captured.

        Args:
            name: of the request.
            cut: a step of it is missing.
        """
        sequence = self._open.pop(name, None)
        if sequence is None:
            return None
        if cut:
            sequence.cut()
        return sequence.close()
