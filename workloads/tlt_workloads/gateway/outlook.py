"""How much longer the work in flight will take, by how long earlier work took.  Pure: the clock is an argument.

A piece that has run for some time is compared with the pieces of past steps that took longer than that: the median of
what they still needed is what it is expected to need.  The pieces of a step count when the step is over: until then
just its short ones have ended, and these alone would promise an end that the long ones do not keep.  A learner that
never lets the pods run dry has no steps, and nothing is promised.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STEPS = 8  # past steps that count
PIECES = 1024  # pieces that stand for one step
ENOUGH = 8  # fewer past pieces than this say nothing


class Outlook:
    """Durations of past pieces, and when those in flight began; in seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._in_flight: dict[object, float] = {}
        self._step: list[float] = []
        self._steps: deque[list[float]] = deque(maxlen=STEPS)
        self._past: list[float] = []  # of all steps that count, in order

    @contextmanager
    def work(self, *, clock: Callable[[], float]) -> Iterator[None]:
        """Follows one piece; one that ends with an exception says nothing about durations."""
        key, started = object(), clock()
        self._in_flight[key] = started
        try:
            yield
            self._step.append(clock() - started)
        finally:
            del self._in_flight[key]

    def end_step(self) -> None:
        """Nothing is in flight, and nothing waits: the durations since the last call are those of a whole step."""
        if self._step:
            self._steps.append(_thin(sorted(self._step)))
            self._past = sorted(duration for step in self._steps for duration in step)
            self._step = []

    def remaining(self, *, now: float) -> float | None:
        """Expected seconds until the last piece in flight is answered.

        None when nothing is in flight, when too little is known, or when a piece has outlasted all past ones.
        """
        if not self._in_flight or len(self._past) < ENOUGH:
            return None
        longest = 0.0
        for started in self._in_flight.values():
            age = now - started
            first = bisect.bisect_right(self._past, age)
            if first == len(self._past):
                return None
            longest = max(longest, self._past[(first + len(self._past) - 1) // 2] - age)
        return longest


def _thin(ordered: list[float]) -> list[float]:
    """At most `PIECES` of a sorted list, evenly over its ranks, the longest included."""
    if len(ordered) <= PIECES:
        return ordered
    return [ordered[(rank + 1) * len(ordered) // PIECES - 1] for rank in range(PIECES)]
