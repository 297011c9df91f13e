"""Leases that all jobs of one operator share: who may take the next one.

Fair is what evens out how much of its idle device time each job has turned into training.  A lease that is out is not
taken away for it: every lease ends with its window, and then the job that has harvested least goes first.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wish:
    """Leases that one job holds and could use now, with its device time so far in seconds."""

    job: str
    held: int = 0
    wanted: int = 0
    idle: float = 0.0
    harvested: float = 0.0

    @property
    def harvested_share(self) -> float:
        """Part of the idle time that went into training; 0 for a job that has had none."""
        return self.harvested / self.idle if self.idle > 0 else 0.0


def share_leases(wishes: Collection[Wish], *, limit: int) -> dict[str, int]:
    """Further leases for each job, so that at most `limit` are out in all; a limit of 0 is none."""
    if limit == 0:
        return {wish.job: wish.wanted for wish in wishes}
    free = max(0, limit - sum(wish.held for wish in wishes))
    given: dict[str, int] = {}
    for wish in sorted(wishes, key=lambda item: (item.harvested_share, item.held, item.job)):
        given[wish.job] = min(wish.wanted, free)
        free -= given[wish.job]
    return given
