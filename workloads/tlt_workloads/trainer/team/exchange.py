"""One optimiser step of a team as one vector: what each replica has done, what it has trained on, and the gradients.

The vector is [size x (facts, ledger), gradients] in float32.  Each replica fills its own place and leaves the others'
zero, so that one sum brings everything to everybody: whoever has the step also knows what it was made of.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from tlt_workloads.trainer.team.ring import Ring
from tlt_workloads.trainer.team.split import ENTRY_NUMBERS, LEDGER_ENTRIES, ledger_entries, ledger_numbers

_FACTS = 8  # positions, first and last policy version, whether others wait to be let in, and `Tried` in four
_PLACE = _FACTS + LEDGER_ENTRIES * ENTRY_NUMBERS  # numbers of one replica
_LARGEST_WHOLE = 1 << 24  # that float32 holds exactly


@dataclass(frozen=True, kw_only=True)
class Tried:
    """How the leader's last try for a revision went; the next leader goes on from there."""

    tokens: int = 0  # trained then
    seconds: float = 0.0  # that it took
    revision: int = 0  # number of the newest one; 0 without any

    def numbers(self) -> tuple[float, ...]:
        """As whole numbers of 24 bits, and the seconds."""
        return (self.tokens % _LARGEST_WHOLE, self.tokens // _LARGEST_WHOLE, self.seconds, self.revision)

    @classmethod
    def of_numbers(cls, numbers: Sequence[float]) -> Tried:
        """The inverse of `numbers`."""
        low, high, seconds, revision = numbers
        return cls(tokens=int(low) + int(high) * _LARGEST_WHOLE, seconds=seconds, revision=int(revision))


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What one replica brings to a step."""

    positions: int
    policy_versions: tuple[int, int]  # first and last
    used: Mapping[int, int] = field(default_factory=dict)  # rows by sequence key
    tried: Tried = Tried()


@dataclass(frozen=True, kw_only=True)
class Sum:
    """What all replicas have brought to a step."""

    positions: int
    policy_versions: tuple[int, int]
    others_used: tuple[tuple[int, int], ...] = ()  # rows by sequence key, without this replica's own
    others_wait: bool = False
    tried: Tried | None = None  # the leader's

    @classmethod
    def of_one(cls, own: Contribution) -> Sum:
        """A step that nobody else has part in."""
        return cls(positions=own.positions, policy_versions=own.policy_versions)


class Exchange:
    """The vector of one formation, and what has not found room in it yet."""

    def __init__(self, *, rank: int, size: int) -> None:
        self._rank, self._size = rank, size
        self._vector = torch.empty(0)
        self._waiting: deque[tuple[int, int]] = deque()  # of the ledger

    def sum(
        self,
        ring: Ring,
        parameters: Sequence[torch.nn.Parameter],
        own: Contribution,
        *,
        others_wait: bool,
        wait: Callable[[float], None],
    ) -> Sum:
        """Replaces every gradient by the sum over all replicas.

        Args:
            ring: of the formation.
            parameters: the same ones in the same order everywhere.
            own: this replica's part.
            others_wait: whether the host knows of somebody who wants to come in.
            wait: see `Ring.sum`.

        Raises:
            RingBrokenError: the gradients are as they were.
        """
        gradients = self._pack(parameters, own, others_wait=others_wait)
        ring.sum(self._vector, wait=wait)
        with torch.no_grad():
            for parameter, part in zip(parameters, gradients, strict=True):
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(part.view_as(parameter))
        for _ in range(min(LEDGER_ENTRIES, len(self._waiting))):
            self._waiting.popleft()
        return self._unpack()

    def _pack(
        self, parameters: Sequence[torch.nn.Parameter], own: Contribution, *, others_wait: bool
    ) -> list[torch.Tensor]:
        """Fills the vector; returns the gradients' parts of it."""
        places = self._size * _PLACE
        sizes = [parameter.numel() for parameter in parameters]
        if len(self._vector) != places + sum(sizes):
            self._vector = torch.empty(places + sum(sizes), dtype=torch.float32)
        self._vector[:places].zero_()
        self._waiting.extend(own.used.items())
        first, last = own.policy_versions
        facts = [min(own.positions, _LARGEST_WHOLE), first, last, float(others_wait), *own.tried.numbers()]
        entries = [self._waiting[place] for place in range(min(LEDGER_ENTRIES, len(self._waiting)))]
        numbers = torch.tensor([*facts, *ledger_numbers(entries)])
        start = self._rank * _PLACE
        self._vector[start : start + len(numbers)] = numbers
        parts = list(torch.split(self._vector[places:], sizes))
        with torch.no_grad():
            for parameter, part in zip(parameters, parts, strict=True):
                if parameter.grad is None:
                    part.zero_()
                else:
                    part.copy_(parameter.grad.reshape(-1))
        return parts

    def _unpack(self) -> Sum:
        places = self._vector[: self._size * _PLACE].view(self._size, _PLACE)
        facts = places[:, :_FACTS].tolist()
        used: list[tuple[int, int]] = []
        for rank in range(self._size):
            if rank != self._rank:
                used += ledger_entries(places[rank, _FACTS:].tolist())
        return Sum(
            positions=int(sum(fact[0] for fact in facts)),
            policy_versions=(int(min(fact[1] for fact in facts)), int(max(fact[2] for fact in facts))),
            others_used=tuple(used),
            others_wait=any(fact[3] for fact in facts),
            tried=Tried.of_numbers(facts[0][4:]) if self._rank else None,
        )
