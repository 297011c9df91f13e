"""How many drafted tokens were accepted, from the shared page, since the drafter in use was loaded."""

from __future__ import annotations

from collections.abc import Mapping

from tlt_workloads.contract import AcceptanceCounters, DraftSource, LengthCounters
from tlt_workloads.rollout.counters import LONGEST_COUNTED, CounterPage

Totals = Mapping[int, tuple[int, int, int]]


class AcceptanceMeter:
    """Reads the drafts of both drafters."""

    def __init__(self, page: CounterPage) -> None:
        self._page = page
        self._before: Totals = {}

    def learned(self) -> AcceptanceCounters:
        """Since the last `restart`."""
        return _counters(self._totals(DraftSource.LEARNED), before=self._before)

    def ngram(self) -> AcceptanceCounters:
        """Since boot."""
        return _counters(self._totals(DraftSource.NGRAM), before={})

    def restart(self) -> None:
        """Another learned drafter acts from now on."""
        self._before = self._totals(DraftSource.LEARNED)

    def _totals(self, source: DraftSource) -> Totals:
        return {length: self._page.drafts(source, length) for length in range(1, LONGEST_COUNTED + 1)}


def _counters(totals: Totals, *, before: Totals) -> AcceptanceCounters:
    lengths, draft_tokens = [], 0
    for length, (drafts, tokens, accepted) in totals.items():
        drafts_before, tokens_before, accepted_before = before.get(length, (0, 0, 0))
        draft_tokens += tokens - tokens_before
        if drafts > drafts_before:
            lengths.append(
                LengthCounters(
                    draft_length=length, drafts=drafts - drafts_before, accepted_tokens=accepted - accepted_before
                )
            )
    return AcceptanceCounters(
        drafts=sum(item.drafts for item in lengths),
        draft_tokens=draft_tokens,
        accepted_tokens=sum(item.accepted_tokens for item in lengths),
        by_length=tuple(lengths),
    )
