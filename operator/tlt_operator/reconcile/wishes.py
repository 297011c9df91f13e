"""What the jobs of this operator hold and want of the leases that they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tlt_operator.plan.shares import Wish

FRESH = 5.0  # seconds after which a job that is not looked at any more wants nothing; what it holds, it may still hold


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A job's last wish, on the steady clock, and how to tell it that a lease has become free."""

    wish: Wish
    at: float
    wake: Callable[[], None]


class Wishes:
    """The last wish of each job.  A loop publishes in the pass in which it decides, so no two take the same lease."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def rivals(self, job: str, *, now: float, longest: float) -> tuple[Wish, ...]:
        """The wishes of all other jobs; no lease lasts longer than `longest` seconds."""
        return tuple(
            entry.wish if now - entry.at <= FRESH else replace(entry.wish, wanted=0)
            for key, entry in self._entries.items()
            if key != job and now - entry.at <= longest
        )

    def publish(self, wish: Wish, *, now: float, wake: Callable[[], None]) -> None:
        """Takes over a job's wish, and wakes the others when it needs less than before."""
        before = self._entries.get(wish.job)
        self._entries[wish.job] = _Entry(wish=wish, at=now, wake=wake)
        if before is not None and _needs_less(wish, before.wish):
            self._wake_all_but(wish.job)

    def forget(self, job: str) -> None:
        """A job that was deleted."""
        if self._entries.pop(job, None) is not None:
            self._wake_all_but(job)

    def _wake_all_but(self, job: str) -> None:
        for key, entry in self._entries.items():
            if key != job and entry.wish.wanted:
                entry.wake()


def _needs_less(now: Wish, before: Wish) -> bool:
    return now.held + now.wanted < before.held + before.wanted
