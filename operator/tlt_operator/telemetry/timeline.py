"""The timeline: one line of JSON on standard output for each change, from which rows of pods over time can be drawn.

Fields of every line:

    at     seconds since 1970, with milliseconds, when the change happened (not when it was noticed)
    job    "<namespace>/<name>"
    kind   "worker", "trainer", "swap" or "revision"
    pod    the pod's name (for a revision: the revision's name)

and besides, by kind:

    worker    from, to     states of a rollout pod: Unavailable, Unknown, Busy, Draining, Idle, Lent, Revoking;
                           `from` is null when the pod is new, `to` is "Gone" when it was deleted
    trainer   from, to     phases of a trainer pod: Starting, Waiting, Training, Stopping, Failed, Gone;
              rollout      the rollout pod whose device it shares
    swap      revision, seconds, stall     a drafter was loaded: whole load, and how long no step was made
    revision  from, to     phases of a DrafterRevision

A lease that was granted adds `edgeToLease` (seconds from the idle edge's arrival to the granted lease) to the worker's
line to "Lent"; one that ended adds `handBack` (seconds from being asked back to handed back) and `reason` to the line
that leaves "Lent" or "Revoking".
"""

from __future__ import annotations

import json
import logging

LOGGER = "tlt.timeline"
GONE = "Gone"

logger = logging.getLogger(LOGGER)

Value = str | float | None


def write(*, at: float, job: str, kind: str, pod: str, **fields: Value) -> None:
    """Writes one line; see above for the fields."""
    line: dict[str, Value] = {"at": round(at, 3), "job": job, "kind": kind, "pod": pod, **fields}
    logger.info(json.dumps(line, ensure_ascii=False))


def write_transition(
    *, at: float, job: str, kind: str, pod: str, from_state: str | None, to_state: str, **fields: Value
) -> None:
    """Writes the line of a state that changed."""
    write(at=at, job=job, kind=kind, pod=pod, **{"from": from_state, "to": to_state}, **fields)
