"""How far the open batches are, and long polls on it."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tlt_workloads.contract import GatewayBackend, GatewayState


class Pulse:
    """A sequence number that grows with each change and wakes those who wait for the next."""

    def __init__(self) -> None:
        self.sequence = 1
        self._next = asyncio.Event()

    def beat(self) -> None:
        """Something changed."""
        self.sequence += 1
        self._next.set()
        self._next = asyncio.Event()

    async def differs_from(self, sequence: int, *, within: float) -> None:
        """Returns as soon as the number differs from `sequence`, after `within` seconds at the latest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                while self.sequence == sequence:
                    await self._next.wait()


@dataclass(eq=False)
class Batch:
    """One request of a client, open until its last completion is answered."""

    size: int
    completed: int = 0


@dataclass
class Progress:
    """The gateway's counters since boot and the batches now open."""

    pulse: Pulse = field(default_factory=Pulse)
    boot: str = field(default_factory=lambda: uuid.uuid4().hex)
    requests: int = 0  # completions asked for
    retried: int = 0  # completions given to another pod
    failed: int = 0  # completions that the client did not get, its own cancellations not counted
    _open: set[Batch] = field(default_factory=set)

    @contextlib.contextmanager
    def batch(self, size: int) -> Iterator[Batch]:
        """Counts a client's request of `size` completions while it is open."""
        batch = Batch(size)
        self._open.add(batch)
        self.requests += size
        self.pulse.beat()
        try:
            yield batch
        finally:
            self._open.remove(batch)
            self.pulse.beat()

    def complete(self, batch: Batch) -> None:
        """One more completion of the batch is answered."""
        batch.completed += 1
        self.pulse.beat()

    def view(
        self,
        *,
        queued: int,
        outstanding: int,
        remaining: float | None,
        backends: Iterable[GatewayBackend],
        policy_version: int,
    ) -> GatewayState:
        """The public state."""
        return GatewayState(
            seq=self.pulse.sequence,
            boot=self.boot,
            queued=queued,
            outstanding=outstanding,
            remaining=remaining,
            batch_size=sum(batch.size for batch in self._open),
            completed=sum(batch.completed for batch in self._open),
            backends=tuple(backends),
            requests=self.requests,
            retried_requests=self.retried,
            failed_requests=self.failed,
            policy_version=policy_version,
        )
