"""Finished sequences on their way into shards, and what becomes of them when the store does not take them.

A failing store costs the tokens at hand and nothing else: they are counted by reason, the log says once what is wrong
and once that it is over, and every further shard is a new try.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tlt_workloads.contract import CaptureSettings, ElementType
from tlt_workloads.rollout.budget import StepBudget
from tlt_workloads.rollout.capture import Count
from tlt_workloads.rollout.counters import Drop
from tlt_workloads.rollout.ring import ShardRing
from tlt_workloads.shards import CapturedSequence, ShardEntry, ShardMetadata, write_shard
from tlt_workloads.store import Store, StoreProblem, store_problem

logger = logging.getLogger("vllm.tlt")

SHARD_TOKENS = 4096  # a shard is written when this many rows are ready
_DROPS = {
    StoreProblem.FULL: Drop.STORE_FULL,
    StoreProblem.READ_ONLY: Drop.STORE_READ_ONLY,
    StoreProblem.DENIED: Drop.STORE_DENIED,
    StoreProblem.GONE: Drop.STORE_GONE,
    StoreProblem.FAILED: Drop.STORE_FAILED,
}


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where shards go and what is said of them."""

    store: Store
    folder: str
    metadata: ShardMetadata
    settings: CaptureSettings


class ShardWriter:
    """Keeps to the budgets of the store and of each policy version.  Used by one thread."""

    def __init__(self, destination: Destination, *, count: Count) -> None:
        self._destination = destination
        self._count = count
        self._ring: ShardRing | None = None  # unknown until the store could be listed
        self._budget: StepBudget | None = None
        self._version = -1
        self._row_shape = (0, 0)  # layers, hidden
        self._ready: list[CapturedSequence] = []
        self._outage: StoreProblem | None = None
        self._lost_in_outage = 0

    @property
    def is_waiting(self) -> bool:
        """Whether sequences are ready that are not written."""
        return bool(self._ready)

    def wants(self, policy_version: int) -> bool:
        """Whether anything of this version could still be kept.  May be asked by any thread."""
        budget = self._budget
        return budget is None or policy_version != self._version or not budget.is_used_up

    def redirect(self, destination: Destination) -> None:
        """From now on shards go there; what this version has used stays used."""
        self.flush()
        moved = (destination.store.url, destination.folder) != (
            self._destination.store.url,
            self._destination.folder,
        )
        self._destination = destination
        if moved:
            self._ring = None
        if self._budget is not None:
            self._budget.rows = self._budget_rows()
        with contextlib.suppress(Exception):  # a store that fails now is asked again with the next shard
            self._find_ring().trim(destination.settings.max_bytes)

    def add(self, sequence: CapturedSequence, *, running: Sequence[int]) -> None:
        """Takes a finished sequence or drops it; `running` are the rows so far of those that are not finished."""
        rows = len(sequence.hidden_states)
        budget = self._budget_of(sequence)
        if not budget.keeps(rows, running=running):
            self._count(Drop.STEP_BUDGET.total, rows)
            return
        if self._ready and self._ready[0].policy_version != sequence.policy_version:
            self.flush()
        self._ready.append(sequence)
        if sum(len(ready.hidden_states) for ready in self._ready) >= SHARD_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Writes what is ready; never raises."""
        if not self._ready:
            return
        ready, self._ready = self._ready, []
        tokens = sum(len(sequence.hidden_states) for sequence in ready)
        began = time.monotonic()
        try:
            entry = self._write(ready)
        except Exception as error:  # noqa: BLE001 - any store may fail in its own way
            self._note_failure(error, tokens)
            return
        for total, amount in (("tokens", tokens), ("bytes", entry.size), ("sequences", len(ready)), ("shards", 1)):
            self._count(total, amount)
        self._note_success()
        logger.info("capture: %s, %d tokens in %.0f ms", entry.path, tokens, (time.monotonic() - began) * 1e3)
        with contextlib.suppress(Exception):  # what cannot be removed now is removed after the next shard
            self._find_ring().trim(self._destination.settings.max_bytes)

    def _write(self, sequences: Sequence[CapturedSequence]) -> ShardEntry:
        ring = self._find_ring()
        try:
            entry = self._write_once(ring, sequences)
        except OSError as error:
            # The store may be smaller than the ring was told to be: then old shards make room for new ones.
            needed = sum(item.hidden_states.nbytes for item in sequences)
            if store_problem(error) is not StoreProblem.FULL or not ring.make_room(needed):
                raise
            entry = self._write_once(ring, sequences)
        ring.add(entry)
        return entry

    def _write_once(self, ring: ShardRing, sequences: Sequence[CapturedSequence]) -> ShardEntry:
        return write_shard(
            self._destination.store,
            self._destination.folder,
            number=ring.next_number,
            sequences=sequences,
            metadata=self._destination.metadata,
            element_type=self._destination.settings.element_type,
        )

    def _find_ring(self) -> ShardRing:
        if self._ring is None:
            self._ring = ShardRing(self._destination.store, self._destination.folder)
        return self._ring

    # -- budget ----------------------------------------------------------------------------------------------------

    def _budget_of(self, sequence: CapturedSequence) -> StepBudget:
        if self._budget is None or sequence.policy_version != self._version:
            _, layers, hidden = sequence.hidden_states.shape
            self._row_shape = (layers, hidden)
            before = () if self._budget is None else tuple(self._budget.finished)
            self._budget = StepBudget(self._budget_rows(), before=before)
            self._version = sequence.policy_version
        return self._budget

    def _budget_rows(self) -> int:
        settings, (layers, hidden) = self._destination.settings, self._row_shape
        row_bytes = layers * (hidden + 4) if settings.element_type is ElementType.FLOAT8 else layers * hidden * 2
        return min(settings.max_tokens_per_step, settings.max_bytes_per_step // row_bytes)

    # -- outages ---------------------------------------------------------------------------------------------------

    def _note_failure(self, error: Exception, tokens: int) -> None:
        problem = store_problem(error)
        self._count(_DROPS[problem].total, tokens)
        self._lost_in_outage += tokens
        if problem is StoreProblem.GONE:
            self._ring = None  # what comes back may hold other shards than what went
        if self._outage is not problem:
            self._outage = problem
            logger.warning(
                "capture: nothing is recorded for now; %s (%s: %s)", problem.value, type(error).__name__, error
            )

    def _note_success(self) -> None:
        if self._outage is not None:
            logger.warning("capture: the store works again; %d tokens were lost meanwhile", self._lost_in_outage)
            self._outage, self._lost_in_outage = None, 0
