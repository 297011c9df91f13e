"""Observes the StatefulSet of a pool, and why its controller cannot make pods."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from tlt_operator.api.job import Job
from tlt_operator.api.pod import Pod
from tlt_operator.api.pool_set import PoolSet, parse_pool_set
from tlt_operator.clients.kube import EVENT, STATEFUL_SET
from tlt_operator.errors import OperatorError
from tlt_operator.manifests.pool import pool_digest, pool_selector
from tlt_operator.plan.snapshot import PoolView
from tlt_operator.reconcile.context import Context
from tlt_operator.reconcile.objects import Objects

FIRST_LOOK = 2.0  # seconds that pods may be missing before their controller's Events are read
LOOK = 15.0

logger = logging.getLogger(__name__)


class PoolMemories(Protocol):
    """What was done about the pool lately that the watches may not show yet."""

    @property
    def removed(self) -> frozenset[str]: ...
    @property
    def generation(self) -> int | None: ...
    @property
    def refusal(self) -> str | None: ...


class PoolObserver:
    """The pool of one job; calls `wake` at each change."""

    def __init__(self, context: Context, job: Job, *, wake: Callable[[], None]) -> None:
        self._context = context
        self._namespace = job.namespace
        self._wake = wake
        self._sets: Objects[PoolSet] = Objects(
            context.kube,
            STATEFUL_SET,
            namespace=job.namespace,
            labels=pool_selector(job),
            parse=parse_pool_set,
            wake=wake,
        )
        self._short_of = asyncio.Event()  # pods are missing
        self._refusal: str | None = None
        self._wanted: tuple[Job, str] | None = None

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        """What must run for as long as the pool is observed."""
        return [self._sets.follow(), self._ask_why_pods_are_missing()]

    @property
    def synced(self) -> bool:
        """Whether the StatefulSet, or that there is none, has been seen once."""
        return self._sets.synced

    @property
    def version(self) -> int:
        """Grows with each change of the StatefulSet."""
        return self._sets.version

    def owns(self, pod: Pod) -> bool:
        """Whether a pod is the pool's: labels alone could be anybody's."""
        return any(pod.controller == found.uid for found in self._sets.all())

    def view(self, job: Job, *, pods: int, memories: PoolMemories) -> PoolView | None:
        """The pool as of now, of which `pods` pods exist; None when the job has none any more."""
        pool = job.spec.rollout.pool
        if pool is None:
            return None
        if self._wanted is None or self._wanted[0] is not job:
            self._wanted = (job, pool_digest(job, pool, settings=self._context.settings))
        found = next(iter(self._sets.all()), None)
        if found is not None and pods < found.replicas:
            self._short_of.set()
        else:
            self._short_of.clear()
            self._refusal = None
        return PoolView(
            wanted=self._wanted[1],
            found=found,
            drifted=found is not None and found.generation != memories.generation,
            removed=memories.removed,
            refusal=memories.refusal or self._refusal,
        )

    async def _ask_why_pods_are_missing(self) -> None:
        """The controller tells nowhere but in Events why it cannot make a pod."""
        while True:
            await self._short_of.wait()
            await asyncio.sleep(FIRST_LOOK)
            while self._short_of.is_set():
                await self._read_refusal()
                await asyncio.sleep(LOOK)

    async def _read_refusal(self) -> None:
        found = next(iter(self._sets.all()), None)
        if found is None:
            return
        fields = f"regarding.uid={found.uid},reason=FailedCreate"
        try:
            events = await self._context.kube.list_all(EVENT, namespace=self._namespace, fields=fields)
        except OperatorError as error:
            logger.warning("Could not read why pods are missing in %s: %s", self._namespace, error)
            return
        newest = max(events, key=_last_seen, default=None)
        refusal = newest.get("note") if newest is not None else None
        if self._short_of.is_set() and refusal != self._refusal:
            self._refusal = refusal
            self._wake()


def _last_seen(event: dict[str, Any]) -> str:
    series = event.get("series") or {}
    return str(
        series.get("lastObservedTime")
        or event.get("deprecatedLastTimestamp")
        or event.get("eventTime")
        or event["metadata"]["creationTimestamp"]
    )
