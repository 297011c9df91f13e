"""Kubernetes Events, deduplicated: the same news about the same object is one Event with a count."""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from typing import Any

from tlt_operator.api.job import Job
from tlt_operator.api.names import API_VERSION, FIELD_MANAGER, JOB_KIND, EventReason

REPEAT_AFTER = 60.0  # a repeated Event is written again at most this often
FORGOTTEN_AFTER = 3600.0  # as the API server forgets Events (kube-apiserver --event-ttl)


class EventType(enum.StrEnum):
    """Whether a person should look."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass
class _Known:
    count: int
    written: float
    heard: float


@dataclass(frozen=True, kw_only=True)
class EventWrite:
    """An Event to create, or when it is `repeated` to update; `count` is how often its news has come so far."""

    key: str
    name: str
    body: dict[str, Any]
    count: int
    repeated: bool


class EventLog:
    """Remembers which Events of one job were written, and when."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def note(
        self,
        job: Job,
        *,
        reason: EventReason,
        subject: str,
        message: str,
        kind: EventType,
        now: float,
        wall_time: str,
        instance: str,
    ) -> EventWrite | None:
        """The Event to write for this news, or None when it was written a moment ago.

        `subject` names what the news is about (a pod, a revision): the same reason and subject make one Event.
        """
        key = f"{job.uid}/{reason}/{subject}"
        self._known = {name: old for name, old in self._known.items() if now - old.heard < FORGOTTEN_AFTER}
        known = self._known.get(key)
        if known is not None:
            known.count, known.heard = known.count + 1, now
            if now - known.written < REPEAT_AFTER:
                return None
            known.written = now
        else:
            known = self._known[key] = _Known(count=1, written=now, heard=now)
        name = f"{job.name}.{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        body: dict[str, Any] = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": job.namespace},
            "eventTime": wall_time,
            "reportingController": f"tlt.dev/{FIELD_MANAGER}",
            "reportingInstance": instance[:128],
            "action": reason.value,
            "reason": reason.value,
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": JOB_KIND,
                "name": job.name,
                "namespace": job.namespace,
                "uid": job.uid,
            },
            "note": message[:1024],
            "type": kind.value,
        }
        return EventWrite(key=key, name=name, body=body, count=known.count, repeated=known.count > 1)

    def adopt(self, write: EventWrite, *, before: int) -> int:
        """Counts on from an Event that an operator before this one has written; answers the new count."""
        known = self._known.get(write.key)
        if known is not None:
            known.count += before
        return write.count + before
