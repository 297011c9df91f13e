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
from tlt_operator.reconcile.backoff import Backoff
from tlt_operator.reconcile.context import Context
from tlt_operator.reconcile.job import JobLoop

STALE_AFTER = 30.0  # seconds without a look at a job after which the operator counts as hung
FIRST_RETRY = 1.0

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
        self._endings: set[asyncio.Task[None]] = set()
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
            for before in [old for old, other in self._entries.items() if _key(other.body) == _key(body)]:
                # Its deletion was never told, and two loops of one name would act against each other.
                ending = asyncio.create_task(self._end(before))
                self._endings.add(ending)
                ending.add_done_callback(self._endings.discard)
            entry = self._entries[uid] = _Entry(body)
            entry.task = asyncio.create_task(self._look_after(uid, entry), name=f"job {body['metadata']['name']}")
        elif body["metadata"].get("generation", 0) >= entry.body["metadata"].get("generation", 0):
            entry.body = body
            entry.changed.set()

    async def gone(self, body: Mapping[str, Any]) -> None:
        """A job that was deleted."""
        await self._end(body["metadata"]["uid"])

    async def recheck(self) -> None:
        """Finds jobs that came, changed or went without anybody telling; runs until cancelled.

        A deletion between two watches is told by neither, and a watch may be behind without knowing it.
        """
        while True:
            await asyncio.sleep(self._context.settings.recheck_interval)
            known = set(self._entries)  # before the list: a job that comes meanwhile is not on it
            try:
                found = await self._list()
            except OperatorError as error:
                logger.warning("Could not list the TLTJobs: %s", error)
                continue
            for uid, body in found.items():
                entry = self._entries.get(uid)
                if entry is None or body["metadata"]["generation"] > entry.body["metadata"].get("generation", 0):
                    logger.warning("%s: nobody told of it or of its last change", _key(body))
                    self.seen(body)
            for uid in known - set(found):
                await self._end(uid)

    async def _list(self) -> dict[str, Mapping[str, Any]]:
        namespaces = self._context.settings.watch_namespaces or (None,)
        lists = [await self._context.kube.list_all(JOB, namespace=namespace) for namespace in namespaces]
        return {body["metadata"]["uid"]: body for bodies in lists for body in bodies}

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
        await cancel(*self._endings, *(entry.task for entry in entries if entry.task is not None))

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
        backoff = Backoff(first=FIRST_RETRY)
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
                backoff.reset()
            except Exception:
                retry = backoff.next()
                logger.exception("%s: the loop broke; again in %.0fs", job.key, retry)
                await asyncio.sleep(retry)

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
        backoff = Backoff(first=FIRST_RETRY)
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
                    async with asyncio.timeout(backoff.next(failure)):
                        await entry.changed.wait()
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
