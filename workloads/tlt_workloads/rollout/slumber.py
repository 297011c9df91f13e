"""The engine asleep while its GPU is lent in memory mode `Sleep`."""

from __future__ import annotations

import asyncio

from tlt_workloads.rollout.engine import Engine


class Slumber:
    """Puts the engine to sleep and wakes it; both may be asked for at once and happen in order."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = asyncio.Lock()
        self.asleep = False

    async def fall_asleep(self) -> None:
        """Gives the engine's memory back; returns when it is free."""
        async with self._turn:
            if not self.asleep:
                self.asleep = True
                await self._engine.sleep()

    async def wake(self) -> None:
        """Takes the memory again; returns when the engine can compute."""
        async with self._turn:
            if self.asleep:
                await self._engine.wake()
                self.asleep = False
