"""The engine asleep while its GPU is lent in memory mode `Sleep`.

Whoever needs the engine waits for `wake`; a lease in this mode counts only while the engine is `ASLEEP`, because before
that its memory is not free.  A wake-up that fails is tried again for ever, each time after a longer pause: the memory
may still belong to a trainer that is being killed.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable

from tlt_workloads.rollout.engine import Engine

logger = logging.getLogger("vllm.tlt")

FIRST_RETRY = 0.25  # seconds
LAST_RETRY = 10.0


class SlumberState(enum.Enum):
    """Between `AWAKE` and `ASLEEP` nobody may use the engine, and its memory is not free either."""

    AWAKE = "awake"
    FALLING_ASLEEP = "falling asleep"
    ASLEEP = "asleep"
    WAKING = "waking"


class Slumber:
    """Puts the engine to sleep and wakes it, one after the other however many ask; `on_change` hears of each state."""

    def __init__(self, engine: Engine, *, on_change: Callable[[], None]) -> None:
        self._engine = engine
        self._on_change = on_change
        self._turn = asyncio.Lock()
        self._waking: asyncio.Task[None] | None = None
        self.state = SlumberState.AWAKE

    @property
    def is_awake(self) -> bool:
        """Whether the engine can compute."""
        return self.state is SlumberState.AWAKE

    async def fall_asleep(self, *, wanted: Callable[[], bool]) -> None:
        """Gives the engine's memory back; returns when it is free, or when it is no longer `wanted`.

        Raises:
            Exception: the engine's own; what it has done by then is unknown, so it is being woken.
        """
        async with self._turn:
            if self.state is not SlumberState.AWAKE or not wanted():
                return
            self._set(SlumberState.FALLING_ASLEEP)
            try:
                await self._engine.sleep()
            except BaseException:
                self.begin_to_wake()
                raise
            self._set(SlumberState.ASLEEP)

    def begin_to_wake(self) -> None:
        """Wakes the engine in the background; nothing happens when it is awake or about to be."""
        if not self.is_awake and (self._waking is None or self._waking.done()):
            self._waking = asyncio.get_running_loop().create_task(self._wake(), name="wake the engine")

    async def wake(self, *, limit: float) -> None:
        """Returns when the engine can compute.

        Raises:
            TimeoutError: it cannot after so many seconds; it is tried on.
        """
        self.begin_to_wake()
        if self._waking is not None and not self._waking.done():
            async with asyncio.timeout(limit):
                await asyncio.shield(self._waking)

    async def _wake(self) -> None:
        pause = FIRST_RETRY
        async with self._turn:
            self._set(SlumberState.WAKING)
            while True:
                try:
                    await self._engine.wake()
                except Exception:
                    logger.exception("the engine did not wake; again in %.2f s", pause)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LAST_RETRY)
                else:
                    break
            self._set(SlumberState.AWAKE)

    def _set(self, state: SlumberState) -> None:
        self.state = state
        self._on_change()
