"""How long a pod must have been idle before its device is lent again, after requests have interrupted its windows.

A window that a request ends before it was worth its start tells that the pod's gaps are short.  Each one in a row
doubles the idle time that the pod must show before the next lease, a window that lasted halves it, and so does time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tlt_operator.plan.snapshot import RolloutView, Snapshot
from tlt_workloads.contract import EndedLease, RevokeReason

FIRST_SHARE = 0.5  # of `idle.minWindow`: what the first short window costs
LONGEST = 60.0  # seconds, whatever happened
HALF_LIFE = 120.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Patience:
    """The idle time in seconds that a pod had to show at the moment `since`, when its last lease had ended."""

    lease: str
    pause: float
    since: float

    def required(self, now: float) -> float:
        """Seconds of idleness before the next lease."""
        return float(self.pause * 0.5 ** (max(0.0, now - self.since) / HALF_LIFE))


def learn_patience(before: Mapping[str, Patience], snapshot: Snapshot) -> dict[str, Patience]:
    """Takes over the leases that ended since the last time; by pod uid."""
    learned: dict[str, Patience] = {}
    for view in snapshot.rollouts:
        known, lease = before.get(view.pod.uid), view.state.last_lease if view.state is not None else None
        if lease is not None and (known is None or known.lease != lease.id):
            known = _after_lease(known, lease, ended=view.heard_at - lease.ended_ago, snapshot=snapshot)
        if known is not None:
            learned[view.pod.uid] = known
    return learned


def still_to_wait(known: Mapping[str, Patience], view: RolloutView, *, now: float) -> float:
    """Seconds of further idleness before this idle pod may be lent; 0 when it may be now."""
    patience = known.get(view.pod.uid)
    if patience is None or view.state is None:
        return 0.0
    return max(0.0, patience.required(now) - view.state.idle_for - (now - view.heard_at))


def _after_lease(known: Patience | None, lease: EndedLease, *, ended: float, snapshot: Snapshot) -> Patience:
    least = snapshot.job.spec.idle.min_window
    pause = known.required(ended) if known is not None else 0.0
    if _was_interrupted(lease, least=least):
        pause = min(LONGEST, max(FIRST_SHARE * least, 2 * pause))
    elif lease.duration >= least:
        pause /= 2
    return Patience(lease=lease.id, pause=pause, since=ended)


def _was_interrupted(lease: EndedLease, *, least: float) -> bool:
    return lease.reason is RevokeReason.REQUEST and lease.duration < least
