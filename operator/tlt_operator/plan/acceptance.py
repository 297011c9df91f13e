"""How the accept length of the active revision develops, step by step.

An engine chooses its draft lengths by batch size, and a batch shrinks from the bulk of a step to its tail.  So only
whole steps are compared, from one policy update to the next: the first one with a revision is what the later ones are
held against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tlt_operator.api.revision import Revision
from tlt_operator.plan.snapshot import Snapshot

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


@dataclass(frozen=True, kw_only=True)
class AcceptanceMemory:
    """What was counted of one revision; `running` is None until its first whole step has begun."""

    revision: str | None = None
    policy_version: int | None = None
    seen: Mapping[str, DraftCounts] = field(default_factory=dict)  # totals by boot of the pod
    running: DraftCounts | None = None
    baseline: DraftCounts | None = None  # the first whole step
    latest: DraftCounts | None = None  # the last whole step


@dataclass(frozen=True, kw_only=True)
class Fall:
    """Accept lengths before and after a fall that chance does not explain."""

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
        for boot, counts in seen.items():
            before = memory.seen.get(boot, counts)
            if counts.drafts > before.drafts:
                running += DraftCounts(counts.drafts - before.drafts, max(0, counts.accepted - before.accepted))
    if version != memory.policy_version:
        if running is None:
            running = DraftCounts()
        elif running.drafts >= ENOUGH_DRAFTS:
            baseline, latest, running = baseline or running, running, DraftCounts()
    return AcceptanceMemory(
        revision=active.name,
        policy_version=version,
        seen=seen,
        running=running,
        baseline=baseline,
        latest=latest,
    )


def find_fall(memory: AcceptanceMemory, *, draft_length: int) -> Fall | None:
    """The fall from the first whole step to the last one, if it is more than chance."""
    baseline, latest = memory.baseline, memory.latest
    if baseline is None or latest is None:
        return None
    fall = Fall(before=baseline.length, now=latest.length)
    error = math.sqrt(baseline.squared_error(most=draft_length) + latest.squared_error(most=draft_length))
    return fall if fall.before - fall.now > DEVIATIONS * error else None


def policy_version(snapshot: Snapshot) -> int | None:
    """The newest policy version in the pods; None when none has answered."""
    return max((view.state.policy_version for view in snapshot.rollouts if view.state is not None), default=None)


def _totals(snapshot: Snapshot, active: Revision) -> list[tuple[str, DraftCounts]]:
    return [
        (view.state.boot, DraftCounts(view.state.acceptance.drafts, view.state.acceptance.accepted_tokens))
        for view in snapshot.rollouts
        if view.state is not None and view.has(active)
    ]
