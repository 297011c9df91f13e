"""Which piece of work goes to which pod next.  Pure: no clock, no network, no task.

Least outstanding work first, with a limit per pod; what finds no free place waits in the order of arrival.  A piece
that comes back from a dead pod keeps its place in the line and prefers a pod that it has not tried.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Ticket:
    """A piece of work.  Its number is its place in the order of arrival."""

    number: int


@dataclass(frozen=True)
class Assignment:
    """The pod at `address` is to work on the piece now."""

    ticket: Ticket
    address: str


class Dispatcher:
    """The line of waiting pieces and the pods' outstanding work.

    `limit` is the most pieces in flight per pod, 0 for no limit.
    """

    def __init__(self, *, limit: int = 0) -> None:
        self.limit = limit
        self._arrivals = 0
        self._waiting: list[Ticket] = []  # heap
        self._withdrawn: set[Ticket] = set()
        self._tried: dict[Ticket, frozenset[str]] = {}
        self._at: dict[Ticket, str] = {}
        self._outstanding: dict[str, int] = {}
        self._serving: tuple[str, ...] = ()

    @property
    def queued(self) -> int:
        """Pieces that wait for a pod."""
        return len(self._waiting) - len(self._withdrawn)

    @property
    def outstanding(self) -> int:
        """Pieces in flight on all pods."""
        return len(self._at)

    def outstanding_at(self, address: str) -> int:
        """Pieces in flight on one pod, a pod that no longer serves included."""
        return self._outstanding.get(address, 0)

    def serve(self, addresses: Iterable[str]) -> None:
        """Sets the pods that take new work.  Work in flight on others stays theirs until it is released."""
        self._serving = tuple(sorted(set(addresses)))

    def submit(self) -> Ticket:
        """A new piece joins the end of the line."""
        self._arrivals += 1
        ticket = Ticket(self._arrivals)
        self._tried[ticket] = frozenset()
        heapq.heappush(self._waiting, ticket)
        return ticket

    def assign(self) -> list[Assignment]:
        """Starts whatever can start, in order."""
        started: list[Assignment] = []
        while self._waiting:
            ticket = self._waiting[0]
            if ticket in self._withdrawn:
                heapq.heappop(self._waiting)
                self._withdrawn.remove(ticket)
                continue
            address = self._choose(self._tried[ticket])
            if address is None:
                break
            heapq.heappop(self._waiting)
            self._at[ticket] = address
            self._outstanding[address] = self.outstanding_at(address) + 1
            started.append(Assignment(ticket, address))
        return started

    def finish(self, ticket: Ticket) -> None:
        """The piece is answered, or nobody wants it any more: in flight or still waiting."""
        if ticket in self._at:
            self._free(ticket)
        else:
            self._withdrawn.add(ticket)
        del self._tried[ticket]

    def put_back(self, ticket: Ticket) -> None:
        """The pod failed under the piece: it waits again, at its old place."""
        address = self._free(ticket)
        self._tried[ticket] |= {address}
        heapq.heappush(self._waiting, ticket)

    def _choose(self, tried: frozenset[str]) -> str | None:
        free = [item for item in self._serving if not self.limit or self.outstanding_at(item) < self.limit]
        return min(free, key=lambda item: (item in tried, self.outstanding_at(item)), default=None)

    def _free(self, ticket: Ticket) -> str:
        address = self._at.pop(ticket)
        remaining = self._outstanding[address] - 1
        if remaining:
            self._outstanding[address] = remaining
        else:
            del self._outstanding[address]
        return address
