"""Which finished sequences are worth their room: the budget of one policy version, longest first.

A step produces more than its budget holds, and the short answers of a step are there before the long ones.  First
come, first served would therefore fill it with short ones, and the drafter would never see what it is for: the long
tail (TLT, arXiv 2511.16665, section 5, trains on the long sequences of the step before for that reason).  Whether a
sequence is long is known only at its end, so that is when it is decided; and how much room those that are still to
come will want, the step before has shown:

    a sequence is kept if the budget holds it beside the longer ones that are expected

Expected are as many tokens of longer sequences as the last version had, less those that this one has finished, and at
least what is already running.  This needs no threshold: with room for everything everything is kept, and the less room
there is, the longer a sequence must be.

A quarter of the budget is nobody's reserve.  It goes to what finishes first: a device that idles early in a step trains
on fresh data, short ones included, instead of nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

OPEN_SHARE = 0.25  # of the budget, for which no longer sequence is waited


class StepBudget:
    """Rows that one policy version may record.

    Args:
        rows: the budget.
        before: lengths in rows of all sequences that the version before finished, kept or not.
    """

    def __init__(self, rows: int, *, before: Sequence[int] = ()) -> None:
        self.rows = rows
        self.used = 0
        self.finished: list[int] = []  # lengths of this version's sequences, kept or not
        self._before = before

    @property
    def is_used_up(self) -> bool:
        """Whether nothing fits any more."""
        return self.used >= self.rows

    def keeps(self, length: int, *, running: Sequence[int]) -> bool:
        """Decides on a finished sequence and counts it.

        Args:
            length: its rows.
            running: rows so far of the sequences that are not finished.
        """
        reserve = min(self._expected(length, running), (1 - OPEN_SHARE) * self.rows)
        self.finished.append(length)
        if self.used + length + reserve > self.rows:
            return False
        self.used += length
        return True

    def _expected(self, length: int, running: Sequence[int]) -> int:
        """Rows of longer sequences that are still to come."""
        by_last_time = _longer(self._before, length) - _longer(self.finished, length)
        return max(by_last_time, _longer(running, length))


def _longer(lengths: Sequence[int], length: int) -> int:
    return sum(item for item in lengths if item > length)
