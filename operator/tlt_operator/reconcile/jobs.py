"""All TLTJobs of this operator: one loop each, begun again when it breaks, ended when the job is deleted.

Nothing acts before `begin`: an operator that stands by knows all jobs and can take over at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any

from tlt_operator.api.job import Job, parse_job
from tlt_operator.clients.kube import JOB
from tlt_operator.errors import InvalidSpecError, NotFoundError, OperatorError
from tlt_operator.plan.conditions import invalid_spec
from tlt_operator.plan.status import invalid_status
from tlt_operator.reconcile.answers import cancel
from tlt_operator.reconcile.context import Context
from tlt_operator.reconcile.job import JobLoop

STALE_AFTER = 30.0  # seconds without a look at a job after which the operator counts as hung
FIRST_RETRY = 1.0
LAST_RETRY = 60.0
RECHECK_INTERVAL = 60.0

logger = logging.getLogger(__name__)


class _Entry:
    """One job that is looked after."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.body = body
        self.changed = asyncio.Event()
        self.loop: JobLoop | None = None
        self.task: asyncio.Task[None] | None = None


class Jobs:
    """`seen` and `gone` are called for every event of a TLTJob, in any order and as often as it comes."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._entries: dict[str, _Entry] = {}
        self._begun = asyncio.Event()

    def begin(self) -> None:
        """Lets the loops of all jobs run, those of later jobs too."""
        self._begun.set()

    @property
    def acting(self) -> bool:
        """Whether the loops run: this operator is the one that acts."""
        return self._begun.is_set()

    async def pause(self) -> None:
        """Ends all loops until the next `begin`; leases run on, and another operator may adopt them meanwhile."""
        self._begun.clear()
        entries = dict(self._entries)
        await cancel(*(entry.task for entry in entries.values() if entry.task is not None))
        for uid, entry in entries.items():
            if self._entries.get(uid) is entry:
                entry.loop = None  # what it remembers is old by then; the status is not
                self._context.metrics.forget(_key(entry.body))
                self._context.wishes.forget(_key(entry.body))
                entry.task = asyncio.create_task(self._look_after(uid, entry), name=f"job {_key(entry.body)}")

    def seen(self, body: Mapping[str, Any]) -> None:
        """A job that exists, new or changed."""
        uid = body["metadata"]["uid"]
        entry = self._entries.get(uid)
        if entry is None:
            entry = self._entries[uid] = _Entry(body)
            entry.task = asyncio.create_task(self._look_after(uid, entry), name=f"job {body['metadata']['name']}")
        else:
            entry.body = body
            entry.changed.set()

    async def gone(self, body: Mapping[str, Any]) -> None:
        """A job that was deleted."""
        await self._end(body["metadata"]["uid"])

    async def recheck(self) -> None:
        """Ends loops of jobs whose deletion nobody told of; runs until cancelled."""
        await self._begun.wait()
        while True:
            await asyncio.sleep(RECHECK_INTERVAL)
            for uid, entry in list(self._entries.items()):
                metadata = entry.body["metadata"]
                try:
                    found = await self._context.kube.find(JOB, namespace=metadata["namespace"], name=metadata["name"])
                except OperatorError as error:
                    logger.warning("Could not look for TLTJob %s: %s", metadata["name"], error)
                    continue
                if found is None or found["metadata"]["uid"] != uid:
                    await self._end(uid)

    def hung(self) -> list[str]:
        """Jobs that have not been looked at for too long; none in a healthy operator."""
        now = self._context.clock.steady()
        return [
            _key(entry.body)
            for entry in self._entries.values()
            if (entry.task is not None and entry.task.done())
            or (entry.loop is not None and now - entry.loop.heartbeat > STALE_AFTER)
        ]

    async def close(self) -> None:
        """Ends all loops and leaves everything as it is: leases run on, the next operator adopts them."""
        entries = list(self._entries.values())
        self._entries.clear()
        await cancel(*(entry.task for entry in entries if entry.task is not None))

    async def _end(self, uid: str) -> None:
        entry = self._entries.pop(uid, None)
        if entry is None or entry.task is None:
            return
        loop = entry.loop
        await cancel(entry.task)
        if loop is not None:
            await loop.farewell()
        self._context.metrics.forget(_key(entry.body))
        self._context.wishes.forget(_key(entry.body))
        logger.info("%s: deleted", _key(entry.body))

    async def _look_after(self, uid: str, entry: _Entry) -> None:
        retry = FIRST_RETRY
        await self._begun.wait()
        while True:
            entry.changed.clear()
            try:
                job = parse_job(entry.body)
            except InvalidSpecError as error:
                await self._tell_invalid(entry, error)
                await entry.changed.wait()
                continue
            try:
                await self._run(entry, job)
                retry = FIRST_RETRY
            except Exception:
                logger.exception("%s: the loop broke; again in %.0fs", job.key, retry)
                await asyncio.sleep(retry)
                retry = min(2 * retry, LAST_RETRY)

    async def _run(self, entry: _Entry, job: Job) -> None:
        """Runs a loop until the spec needs another one."""
        loop = JobLoop(self._context, job, status=entry.body.get("status") or {})
        if entry.loop is not None:
            loop.inherit(entry.loop)
        entry.loop = loop
        running = asyncio.create_task(loop.run())
        following = asyncio.create_task(self._follow_changes(entry, job, loop))
        try:
            done, _ = await asyncio.wait({running, following}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await cancel(running, following)

    async def _follow_changes(self, entry: _Entry, job: Job, loop: JobLoop) -> None:
        """Hands changes to the loop; returns at one that it cannot take over."""
        while True:
            await entry.changed.wait()
            entry.changed.clear()
            try:
                new = parse_job(entry.body)
            except InvalidSpecError:
                return
            if (new.spec.rollout.selector, new.spec.port) != (job.spec.rollout.selector, job.spec.port):
                return
            loop.update(new)

    async def _tell_invalid(self, entry: _Entry, error: InvalidSpecError) -> None:
        metadata = entry.body["metadata"]
        logger.warning("%s: %s", _key(entry.body), error)
        status = invalid_status(
            invalid_spec(str(error)),
            generation=metadata.get("generation", 0),
            previous=entry.body.get("status") or {},
            now=self._context.clock.timestamp(),
        )
        retry = FIRST_RETRY
        while not entry.changed.is_set():
            try:
                await self._context.kube.patch_status(
                    JOB, namespace=metadata["namespace"], name=metadata["name"], status=status
                )
            except NotFoundError:
                return
            except OperatorError as failure:
                logger.warning("%s: status not written: %s", _key(entry.body), failure)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(retry):
                        await entry.changed.wait()
                retry = min(2 * retry, LAST_RETRY)
            else:
                # Our own write comes back as an event; only another generation is news.
                await self._wait_for_generation(entry, metadata.get("generation", 0))
                return

    async def _wait_for_generation(self, entry: _Entry, generation: int) -> None:
        while entry.body["metadata"].get("generation", 0) == generation:
            entry.changed.clear()
            await entry.changed.wait()
        entry.changed.set()


def _key(body: Mapping[str, Any]) -> str:
    return f"{body['metadata']['namespace']}/{body['metadata']['name']}"
