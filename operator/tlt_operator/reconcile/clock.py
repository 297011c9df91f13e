"""The clocks of the operator: for durations, for what is written down, and for what its own work costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, kw_only=True)
class Clock:
    """`steady` only runs forward and has no date; `wall` is seconds since 1970; `processor` is the time of this thread.

    The event loop has one thread, so `processor` tells what a piece of code without `await` costs, however busy the
    machine is with other things.
    """

    steady: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    processor: Callable[[], float] = time.thread_time

    def timestamp(self) -> str:
        """Now, as RFC 3339 in whole seconds."""
        return datetime.fromtimestamp(self.wall(), tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def precise_timestamp(self) -> str:
        """Now, as RFC 3339 with microseconds (MicroTime)."""
        return datetime.fromtimestamp(self.wall(), tz=UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
