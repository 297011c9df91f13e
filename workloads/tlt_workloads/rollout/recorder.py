"""The recorder: one thread that turns steps into shards in the store, within budgets, and never holds the engine up.

What does not fit is dropped and counted by reason: steps when the thread is behind, requests when too many long ones
run at once, sequences over the budget of a policy version, shards that the store does not take.
"""

from __future__ import annotations

import logging
import queue
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tlt_workloads.rollout.capture import Count, StepRows
from tlt_workloads.rollout.counters import Drop
from tlt_workloads.rollout.sequences import SequenceTable
from tlt_workloads.rollout.shard_writer import Destination, ShardWriter

logger = logging.getLogger("vllm.tlt")

PENDING_BYTES = 256 << 20  # steps that wait for the thread
OPEN_BYTES = 4 << 30  # buffers of running requests
SHARD_DELAY = 0.2  # seconds without news until what is ready is written: an idle pod's data must be there for training


@dataclass(frozen=True, kw_only=True)
class _Ended:
    """Requests that are over, or of which no more will come."""

    requests: Sequence[str]
    torn: bool = False  # a step is missing


class ShardRecorder:
    """`capture.Recorder` over a thread.

    Args:
        count: adds to a named total (tokens, bytes, sequences, shards, and `Drop`s); called by two threads.
    """

    def __init__(self, *, count: Count) -> None:
        self._count = count
        self._queue: queue.SimpleQueue[StepRows | _Ended | Destination | None] = queue.SimpleQueue()
        self._pending = _Gauge()
        self._is_behind = False
        self._destination: Destination | None = None
        self._writer: ShardWriter | None = None
        self._table = SequenceTable()
        self._thread = threading.Thread(target=self._run, name="tlt-recorder", daemon=True)
        self._thread.start()

    def direct(self, destination: Destination) -> None:
        """From now on shards go there."""
        self._destination = destination
        self._queue.put(destination)

    def admits(self, request: str, *, policy_version: int) -> bool:
        """Whether a new request is to be recorded: by lot, and while there is a use for it."""
        destination, writer = self._destination, self._writer
        if destination is None or not destination.settings.enabled:
            return False
        if writer is not None and not writer.wants(policy_version):
            return False
        return zlib.crc32(request.encode()) < destination.settings.sample_rate * 2**32

    def offer(self, step: StepRows) -> bool:
        """Takes a step, or drops it when too much waits already."""
        if self._pending.value + step.size > PENDING_BYTES:
            self._count(Drop.BEHIND.total, sum(step.counts))
            if not self._is_behind:
                self._is_behind = True
                logger.warning("capture: the store or this machine is slower than the engine, steps are dropped")
            return False
        self._is_behind = False
        self._pending.add(step.size)
        self._queue.put(step)
        return True

    def abandon(self, requests: tuple[str, ...]) -> None:
        """Requests with a missing step; what is certain of them is kept."""
        self._queue.put(_Ended(requests=requests, torn=True))

    def finish(self, requests: tuple[str, ...]) -> None:
        """Requests that are over."""
        self._queue.put(_Ended(requests=requests))

    def stop(self, *, timeout: float = 5.0) -> None:
        """Writes what is ready and ends the thread."""
        self._queue.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            waiting = self._writer is not None and self._writer.is_waiting
            try:
                item = self._queue.get(timeout=SHARD_DELAY if waiting else None)
            except queue.Empty:
                assert self._writer is not None
                self._writer.flush()
                continue
            if item is None:
                if self._writer is not None:
                    self._writer.flush()
                return
            try:
                self._take(item)
            except Exception:  # a defect here must not end the capture, nor the engine
                logger.exception("capture: lost what was at hand")

    def _take(self, item: StepRows | _Ended | Destination) -> None:
        if isinstance(item, Destination):
            if self._writer is None:
                self._writer = ShardWriter(item, count=self._count)
            self._writer.redirect(item)
        elif isinstance(item, StepRows):
            try:
                if item.copied is not None:
                    item.copied.synchronize()
                self._close(_Ended(requests=self._table.add(self._affordable(item)), torn=True))
            finally:
                self._pending.add(-item.size)
        else:
            self._close(item)

    def _affordable(self, step: StepRows) -> StepRows:
        """The step without its new requests when there is no memory for more."""
        if step.new and self._table.size > OPEN_BYTES:
            self._count(Drop.MEMORY.total, sum(len(request.prompt_ids) for request in step.new.values()))
            return replace(step, new={})
        return step

    def _close(self, ended: _Ended) -> None:
        for request in ended.requests:
            sequence = self._table.close(request, cut=ended.torn)
            if sequence is not None and self._writer is not None:
                self._writer.add(sequence, running=self._table.lengths())


class _Gauge:
    """A number that two threads change."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0

    def add(self, amount: int) -> None:
        with self._lock:
            self.value += amount
