"""Totals that the engine core reports with every step: requests, tokens, and gaps between steps.

vLLM's stat-logger plugin; it lives in the API process.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats


@dataclass
class EngineTotals:
    """What this process has heard from the engine core since boot."""

    running: int = 0
    waiting: int = 0
    generated_tokens: int = 0
    steps: int = 0
    last_step_at: float | None = None
    _longest_gap: float | None = None

    def watch_gaps(self) -> None:
        """Starts to look for the longest pause between two steps of a working engine."""
        self._longest_gap = 0.0

    def longest_gap(self) -> float | None:
        """The longest pause since `watch_gaps`, in seconds; stops looking."""
        longest, self._longest_gap = self._longest_gap, None
        return longest

    def note_step(self, *, running: int, now: float) -> None:
        """A step of the engine was heard of."""
        if self._longest_gap is not None and self.last_step_at is not None and self.running > 0:
            self._longest_gap = max(self._longest_gap, now - self.last_step_at)
        self.steps += 1
        self.running = running
        self.last_step_at = now


TOTALS = EngineTotals()  # vLLM builds its loggers itself and keeps them private, so they meet the routes here


class TltStats(StatLoggerBase):  # type: ignore[misc]  # vLLM is not typed for us
    """Adds each report of the engine core to `TOTALS`."""

    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
        self._engine_index = engine_index

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        """Called once per step and engine."""
        if scheduler_stats is not None:
            TOTALS.note_step(running=scheduler_stats.num_running_reqs, now=time.monotonic())
            TOTALS.waiting = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
        if iteration_stats is not None:
            TOTALS.generated_tokens += iteration_stats.num_generation_tokens

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
