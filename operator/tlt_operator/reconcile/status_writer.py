"""Writes a job's status: soon when something happened, seldom when only counters moved, never when nothing changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from tlt_operator.clients.kube import JOB
from tlt_operator.errors import OperatorError
from tlt_operator.plan.status import significant
from tlt_operator.reconcile.backoff import Backoff
from tlt_operator.reconcile.context import Context

LOOK = 0.1
FIRST_RETRY = 1.0

MakeStatus = Callable[[Mapping[str, Any]], Mapping[str, Any]]

logger = logging.getLogger(__name__)


class StatusWriter:
    """The status of one job; `current` is the last one that was made, at first what the API server has.

    A status is made from the last offer only when there is time to look at it, not at every pass.
    """

    def __init__(self, context: Context, *, namespace: str, name: str, current: Mapping[str, Any]) -> None:
        self._context = context
        self._namespace = namespace
        self._name = name
        self._written: Mapping[str, Any] | None = None
        self._written_at = float("-inf")
        self._make: MakeStatus | None = None
        self.current: Mapping[str, Any] = current

    def offer(self, make: MakeStatus) -> None:
        """How to make the status that should be there, from the one before."""
        self._make = make

    async def run(self) -> None:
        """Runs until cancelled."""
        made, backoff = False, Backoff(first=FIRST_RETRY)
        while True:
            await asyncio.sleep(LOOK)
            if self._make is not None:
                self.current, self._make, made = self._make(self.current), None, True
            if not made or not self._due():
                continue
            status = self.current
            try:
                await self._context.kube.patch_status(JOB, namespace=self._namespace, name=self._name, status=status)
            except OperatorError as error:  # when the job is gone, whoever runs this will soon hear of it
                logger.warning("Status of %s/%s was not written: %s", self._namespace, self._name, error)
                await asyncio.sleep(backoff.next(error))
                continue
            backoff.reset()
            self._written, self._written_at = status, self._context.clock.steady()
            job = f"{self._namespace}/{self._name}"
            self._context.metrics.api_writes.labels(job=job, kind="TLTJob").inc()

    def _due(self) -> bool:
        if self._written is None:
            return True
        if self.current == self._written:
            return False
        since = self._context.clock.steady() - self._written_at
        settings = self._context.settings
        if significant(self.current) != significant(self._written):
            return since >= settings.status_interval
        return since >= settings.counter_interval
