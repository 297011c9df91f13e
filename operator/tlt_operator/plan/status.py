"""The status of a TLTJob and of a DrafterRevision as written to the API server; and back, as far as it is needed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tlt_operator.api.job import Job
from tlt_operator.api.names import COMPONENT_LABEL, JOB_LABEL, Component
from tlt_operator.plan.conditions import Condition, message_of, phase_of
from tlt_operator.plan.decision import Decision
from tlt_operator.plan.ledger import Ledger, LedgerEntry
from tlt_operator.plan.pool import PoolPlan
from tlt_operator.plan.snapshot import Snapshot
from tlt_operator.plan.stamps import stamped
from tlt_operator.plan.worker import WorkerState

# What changes all the time and is worth a write of its own only now and then.
COUNTERS = ("gpuSeconds", "windows", "acceptance", "ledger")


def job_status(
    snapshot: Snapshot,
    decision: Decision,
    *,
    previous: Mapping[str, Any],
    gateway_url: str | None,
    now: str,
) -> dict[str, Any]:
    """`status` of a TLTJob; `now` is RFC 3339, None removes a field."""
    ledger, rollout = decision.memory.ledger, decision.rollout
    candidate = rollout.candidate
    return {
        "observedGeneration": snapshot.job.generation,
        "phase": decision.phase.value,
        "message": decision.message,
        "conditions": _conditions(decision.conditions, snapshot.job, previous=previous, now=now),
        "workers": _workers(decision.workers.values()),
        "pool": _pool(decision.pool, snapshot.job),
        "trainers": sum(not view.pod.deleting for view in snapshot.trainers),
        "gpuSeconds": {
            "busy": round(ledger.busy, 3),
            "idle": round(ledger.idle, 3),
            "harvested": round(ledger.harvested, 3),
        },
        "policyVersion": max(
            (view.state.policy_version for view in snapshot.rollouts if view.state is not None), default=None
        ),
        "activeRevision": rollout.active.name if rollout.active is not None else None,
        "candidateRevision": candidate.name if candidate is not None else None,
        "acceptance": {"length": _rounded(rollout.accept_length), "baseline": _rounded(rollout.baseline)},
        "windows": _windows(ledger, previous.get("windows") or {}),
        "gatewayURL": gateway_url,
        "ledger": [_ledger_entry(entry) for entry in ledger.entries.values()],
    }


def invalid_status(
    conditions: tuple[Condition, ...], *, generation: int, previous: Mapping[str, Any], now: str
) -> dict[str, Any]:
    """`status` of a TLTJob whose spec cannot be read."""
    return {
        "observedGeneration": generation,
        "phase": phase_of(conditions, suspended=False).value,
        "message": message_of(conditions),
        "conditions": _stamp(conditions, generation=generation, previous=previous, now=now),
    }


def significant(status: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a status whose change is worth a write at once: no counters, no sentences."""
    found = {key: value for key, value in status.items() if key not in (*COUNTERS, "conditions", "message")}
    found["conditions"] = [(item["type"], item["status"], item["reason"]) for item in status["conditions"]]
    return found


def ledger_of(status: Mapping[str, Any]) -> Ledger:
    """The ledger that a status contains; an empty one for a new job."""
    seconds = status.get("gpuSeconds") or {}
    entries = [
        LedgerEntry(
            pod=item["pod"],
            boot=item["boot"],
            busy=float(item.get("busy", 0)),
            idle=float(item.get("idle", 0)),
            harvested=float(item.get("harvested", 0)),
            lease=item.get("lease", ""),
        )
        for item in status.get("ledger") or ()
    ]
    return Ledger(
        busy=float(seconds.get("busy", 0)),
        idle=float(seconds.get("idle", 0)),
        harvested=float(seconds.get("harvested", 0)),
        windows=int((status.get("windows") or {}).get("count", 0)),
        entries={entry.pod: entry for entry in entries},
    )


def percentile(lengths: Sequence[float], share: float) -> float:
    """The smallest length that at least `share` of a non-empty list do not exceed."""
    ordered = sorted(lengths)
    return ordered[min(len(ordered) - 1, max(0, int(-(-share * len(ordered) // 1)) - 1))]


def _conditions(
    conditions: tuple[Condition, ...], job: Job, *, previous: Mapping[str, Any], now: str
) -> list[dict[str, Any]]:
    return _stamp(conditions, generation=job.generation, previous=previous, now=now)


def _stamp(
    conditions: tuple[Condition, ...], *, generation: int, previous: Mapping[str, Any], now: str
) -> list[dict[str, Any]]:
    return [
        stamped(item.type.value, item.status, item.reason.value, item.message, generation, previous=previous, now=now)
        for item in conditions
    ]


def _workers(states: Iterable[WorkerState]) -> dict[str, int]:
    counted = list(states)
    return {
        "total": len(counted),
        "busy": sum(state in (WorkerState.BUSY, WorkerState.DRAINING) for state in counted),
        "idle": sum(state is WorkerState.IDLE for state in counted),
        "lent": sum(state in (WorkerState.LENT, WorkerState.REVOKING) for state in counted),
        "unknown": sum(state in (WorkerState.UNKNOWN, WorkerState.UNAVAILABLE) for state in counted),
    }


def _pool(pool: PoolPlan | None, job: Job) -> dict[str, Any] | None:
    if pool is None:
        return None
    selector = f"{JOB_LABEL}={job.name},{COMPONENT_LABEL}={Component.ROLLOUT.value}"
    return {"replicas": pool.existing, "ready": pool.ready, "updated": pool.updated, "selector": selector}


def _windows(ledger: Ledger, before: Mapping[str, Any]) -> dict[str, Any]:
    if not ledger.recent:
        return {"count": ledger.windows, "p50": before.get("p50"), "p95": before.get("p95")}
    return {
        "count": ledger.windows,
        "p50": round(statistics.median(ledger.recent), 3),
        "p95": round(percentile(ledger.recent, 0.95), 3),
    }


def _ledger_entry(entry: LedgerEntry) -> dict[str, Any]:
    found: dict[str, Any] = {
        "pod": entry.pod,
        "boot": entry.boot,
        "busy": round(entry.busy, 3),
        "idle": round(entry.idle, 3),
        "harvested": round(entry.harvested, 3),
    }
    if entry.lease:
        found["lease"] = entry.lease
    return found


def _rounded(value: float | None, *, digits: int = 3) -> float | None:
    return round(value, digits) if value is not None else None
