"""Which sequences belong to which replica, and how a team tells itself what it has trained: no data in here.

A sequence belongs to one replica by a hash of its name and the team's size.  Nothing is handed over when a team
changes: every replica knows what all of them have trained, and the new split says who goes on with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LEDGER_ENTRIES = 1024  # that one replica can announce with one step; more wait for the next step
ENTRY_NUMBERS = 5  # of one announced sequence: four parts of its key, and the rows
_PART_BITS = 16  # float32 holds whole numbers of 24 bits exactly


@dataclass(frozen=True, kw_only=True)
class Share:
    """A replica's part of the data."""

    rank: int = 0
    size: int = 1

    def owns(self, key: int) -> bool:
        """Whether a sequence is this replica's to train on."""
        return key % self.size == self.rank


def sequence_key(shard: str, index: int) -> int:
    """64 bits that stand for a sequence; the same in every process."""
    return int.from_bytes(hashlib.sha256(f"{shard}#{index}".encode()).digest()[8:16], "big")


def ledger_numbers(entries: Sequence[tuple[int, int]]) -> list[float]:
    """Entries (key, rows) as numbers that a sum with zeros leaves as they are.

    Args:
        entries: at most `LEDGER_ENTRIES`.
    """
    numbers: list[float] = []
    for key, rows in entries:
        parts = (key >> shift & (1 << _PART_BITS) - 1 for shift in range(0, 64, _PART_BITS))
        numbers += [*map(float, parts), float(rows)]
    return numbers


def ledger_entries(numbers: Sequence[float]) -> Iterator[tuple[int, int]]:
    """The entries (key, rows) of such numbers, up to the first place that is empty."""
    for start in range(0, len(numbers), ENTRY_NUMBERS):
        *parts, rows = map(int, numbers[start : start + ENTRY_NUMBERS])
        if rows <= 0:
            return
        yield sum(part << _PART_BITS * place for place, part in enumerate(parts)), rows
