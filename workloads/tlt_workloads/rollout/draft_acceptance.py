"""How many tokens of a draft are accepted: by drafter, by how many requests run together, and by what these have shown.

It is the drafter that makes drafts good or bad, so that what was seen at one batch size tells of all.  But batch sizes
stand for parts of a rollout as well: n-grams find little in answers that have just begun, when many run together, and
much in the long ones that are left at its end.  And answers differ: one repeats itself, the next one says what no
drafter has thought of.  In a tail, where a few requests are all there is, this matters more than the drafter.  So the
estimate is one of three levels: each request begins with what is known of its batch size and each batch size with what
is known of the drafter, and either outweighs it soon.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass

from tlt_workloads.contract import DraftSource
from tlt_workloads.rollout.plans import DraftPlan


@dataclass(frozen=True, kw_only=True)
class AcceptanceSettings:
    """How drafts are counted."""

    longest: int  # draft
    memory: int = 4096  # drafts after which older ones count half, over all batch sizes ...
    own_memory: int = 1024  # ... and at each
    borrowed: float = 64  # drafts that a batch size has in advance, which are accepted as elsewhere
    request_memory: int = 64  # drafts after which a request's older ones count half
    request_borrowed: float = 16  # drafts that a request has in advance, which are accepted as at its batch size
    optimism: float = 2.0  # acceptances that a drafter is credited with before it has shown any ...
    known: float = 64  # ... and drafts after which it is credited with none


class _Counts:
    """Tokens by their position in the draft; a token counts as offered when all positions before it were."""

    def __init__(self, longest: int) -> None:
        self.offered = [0.0] * longest
        self.accepted = [0.0] * longest

    def note(self, length: int, accepted: int, *, memory: int) -> None:
        for position in range(length):
            self.offered[position] += 1
            self.accepted[position] += position < accepted
        if self.offered[0] > memory:
            self.offered = [count / 2 for count in self.offered]
            self.accepted = [count / 2 for count in self.accepted]

    def chance(self, position: int, *, otherwise: float, weight: float) -> float:
        """Of a token at this position to be accepted, with so many drafts in advance that are as elsewhere."""
        return (self.accepted[position] + weight * otherwise) / (self.offered[position] + weight)


class DraftAcceptance:
    """Counts accepted tokens."""

    def __init__(self, settings: AcceptanceSettings) -> None:
        self._settings = settings
        self._all: dict[DraftSource, _Counts] = {}
        self._sizes: dict[tuple[DraftSource, int], _Counts] = {}
        self._running: frozenset[str] = frozenset()
        self._requests: dict[DraftSource, dict[str, _Counts]] = {source: {} for source in DraftSource}
        self._known: dict[tuple[DraftSource, int, bool], list[float]] = {}

    def forget(self, source: DraftSource) -> None:
        """Another drafter acts under this name from now on."""
        self._all.pop(source, None)
        self._sizes = {key: counts for key, counts in self._sizes.items() if key[0] is not source}
        self._requests[source].clear()
        self._known.clear()

    def note_running(self, requests: Set[str]) -> None:
        """Which requests are being answered; nothing is kept of others."""
        if requests != self._running:
            self._running = frozenset(requests)
            for source, known in self._requests.items():
                self._requests[source] = {name: counts for name, counts in known.items() if name in requests}
            self._known.clear()

    def note(self, size: int, plan: DraftPlan, accepted: Iterable[tuple[str, int]]) -> None:
        """Drafts at a batch size: whose, and how many of their tokens were accepted."""
        settings = self._settings
        everywhere = self._all.setdefault(plan.source, _Counts(settings.longest))
        here = self._sizes.setdefault((plan.source, size), _Counts(settings.longest))
        requests = self._requests[plan.source]
        for name, count in accepted:
            everywhere.note(int(plan), count, memory=settings.memory)
            here.note(int(plan), count, memory=settings.own_memory)
            if name in self._running:
                request = requests.setdefault(name, _Counts(settings.longest))
                request.note(int(plan), count, memory=settings.request_memory)
        self._known.clear()

    def tokens(self, size: int, plan: DraftPlan, *, is_credited: bool = False) -> float | None:
        """Tokens that a step yields for each request that runs, the one that needs no draft included.

        None when the drafter was never asked for drafts as long.  `is_credited`: with acceptances in advance, the
        fewer the more drafts it has made.
        """
        key = (plan.source, size, is_credited)
        if key not in self._known:
            self._known[key] = list(self._chances(*key))
        chances = self._known[key][: int(plan)]
        return 1.0 + math.fsum(chances) if len(chances) == plan else None

    def _chances(self, source: DraftSource, size: int, is_credited: bool) -> Iterator[float]:
        """Of each position to be accepted, as long as there is one that was ever offered."""
        everywhere, here = self._all.get(source), self._sizes.get((source, size))
        requests, settings = self._requests[source].values(), self._settings
        credit = settings.optimism if is_credited else 0.0
        for position in range(settings.longest):
            if everywhere is None or not (offered := everywhere.offered[position]):
                return
            given = credit * max(0.0, 1 - offered / settings.known)
            chance = (everywhere.accepted[position] + given) / (offered + given)
            if here is not None:
                chance = here.chance(position, otherwise=chance, weight=settings.borrowed)
            told = [item.chance(position, otherwise=chance, weight=settings.request_borrowed) for item in requests]
            running = max(1, len(self._running))
            yield (math.fsum(told) + (running - len(told)) * chance) / running
