"""Device time of a job, summed over pods and their reboots.

The pods count for themselves since boot; the ledger keeps, per pod, what is contained in the totals already.  Totals
and entries are written to the status in one request, so a restarted operator neither loses nor repeats anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tlt_operator.plan.snapshot import Snapshot
from tlt_workloads.contract import EndedLease, RolloutState

RECENT = 256  # training windows that the percentiles are made from


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """A pod's counters that the totals contain, in seconds, and the last lease that was counted."""

    pod: str
    boot: str
    busy: float = 0.0
    idle: float = 0.0
    harvested: float = 0.0
    lease: str = ""
    counted: RolloutState | None = field(default=None, compare=False, repr=False)  # the answer that it was made from


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Totals since the job was made; `entries` by pod name; `recent` are lengths of training windows."""

    busy: float = 0.0
    idle: float = 0.0
    harvested: float = 0.0
    windows: int = 0
    recent: tuple[float, ...] = ()
    entries: Mapping[str, LedgerEntry] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CountedLease:
    """A lease that was found ended, with the pod it lent."""

    pod: str
    lease: EndedLease


def account(ledger: Ledger, snapshot: Snapshot) -> tuple[Ledger, tuple[CountedLease, ...]]:
    """Adds what the pods counted since the last time; returns the leases that ended since."""
    busy, idle, harvested, windows, recent = (
        ledger.busy,
        ledger.idle,
        ledger.harvested,
        ledger.windows,
        ledger.recent,
    )
    entries: dict[str, LedgerEntry] = {}
    ended: list[CountedLease] = []
    for view in snapshot.rollouts:
        known = ledger.entries.get(view.pod.name)
        if view.state is None or (known is not None and known.counted is view.state):
            if known is not None:
                entries[view.pod.name] = known
            continue
        before = known if known is not None and known.boot == view.state.boot else LedgerEntry(pod="", boot="")
        entry = _entry(view.pod.name, view.state, before)
        busy += entry.busy - before.busy
        idle += entry.idle - before.idle
        harvested += entry.harvested - before.harvested
        lease = view.state.last_lease
        if lease is not None and lease.id != before.lease:
            ended.append(CountedLease(pod=view.pod.name, lease=lease))
            windows += 1
            recent = (*recent, lease.duration)[-RECENT:]
        entries[view.pod.name] = entry
    total = Ledger(busy=busy, idle=idle, harvested=harvested, windows=windows, recent=recent, entries=entries)
    return total, tuple(ended)


def _entry(pod: str, state: RolloutState, before: LedgerEntry) -> LedgerEntry:
    # A counter never runs backwards within a boot; an answer overtaken by a newer one must not subtract.
    return LedgerEntry(
        pod=pod,
        boot=state.boot,
        busy=max(state.busy_seconds, before.busy),
        idle=max(state.idle_seconds, before.idle),
        harvested=max(state.lent_seconds, before.harvested),
        lease=state.last_lease.id if state.last_lease is not None else before.lease,
        counted=state,
    )
