"""One open long poll per pod, and the last answer of each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from tlt_operator.errors import (
    IncompatibleError,
    NotFoundError,
    OperatorError,
    UnauthorizedError,
)
from tlt_operator.plan.snapshot import Fault
from tlt_operator.reconcile.clock import Clock

PACE = 0.01  # seconds between two polls of one pod: a pod that changes all the time must not fill the loop
FIRST_RETRY = 0.25
LAST_RETRY = 5.0

logger = logging.getLogger(__name__)


class Numbered(Protocol):
    """What every long-polled state has."""

    @property
    def seq(self) -> int: ...
    @property
    def boot(self) -> str: ...


State = TypeVar("State", bound=Numbered)


@dataclass(kw_only=True)
class Answer(Generic[State]):
    """The last answer of one pod; `received` and `since` are on the steady clock, `version` grows with each change."""

    since: float  # the pod was first asked
    state: State | None = None
    received: float | None = None
    fault: Fault | None = None
    message: str = ""
    version: int = 0

    def age(self, now: float) -> float:
        """Seconds since the answer; infinite when there was none."""
        return now - self.received if self.received is not None else float("inf")

    @property
    def silent_since(self) -> float:
        """When the last sign of life came, or the first question went out."""
        return self.received if self.received is not None else self.since


class Answers(Generic[State]):
    """Asks all pods that it was told to follow, each in a task of its own, and calls `wake` at each change."""

    def __init__(
        self,
        ask: Callable[[str, int], Awaitable[State]],
        *,
        wake: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._ask = ask
        self._wake = wake
        self._clock = clock
        self._answers: dict[str, Answer[State]] = {}
        self._tasks: dict[str, tuple[str, asyncio.Task[None]]] = {}

    def follow(self, wanted: Mapping[str, str]) -> None:
        """Asks exactly these pods (uid -> URL) from now on."""
        for uid, (url, task) in list(self._tasks.items()):
            if wanted.get(uid) != url or task.done():
                task.cancel()
                del self._tasks[uid]
        for uid in [uid for uid in self._answers if uid not in wanted]:
            del self._answers[uid]
        for uid, url in wanted.items():
            if uid not in self._tasks:
                answer = self._answers.setdefault(uid, Answer(since=self._clock.steady()))
                self._tasks[uid] = (url, asyncio.create_task(self._follow(url, answer), name=f"poll {url}"))

    def ask_anew(self, uids: Iterable[str]) -> None:
        """Asks these pods now instead of when they have something to say; what they answered stays until then."""
        for uid in self._tasks.keys() & set(uids):
            url, task = self._tasks[uid]
            task.cancel()
            self._tasks[uid] = (url, asyncio.create_task(self._follow(url, self._answers[uid]), name=f"poll {url}"))

    def get(self, uid: str) -> Answer[State] | None:
        """The last answer of a pod, None when it is not followed."""
        return self._answers.get(uid)

    async def close(self) -> None:
        """Asks nobody any more."""
        tasks = [task for _, task in self._tasks.values()]
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, url: str, answer: Answer[State]) -> None:
        seq, retry = 0, FIRST_RETRY
        while True:
            try:
                state = await self._ask(url, seq)
            except OperatorError as error:
                changed = answer.fault is None or answer.state is None
                answer.fault, answer.message = _fault_of(error), str(error)
                answer.version += 1
                seq = 0
                if changed:
                    self._wake()
                await asyncio.sleep(retry)
                retry = min(2 * retry, LAST_RETRY)
                continue
            except Exception:
                logger.exception("Polling %s failed in an unforeseen way", url)
                await asyncio.sleep(LAST_RETRY)
                continue
            before, faulty = answer.state, answer.fault is not None
            answer.state, answer.received, answer.fault, answer.message = state, self._clock.steady(), None, ""
            answer.version += 1
            if before is None or faulty or (before.seq, before.boot) != (state.seq, state.boot):
                self._wake()
            seq, retry = state.seq, FIRST_RETRY
            await asyncio.sleep(PACE)


def _fault_of(error: OperatorError) -> Fault:
    match error:
        case NotFoundError():
            return Fault.ROUTE_MISSING
        case UnauthorizedError():
            return Fault.TOKEN_REFUSED
        case IncompatibleError():
            return Fault.INCOMPATIBLE
        case _:
            return Fault.UNREACHABLE


async def cancel(*tasks: asyncio.Task[None]) -> None:
    """Cancels tasks and waits until they have ended."""
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)
