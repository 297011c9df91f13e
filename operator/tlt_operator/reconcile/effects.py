"""Carries out actions: each in a task of its own, never two of one key at once, with back-off after a failure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from tlt_operator.errors import BusyError, FinalError, OperatorError
from tlt_operator.plan.actions import Action, GrantLease, action_key
from tlt_operator.reconcile.backoff import LONGEST_FINAL, wait_after
from tlt_operator.reconcile.clock import Clock

SETTLE = 1.0  # seconds in which the news of an action's success is on its way
BUSY_RETRY = 0.05
FIRST_RETRY = 0.5
FIRST_FINAL_RETRY = 5.0
TIDY_INTERVAL = 60.0
REMEMBERED = 600.0  # seconds that an old failure makes the next one wait longer

Key = tuple[str, str]

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _Record:
    """What is known of one key, on the steady clock."""

    task: asyncio.Task[None] | None = None
    begun: float = 0.0
    not_before: float = 0.0
    failures: int = 0
    done: Action | None = None  # the last one that succeeded
    done_at: float = float("-inf")


class Effects:
    """`perform` carries out one action; `on_failure` hears of what went wrong, once per failure."""

    def __init__(
        self,
        perform: Callable[[Action], Awaitable[None]],
        *,
        on_failure: Callable[[Action, OperatorError], None],
        wake: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._perform = perform
        self._on_failure = on_failure
        self._wake = wake
        self._clock = clock
        self._records: dict[Key, _Record] = {}
        self._tidied_at = clock.steady()

    def start(self, actions: Iterable[Action]) -> None:
        """Begins all actions that are neither under way, nor done just now, nor waiting after a failure."""
        now = self._clock.steady()
        for action in actions:
            key = action_key(action)
            record = self._records.setdefault(key, _Record())
            # A grant needs no such pause: `pending` tells the decision of it until the pod's next answer does.
            settles = action == record.done and not isinstance(action, GrantLease)
            settling = settles and now < record.done_at + SETTLE
            if record.task is None and now >= record.not_before and not settling:
                record.begun = now
                record.task = asyncio.create_task(self._run(action, record), name=f"{key[0]} {key[1]}")
        if now - self._tidied_at > TIDY_INTERVAL:
            self._tidied_at = now
            self._forget(now)

    def pending(self, key: Key, *, heard: float) -> bool:
        """Whether an action is under way, or done so lately that an answer received at `heard` cannot show it."""
        record = self._records.get(key)
        if record is None:
            return False
        now = self._clock.steady()
        return record.task is not None or (record.done_at > heard and now - record.done_at < SETTLE)

    def under_way_since(self, key: Key, *, heard: float) -> float | None:
        """When an action was begun that an answer received at `heard` cannot show yet; None when there is none."""
        return self._records[key].begun if self.pending(key, heard=heard) else None

    def held_back(self, key: Key) -> bool:
        """Whether an action would not be started now, because the last one failed or it was delayed."""
        record = self._records.get(key)
        return record is not None and record.task is None and self._clock.steady() < record.not_before

    def delay(self, key: Key, seconds: float) -> None:
        """Holds back actions of this key."""
        record = self._records.setdefault(key, _Record())
        record.not_before = max(record.not_before, self._clock.steady() + seconds)

    async def close(self) -> None:
        """Cancels what is under way."""
        tasks = [record.task for record in self._records.values() if record.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, action: Action, record: _Record) -> None:
        try:
            await self._perform(action)
        except OperatorError as error:
            record.failures += 1
            record.not_before = self._clock.steady() + _retry_after(error, record.failures)
            self._on_failure(action, error)
        except Exception:
            record.failures += 1
            record.not_before = self._clock.steady() + LONGEST_FINAL
            logger.exception("%s failed in an unforeseen way", type(action).__name__)
        else:
            record.failures, record.done, record.done_at = 0, action, self._clock.steady()
        finally:
            record.task = None
            self._wake()

    def _forget(self, now: float) -> None:
        for key, record in list(self._records.items()):
            if record.task is None and now - max(record.not_before, record.done_at) > REMEMBERED:
                del self._records[key]


def _retry_after(error: OperatorError, failures: int) -> float:
    if isinstance(error, BusyError):
        return BUSY_RETRY
    first = FIRST_FINAL_RETRY if isinstance(error, FinalError) else FIRST_RETRY
    return wait_after(error, failures=failures, first=first)
