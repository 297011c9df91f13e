"""The recorder: one thread that turns steps into shards in the store, within a budget, and never holds the engine up.

What does not fit is dropped and counted: steps when the thread is behind, sequences over the budget of a policy
version, shards older than the pod's share of the ring.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tlt_workloads.contract import CaptureSettings
from tlt_workloads.rollout.capture import StepRows
from tlt_workloads.rollout.sequences import SequenceTable
from tlt_workloads.shards import CapturedSequence, ShardMetadata, shard_entries, write_shard
from tlt_workloads.store import Store

logger = logging.getLogger("vllm.tlt")

PENDING_BYTES = 256 << 20  # steps that wait for the thread
OPEN_BYTES = 4 << 30  # buffers of running requests
SHARD_TOKENS = 4096  # a shard is written when this many rows are ready ...
SHARD_DELAY = 0.2  # ... or nothing has come for this long: an idle pod's data must be there when training begins

Count = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where shards go and what is said of them."""

    store: Store
    folder: str
    metadata: ShardMetadata
    settings: CaptureSettings


class ShardRecorder:
    """`capture.Recorder` over a thread.

    Args:
        count: adds to a named total (tokens, bytes, dropped_tokens, sequences, shards).
    """

    def __init__(self, *, count: Count) -> None:
        self._count = count
        self._queue: queue.SimpleQueue[StepRows | tuple[str, ...] | Destination | None] = queue.SimpleQueue()
        self._pending = _Gauge()
        self._thread = threading.Thread(target=self._run, name="tlt-recorder", daemon=True)
        self._writer = _Writer(count=count)
        self._table = SequenceTable()
        self._thread.start()

    def direct(self, destination: Destination) -> None:
        """From now on shards go there."""
        self._queue.put(destination)

    def offer(self, step: StepRows) -> bool:
        """Takes a step, or drops it when too much waits already."""
        if self._pending.value + step.size > PENDING_BYTES:
            self._count("dropped_tokens", sum(step.counts))
            return False
        self._pending.add(step.size)
        self._queue.put(step)
        return True

    def finish(self, requests: tuple[str, ...]) -> None:
        """Requests that are over."""
        self._queue.put(requests)

    def stop(self, *, timeout: float = 5.0) -> None:
        """Writes what is ready and ends the thread."""
        self._queue.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=SHARD_DELAY if self._writer.waiting else None)
            except queue.Empty:
                self._writer.flush()
                continue
            try:
                if item is None:
                    self._writer.flush()
                    return
                self._take(item)
            except Exception:  # a full disk must not end the capture, nor the engine
                logger.exception("capture: lost what was at hand")

    def _take(self, item: StepRows | tuple[str, ...] | Destination) -> None:
        if isinstance(item, Destination):
            self._writer.direct(item)
        elif isinstance(item, StepRows):
            try:
                if item.copied is not None:
                    item.copied.synchronize()
                self._count("dropped_tokens", self._table.add(item, admit=self._admitted(item)))
            finally:
                self._pending.add(-item.size)
        else:
            for request in item:
                if sequence := self._table.close(request):
                    self._writer.add(sequence)

    def _admitted(self, step: StepRows) -> frozenset[str]:
        if not step.new or not self._writer.wants(step.policy_version):
            return frozenset()
        if self._table.size > OPEN_BYTES:
            self._count("dropped_tokens", sum(len(step.new[name].prompt_ids) for name in step.new))
            return frozenset()
        return frozenset(name for name in step.new if self._writer.samples(name))


class _Writer:
    """Finished sequences on their way into shards."""

    def __init__(self, *, count: Count) -> None:
        self._count = count
        self._destination: Destination | None = None
        self._ring: deque[tuple[str, int]] = deque()  # path and bytes, oldest first
        self._ring_bytes = 0
        self._number = 0
        self._ready: list[CapturedSequence] = []
        self._recorded: dict[int, int] = {}  # rows by policy version

    @property
    def waiting(self) -> bool:
        return bool(self._ready)

    def direct(self, destination: Destination) -> None:
        self.flush()
        moved = self._destination is None or (destination.store.url, destination.folder) != (
            self._destination.store.url,
            self._destination.folder,
        )
        self._destination = destination
        if moved:
            entries = shard_entries(destination.store, destination.folder)
            self._ring = deque((entry.path, entry.size) for entry in entries)
            self._ring_bytes = sum(entry.size for entry in entries)
            self._number = entries[-1].number + 1 if entries else 0
        self._trim()

    def wants(self, policy_version: int) -> bool:
        """Whether sequences of this policy are still within its budget."""
        if self._destination is None or not self._destination.settings.enabled:
            return False
        return self._recorded.get(policy_version, 0) < self._destination.settings.max_tokens_per_step

    def samples(self, request: str) -> bool:
        """Whether the lot falls on this request; the same request always gets the same answer."""
        assert self._destination is not None
        return zlib.crc32(request.encode()) < self._destination.settings.sample_rate * 2**32

    def add(self, sequence: CapturedSequence) -> None:
        rows = len(sequence.hidden_states)
        if not self.wants(sequence.policy_version):
            self._count("dropped_tokens", rows)
            return
        if self._ready and self._ready[0].policy_version != sequence.policy_version:
            self.flush()
        self._recorded[sequence.policy_version] = self._recorded.get(sequence.policy_version, 0) + rows
        self._ready.append(sequence)
        if sum(len(ready.hidden_states) for ready in self._ready) >= SHARD_TOKENS:
            self.flush()

    def flush(self) -> None:
        if not self._ready or self._destination is None:
            return
        ready, self._ready = self._ready, []
        tokens = sum(len(sequence.hidden_states) for sequence in ready)
        began = time.monotonic()
        try:
            path = write_shard(
                self._destination.store,
                self._destination.folder,
                number=self._number,
                sequences=ready,
                metadata=self._destination.metadata,
            )
            size = self._destination.store.size(path)
        except Exception:  # any store may fail in its own way
            self._count("dropped_tokens", tokens)
            logger.exception("capture: shard %d of %d tokens could not be written", self._number, tokens)
            return
        self._number += 1
        self._ring.append((path, size))
        self._ring_bytes += size
        for total, amount in (("tokens", tokens), ("bytes", size), ("sequences", len(ready)), ("shards", 1)):
            self._count(total, amount)
        logger.info("capture: %s, %d tokens in %.0f ms", path, tokens, (time.monotonic() - began) * 1e3)
        self._trim()

    def _trim(self) -> None:
        assert self._destination is not None
        while len(self._ring) > 1 and self._ring_bytes > self._destination.settings.max_bytes:
            path, size = self._ring.popleft()
            self._ring_bytes -= size
            self._destination.store.remove(path)


class _Gauge:
    """A number that two threads change."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0

    def add(self, amount: int) -> None:
        with self._lock:
            self.value += amount
