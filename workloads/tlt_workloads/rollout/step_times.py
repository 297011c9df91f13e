"""How long a step takes, by how many requests run together and by what is drafted for them: measured or reckoned.

An arm that was never timed at a batch size is reckoned: between two draft lengths; or as a step without drafts that has
as many requests as it verifies rows, which a rollout that began with more of them has seen; or in proportion to not
drafting, as the nearest batch size tells.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping

from tlt_workloads.contract import DraftSource
from tlt_workloads.rollout.paced_times import PacedTimes
from tlt_workloads.rollout.plans import OFF, DraftPlan

LARGEST_BATCH = 1 << 16
NOISE = 0.1  # of a step's time, relative ...
NGRAM_NOISE = 0.25  # ... and of one that drafts by n-grams, which find something now and then
GROWTH = 1.25  # of batch sizes that are timed together, once they are too many to be timed one by one


class StepTimes:
    """Step times of one engine, in seconds at its usual pace.  Batch sizes are named by the largest of those that are
    timed together.
    """

    def __init__(self) -> None:
        self._largest = _sizes()
        self._plans: list[set[DraftPlan]] = [set() for _ in self._largest]
        self._times = PacedTimes[tuple[int, DraftPlan]]()

    def size(self, batch: int) -> int:
        """The name of a batch size."""
        return self._largest[self._index(batch)]

    @property
    def pace(self) -> float:
        """How many times as long as usual a step takes just now, of whatever arm and batch size."""
        return self._times.pace

    def note(self, size: int, plan: DraftPlan, seconds: float) -> float:
        """A step that verified a draft of this plan and made the next one; its time at the usual pace."""
        self._plans[self._index(size)].add(plan)
        self._times.note((size, plan), seconds, noise=_noise(plan))
        return seconds / self.pace

    def measured(self, size: int) -> Mapping[DraftPlan, float]:
        """Of all plans that were timed."""
        return {plan: self._mean(size, plan) for plan in self._plans[self._index(size)]}

    def seconds(self, size: int, plan: DraftPlan) -> float | None:
        """Of a step; None when none was timed."""
        return self._mean(size, plan) if (size, plan) in self._times else None

    def _mean(self, size: int, plan: DraftPlan) -> float:
        """Of times, while the filter has that of their logarithms."""
        return self._times.seconds((size, plan)) * math.exp(_noise(plan) ** 2 / 2)

    def expected(self, size: int, plan: DraftPlan) -> float | None:
        """Of a step, measured or reckoned; None when there is nothing to reckon from."""
        if (own := self.seconds(size, plan)) is not None:
            return own
        return self._between(size, plan) or self._by_rows(size, plan) or self._as_elsewhere(size, plan)

    def _between(self, size: int, plan: DraftPlan) -> float | None:
        """Between the next shorter and the next longer draft that were timed here.

        Nearer to the shorter one than a line: verifying is free up to some length and costs from there on.  Too little
        is reckoned rather than too much, since an arm that is used gets its own time.
        """
        known = {
            int(other): seconds
            for other, seconds in self.measured(size).items()
            if not other or other.source is plan.source
        }
        shorter = max((length for length in known if length < plan), default=None)
        longer = min((length for length in known if length > plan), default=None)
        if shorter is None or longer is None:
            return None
        part = (int(plan) - shorter) / (longer - shorter)
        return known[shorter] + part**2 * (known[longer] - known[shorter])

    def _by_rows(self, size: int, plan: DraftPlan) -> float | None:
        """As long as its rows alone take, and longer in the way of the nearest batch size for which was drafted."""
        alone = self._rows_alone(size, plan)
        return None if alone is None else alone * self._drafting_factor(size, plan)

    def _rows_alone(self, size: int, plan: DraftPlan) -> float | None:
        """Of a step without drafts that has a request for every row which this plan verifies, between known sizes."""
        here = self.seconds(size, OFF)
        if here is None or plan == OFF:
            return None
        rows = size * (1 + int(plan))
        smaller, before = size, here
        for other in self._largest[self._index(size) + 1 :]:
            if (there := self.seconds(other, OFF)) is None:
                continue
            if other >= rows:
                return max(here, before + (rows - smaller) / (other - smaller) * (there - before))
            smaller, before = other, there
        return None

    def _drafting_factor(self, size: int, plan: DraftPlan) -> float:
        """How many times as long as its rows alone a step takes, by the nearest draft length here or elsewhere."""
        for other in (size, *self._nearest(size)):
            drafted = [known for known in self.measured(other) if known and known.source is plan.source]
            for known in sorted(drafted, key=lambda arm: abs(int(arm) - int(plan))):
                own, alone = self.seconds(other, known), self._rows_alone(other, known)
                if not own or not alone:
                    continue
                if plan.source is DraftSource.NGRAM:
                    return own / alone  # of fewer rows: most requests have nothing to be drafted
                return 1 + max(0.0, own / alone - 1) * int(plan) / int(known)
        return 1.0  # too little rather than too much: an arm that is used gets its own time

    def _as_elsewhere(self, size: int, plan: DraftPlan) -> float | None:
        """In proportion to not drafting, as the nearest batch size that knows both tells."""
        here = self.seconds(size, OFF)
        if here is None or plan == OFF:
            return None
        for other in self._nearest(size):
            if (there := self.seconds(other, OFF)) is not None:
                seconds = self.seconds(other, plan) or self._between(other, plan)
                if seconds is not None:
                    return seconds * here / there
        return None

    def _nearest(self, size: int) -> list[int]:
        """All others that were timed, by how many times as large or small they are."""
        others = [other for other, plans in zip(self._largest, self._plans, strict=True) if plans and other != size]
        return sorted(others, key=lambda other: abs(math.log(other / size)))

    def _index(self, batch: int) -> int:
        return bisect.bisect_left(self._largest, min(batch, LARGEST_BATCH))


def _noise(plan: DraftPlan) -> float:
    return NGRAM_NOISE if plan.source is DraftSource.NGRAM else NOISE


def _sizes() -> list[int]:
    sizes = [1]
    while sizes[-1] < LARGEST_BATCH:
        sizes.append(max(sizes[-1] + 1, int(sizes[-1] * GROWTH)))
    return sizes
