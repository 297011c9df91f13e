"""The one way in which tests wait: ask again until a deadline, and show the last answer when it passes."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

Value = TypeVar("Value")


def eventually(
    probe: Callable[[], Value], *, deadline: float = 10.0, every: float = 0.02, reason: str = "the condition"
) -> Value:
    """Calls `probe` until it answers something true, for at most `deadline` seconds; an AssertionError counts as false.

    Raises:
        AssertionError: the deadline passed; the message holds the last answer.
    """
    end = time.monotonic() + deadline
    while True:
        last = _ask(probe)
        if last and not isinstance(last, AssertionError):
            answer: Value = last
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"{reason} did not come true within {deadline} s; last answer: {last!r}")
        time.sleep(every)


async def eventually_async(
    probe: Callable[[], Awaitable[Value] | Value],
    *,
    deadline: float = 10.0,
    every: float = 0.02,
    reason: str = "the condition",
) -> Value:
    """The same inside an event loop; `probe` may be a coroutine function."""
    end = time.monotonic() + deadline
    while True:
        last = _ask(probe)
        if inspect.isawaitable(last):
            try:
                last = await last
            except AssertionError as failure:
                last = failure
        if last and not isinstance(last, AssertionError):
            return last  # type: ignore[no-any-return]
        if time.monotonic() > end:
            raise AssertionError(f"{reason} did not come true within {deadline} s; last answer: {last!r}")
        await asyncio.sleep(every)


def _ask(probe: Callable[[], Any]) -> Any:
    try:
        return probe()
    except AssertionError as failure:
        return failure
