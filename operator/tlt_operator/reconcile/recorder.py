"""Writes Kubernetes Events about a job without ever holding anything up."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from tlt_operator.api.job import Job
from tlt_operator.api.names import EventReason
from tlt_operator.clients.kube import EVENT
from tlt_operator.errors import ConflictError, NotFoundError, OperatorError
from tlt_operator.reconcile.answers import cancel
from tlt_operator.reconcile.context import Context
from tlt_operator.telemetry.events import EventLog, EventType, EventWrite

logger = logging.getLogger(__name__)


class Recorder:
    """Events of one job; a lost Event is logged and forgotten."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._log = EventLog()
        self._tasks: set[asyncio.Task[None]] = set()

    def normal(self, job: Job, reason: EventReason, message: str, *, subject: str) -> None:
        """News that needs no attention."""
        self._note(job, reason, message, subject=subject, kind=EventType.NORMAL)

    def warning(self, job: Job, reason: EventReason, message: str, *, subject: str) -> None:
        """News that a person should look at."""
        self._note(job, reason, message, subject=subject, kind=EventType.WARNING)

    async def close(self) -> None:
        """Gives the last Events a moment to be written."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=1.0)
            await cancel(*late)

    def _note(self, job: Job, reason: EventReason, message: str, *, subject: str, kind: EventType) -> None:
        logger.info("%s %s: %s", job.key, reason.value, message)
        clock = self._context.clock
        write = self._log.note(
            job,
            reason=reason,
            subject=subject,
            message=message,
            kind=kind,
            now=clock.steady(),
            wall_time=clock.precise_timestamp(),
            instance=self._context.instance,
        )
        if write is None:
            return
        self._context.metrics.api_writes.labels(job=job.key, kind="Event").inc()
        task = asyncio.create_task(self._write(write, job.namespace))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, write: EventWrite, namespace: str) -> None:
        try:
            if write.repeated:
                try:
                    await self._repeat(write, namespace, count=write.count)
                except NotFoundError:  # the API server has forgotten it, or the first write failed
                    await self._context.kube.create(write.body)
                return
            try:
                await self._context.kube.create(write.body)
            except ConflictError:  # an operator before this one wrote it; only a patch tells how often
                note = {"note": write.body["note"]}
                found = await self._context.kube.patch(EVENT, namespace=namespace, name=write.name, body=note)
                before = int((found.get("series") or {}).get("count", 1))
                await self._repeat(write, namespace, count=self._log.adopt(write, before=before))
        except OperatorError as error:
            logger.warning("Event %s was not written: %s", write.name, error)

    async def _repeat(self, write: EventWrite, namespace: str, *, count: int) -> None:
        series = {"count": count, "lastObservedTime": write.body["eventTime"]}
        body: dict[str, Any] = {"series": series, "note": write.body["note"]}
        await self._context.kube.patch(EVENT, namespace=namespace, name=write.name, body=body)
