"""How the accept length of the active revision develops, step by step.

A batch shrinks from the bulk of a step to its tail.  So only whole steps are compared, from one policy update to the
next: the first one with a revision is what the later ones are held against.  An engine also chooses its draft lengths,
and chooses others from step to step; a longer draft has more accepted.  So each length is compared with itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tlt_operator.api.revision import Revision
from tlt_operator.plan.snapshot import Snapshot
from tlt_workloads.contract import RolloutState

ENOUGH_DRAFTS = 2000  # a step with fewer verification steps is counted together with the next one
DEVIATIONS = 2.0  # a fall within this many standard errors may be chance


@dataclass(frozen=True)
class DraftCounts:
    """Verification steps, and the draft tokens that were accepted in them."""

    drafts: int = 0
    accepted: int = 0

    def __add__(self, other: DraftCounts) -> DraftCounts:
        return DraftCounts(self.drafts + other.drafts, self.accepted + other.accepted)

    @property
    def length(self) -> float:
        """Mean accept length, bonus token counted; needs at least one draft."""
        return 1 + self.accepted / self.drafts

    def squared_error(self, *, most: int) -> float:
        """Upper bound of the squared standard error when a draft has at most `most` tokens (Bhatia and Davis, 2000)."""
        mean = self.accepted / self.drafts
        return max(0.0, mean * (most - mean)) / self.drafts


ByLength = Mapping[int, DraftCounts]  # of drafts by their length


@dataclass(frozen=True, kw_only=True)
class AcceptanceMemory:
    """What was counted of one revision; `running` is None until its first whole step has begun."""

    revision: str | None = None
    policy_version: int | None = None
    seen: Mapping[str, ByLength] = field(default_factory=dict)  # totals by boot of the pod
    running: ByLength | None = None
    baseline: ByLength | None = None  # the first whole step
    latest: ByLength | None = None  # the last whole step


@dataclass(frozen=True, kw_only=True)
class Fall:
    """Accept lengths before and after a fall that chance does not explain, both as if drafts were now what they are."""

    before: float
    now: float

    @property
    def share(self) -> float:
        """By which part it fell."""
        return 1 - self.now / self.before


def follow_acceptance(memory: AcceptanceMemory, snapshot: Snapshot, active: Revision | None) -> AcceptanceMemory:
    """Counts what the pods that have the active revision did since the last time."""
    if active is None:
        return AcceptanceMemory()
    version = policy_version(snapshot)
    if memory.revision != active.name:
        memory = AcceptanceMemory(revision=active.name, policy_version=version)
    seen = dict(_totals(snapshot, active))
    running, baseline, latest = memory.running, memory.baseline, memory.latest
    if running is not None:
        for boot, totals in seen.items():
            running = _added(running, _since(memory.seen.get(boot, totals), totals))
    if version != memory.policy_version:
        if running is None:
            running = {}
        elif sum(counts.drafts for counts in running.values()) >= ENOUGH_DRAFTS:
            baseline, latest, running = baseline or running, running, {}
    return AcceptanceMemory(
        revision=active.name,
        policy_version=version,
        seen=seen,
        running=running,
        baseline=baseline,
        latest=latest,
    )


def find_fall(memory: AcceptanceMemory) -> Fall | None:
    """The fall from the first whole step to the last one, if it is more than chance.

    Lengths that were drafted in only one of them say nothing; the others weigh as much as they do in the last one.
    """
    baseline, latest = memory.baseline or {}, memory.latest or {}
    common = [length for length, counts in latest.items() if counts.drafts and length in baseline]
    total = sum(latest[length].drafts for length in common)
    if not total:
        return None
    before = now = squared_error = 0.0
    for length in common:
        first, last, weight = baseline[length], latest[length], latest[length].drafts / total
        before, now = before + weight * first.length, now + weight * last.length
        squared_error += weight**2 * (first.squared_error(most=length) + last.squared_error(most=length))
    return Fall(before=before, now=now) if before - now > DEVIATIONS * math.sqrt(squared_error) else None


def counts_by_length(state: RolloutState) -> ByLength:
    """What a pod's drafter did since it was loaded.

    A pod that does not tell lengths apart has made all drafts at the length in force.
    """
    counters = state.acceptance
    if counters.by_length:
        return {item.draft_length: DraftCounts(item.drafts, item.accepted_tokens) for item in counters.by_length}
    return {state.draft_length: DraftCounts(counters.drafts, counters.accepted_tokens)} if state.draft_length else {}


def policy_version(snapshot: Snapshot) -> int | None:
    """The newest policy version in the pods; None when none has answered."""
    return max((view.state.policy_version for view in snapshot.rollouts if view.state is not None), default=None)


def _totals(snapshot: Snapshot, active: Revision) -> list[tuple[str, ByLength]]:
    return [
        (view.state.boot, counts_by_length(view.state))
        for view in snapshot.rollouts
        if view.state is not None and view.has(active)
    ]


def _since(before: ByLength, now: ByLength) -> ByLength:
    """What came to the totals; nothing for a length whose total has fallen."""
    grown = {}
    for length, counts in now.items():
        last = before.get(length, DraftCounts())
        if counts.drafts > last.drafts:
            grown[length] = DraftCounts(counts.drafts - last.drafts, max(0, counts.accepted - last.accepted))
    return grown


def _added(one: ByLength, other: ByLength) -> ByLength:
    none = DraftCounts()
    return {length: one.get(length, none) + other.get(length, none) for length in one.keys() | other.keys()}
