"""Runs pieces of work on pods: waits for a place, sends, and tries another pod when one dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from tlt_workloads.gateway.dispatch import Dispatcher, Ticket
from tlt_workloads.gateway.errors import NoPodError, PodFailedError, PodUnreachableError
from tlt_workloads.gateway.outlook import Outlook
from tlt_workloads.gateway.settings import GatewaySettings
from tlt_workloads.gateway.state import Progress

logger = logging.getLogger(__name__)

Result_co = TypeVar("Result_co", covariant=True)
Result = TypeVar("Result")


class Work(Protocol[Result_co]):
    """A piece of work, tried at one pod; raises PodUnreachableError when another pod should try."""

    def __call__(self, address: str, *, attempt: int) -> Coroutine[Any, Any, Result_co]: ...


@dataclass(eq=False)
class Place:
    """A piece's place in the line; `address` is set when a pod takes the piece."""

    ticket: Ticket
    address: asyncio.Future[str]
    since: float  # event loop's clock


class Exchange:
    """Gives each piece of work to a pod, and to another when that one dies under it.

    `on_unreachable` is told the address and the reason each time.
    """

    def __init__(
        self, *, settings: GatewaySettings, progress: Progress, on_unreachable: Callable[[str, str], None]
    ) -> None:
        self.dispatcher = Dispatcher(limit=settings.concurrency)
        self.outlook = Outlook()
        self.aborts_wanted = 0  # times a client asked the pods to abort; aborted answers are then for it to see
        self._settings = settings
        self._progress = progress
        self._on_unreachable = on_unreachable
        self._line: dict[Ticket, Place] = {}
        self._at_work: dict[str, set[asyncio.Task[Any]]] = {}
        self._serving: tuple[str, ...] = ()
        self._last_served = 0.0

    def serve(self, addresses: Iterable[str]) -> None:
        """Sets the pods that take new work, and fails what has waited too long without any."""
        now = asyncio.get_running_loop().time()
        if self._serving:
            self._last_served = now
        self._serving = tuple(addresses)
        self.dispatcher.serve(self._serving)
        if self._serving:
            self._start_what_can()
        else:
            self._expire(now)

    def give_up(self, address: str) -> None:
        """The pod is silent: its work in flight goes to other pods."""
        for task in self._at_work.get(address, ()):
            task.cancel()

    async def run(self, work: Work[Result]) -> Result:
        """One piece of work, at as many pods as it takes.

        Raises:
            NoPodError: no pod served for as long as the settings allow.
            PodFailedError: as many pods failed as the settings allow.
        """
        failures: list[str] = []
        async with self._in_line() as place:
            while True:
                address = await place.address
                try:
                    with self.outlook.work(clock=asyncio.get_running_loop().time):
                        return await self._at(address, work(address, attempt=len(failures)))
                except PodUnreachableError as failure:
                    logger.warning("a piece of work leaves its pod: %s", failure)
                    self._on_unreachable(address, failure.reason)
                    failures.append(str(failure))
                if len(failures) >= self._settings.attempts:
                    raise PodFailedError(f"{len(failures)} attempts failed, the last one: {failures[-1]}")
                self._progress.retried += 1
                self._wait_again(place)

    @contextlib.asynccontextmanager
    async def _in_line(self) -> AsyncIterator[Place]:
        loop = asyncio.get_running_loop()
        place = Place(self.dispatcher.submit(), loop.create_future(), loop.time())
        self._line[place.ticket] = place
        self._start_what_can()
        try:
            yield place
        finally:
            del self._line[place.ticket]
            self.dispatcher.finish(place.ticket)
            if not self._line:
                self.outlook.end_step()
            self._start_what_can()

    def _wait_again(self, place: Place) -> None:
        loop = asyncio.get_running_loop()
        place.address, place.since = loop.create_future(), loop.time()
        self.dispatcher.put_back(place.ticket)
        self._start_what_can()

    async def _at(self, address: str, work: Coroutine[Any, Any, Result]) -> Result:
        """Awaits work at a pod; ends early when the pod is given up."""
        task = asyncio.create_task(work)
        at_work = self._at_work.setdefault(address, set())
        at_work.add(task)
        try:
            await asyncio.wait({task})
            if task.cancelled():
                raise PodUnreachableError(address, "silent for too long")
            return task.result()
        finally:
            task.cancel()
            at_work.discard(task)

    def _start_what_can(self) -> None:
        for assignment in self.dispatcher.assign():
            place = self._line[assignment.ticket]
            if not place.address.done():  # done: its client has gone, and it leaves the line in a moment
                place.address.set_result(assignment.address)
        self._progress.pulse.beat()

    def _expire(self, now: float) -> None:
        patience = self._settings.patience
        for place in self._line.values():
            if not place.address.done() and now - max(place.since, self._last_served) >= patience:
                message = f"no rollout pod behind {self._settings.backend} was ready for {patience:.0f} s"
                place.address.set_exception(NoPodError(message))
