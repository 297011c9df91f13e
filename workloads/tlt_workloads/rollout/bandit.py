"""Which draft length and which drafter, by how many requests run together: a bandit with a budget for curiosity.

After BEG-MAB of "Taming the Long Tail" (https://arxiv.org/abs/2511.16665): buckets of batch sizes, an epsilon-greedy
choice, scores that are accept length x batch / time with the median time of a window.  Different here:

- Accept lengths belong to a drafter and not to a batch, times belong to a batch and not to a drafter's weights.  They
  are learnt apart, so that a new revision is judged at every batch size as soon as it is known at one, and nothing
  that was learnt about time is lost by it.
- An arm that was never timed in a bucket is reckoned: between two draft lengths; or as a step without drafts that has
  as many requests as it verifies rows, which a rollout that began with more of them has seen; or in proportion to not
  drafting, as the nearest bucket tells.  A new batch size begins with a few steps without drafts and then with a good
  choice, instead of trying everything.
- A machine whose pace changes, since it is shared or runs into its power limit, would make the arm in use look worse
  than those that were timed while it was fast.  Times are kept as they would have been at one pace.
- Not drafting is an arm, and trying what seems worse is paid out of a fixed share of the time.  So the long run cannot
  be slower than the best arm by more than that share, whatever epsilon is.
"""

from __future__ import annotations

import bisect
import math
import random
import statistics
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tlt_workloads.contract import ArmReport, BucketReport, DraftSource
from tlt_workloads.rollout.plans import OFF, DraftPlan

LARGEST_BATCH = 1 << 16
FAVOUR = 8  # power of the relative rate by which arms to try are drawn
GROWTH = 1.25  # of batch sizes from bucket to bucket, once they are too many to have one each


@dataclass(frozen=True, kw_only=True)
class BanditSettings:
    """How a bandit behaves."""

    longest: int  # draft length that the engine can make
    epsilon: float = 0.1  # of decisions that try another arm
    exploration_share: float = 0.01  # of a bucket's time, that may be lost by trying
    episode: int = 8  # steps from one decision to the next
    window: int = 48  # step times that are kept of each arm
    recent: int = 25  # steps that tell the machine's pace
    margin: float = 0.02  # by which another arm must be better to replace the one in use
    memory: int = 4096  # drafts after which older ones count half
    optimism: float = 2.0  # acceptances that a drafter is credited with before it has shown any ...
    known: float = 64  # ... and drafts after which it is credited with none


class _Pace:
    """How many times as long as usual a step takes just now, whatever is drafted and how many requests there are."""

    def __init__(self, recent: int) -> None:
        self._ratios: deque[float] = deque(maxlen=recent)

    @property
    def now(self) -> float:
        return statistics.median(self._ratios) if self._ratios else 1.0

    def note(self, seconds: float, *, usual: float) -> None:
        self._ratios.append(seconds / usual)


@dataclass
class _Bucket:
    """Batch sizes that are decided together."""

    largest: int
    times: dict[DraftPlan, deque[float]] = field(default_factory=dict)  # of steps, at the usual pace
    plan: DraftPlan = OFF
    incumbent: DraftPlan | None = None
    left: int = 0  # steps until the next decision
    total: float = 0.0  # seconds of all its steps ...
    lost: float = 0.0  # ... and those lost by trying

    def seconds(self, plan: DraftPlan) -> float | None:
        """Median of a step."""
        times = self.times.get(plan)
        return statistics.median(times) if times else None


class _Acceptance:
    """How often the draft token at each position is accepted, newer drafts counting more."""

    def __init__(self, longest: int) -> None:
        self.offered = [0.0] * longest
        self.accepted = [0.0] * longest

    def note(self, length: int, accepted: int, *, memory: int) -> None:
        for position in range(length):
            self.offered[position] += 1
            self.accepted[position] += position < accepted
        if self.offered[0] > memory:
            self.offered = [count / 2 for count in self.offered]
            self.accepted = [count / 2 for count in self.accepted]

    def mean(self, length: int) -> float | None:
        """Accepted tokens of a draft of that length; None when it was never offered one."""
        return self.credited_mean(length, credit=0.0, known=1.0)

    def credited_mean(self, length: int, *, credit: float, known: float) -> float | None:
        """The same with `credit` acceptances given in advance.

        The more often it was offered, the fewer; from `known` offers on none.
        """
        total = 0.0
        for offered, accepted in zip(self.offered[:length], self.accepted[:length], strict=True):
            if not offered:
                return None
            given = credit * max(0.0, 1 - offered / known)
            total += (accepted + given) / (offered + given)
        return total


class DraftBandit:
    """Decides before each step of an engine and learns from its outcome.

    Args:
        settings: see there.
        dice: for the choice of arms to try.
    """

    def __init__(self, settings: BanditSettings, *, dice: random.Random) -> None:
        self._settings = settings
        self._dice = dice
        self._buckets = [_Bucket(largest) for largest in _edges()]
        self._edges = [bucket.largest for bucket in self._buckets]
        self._acceptance = {source: _Acceptance(settings.longest) for source in DraftSource}
        self._sources: frozenset[DraftSource] = frozenset()
        self._longest = settings.longest
        self._pace = _Pace(settings.recent)

    def offer(self, sources: frozenset[DraftSource], *, longest: int) -> None:
        """Which drafters there are from now on, and the longest drafts that are wanted of them."""
        if (sources, longest) != (self._sources, self._longest):
            self._sources, self._longest = sources, longest
            self._decide_anew()

    def forget(self, source: DraftSource) -> None:
        """Another drafter acts under this name from now on: it is tried as if there had been none."""
        self._acceptance[source] = _Acceptance(self._settings.longest)
        self._decide_anew()

    def choose(self, batch: int) -> DraftPlan:
        """What to draft in the next step of so many requests."""
        bucket = self._bucket(batch)
        if bucket.left <= 0:
            bucket.plan, bucket.left = self._decide(bucket), self._settings.episode
        bucket.left -= 1
        return bucket.plan

    def note_step(self, batch: int, plan: DraftPlan, seconds: float) -> None:
        """How long a step took that verified a draft of this plan and made the next one."""
        bucket = self._bucket(batch)
        times = bucket.times.get(plan)
        if times is None:
            times = bucket.times[plan] = deque(maxlen=self._settings.window)
        if len(times) == self._settings.window:  # fewer are no measure of others, and would stay as they are
            self._pace.note(seconds, usual=statistics.median(times))
        times.append(seconds / self._pace.now)
        bucket.total += seconds
        if bucket.incumbent is not None and plan != bucket.incumbent:
            bucket.lost += seconds * self._deficit(bucket, plan, bucket.incumbent)

    def note_drafts(self, plan: DraftPlan, accepted: Sequence[int]) -> None:
        """How many tokens of each draft of this plan were accepted; a request without a draft counts as 0."""
        acceptance = self._acceptance[plan.source]
        for count in accepted:
            acceptance.note(int(plan), count, memory=self._settings.memory)

    def report(self) -> tuple[BucketReport, ...]:
        """What is known, by bucket; only of batches that were seen."""
        return tuple(
            BucketReport(
                largest_batch=bucket.largest,
                source=bucket.plan.source,
                draft_length=int(bucket.plan),
                arms=tuple(
                    ArmReport(
                        source=plan.source,
                        draft_length=int(plan),
                        step_seconds=statistics.median(times) * self._pace.now,
                        accept_length=1 + (self._acceptance[plan.source].mean(int(plan)) or 0.0),
                    )
                    for plan, times in sorted(bucket.times.items(), key=lambda item: (item[0].source, int(item[0])))
                ),
            )
            for bucket in self._buckets
            if bucket.times
        )

    @property
    def lost_share(self) -> float:
        """Of all time, lost by trying what was not the best."""
        total = sum(bucket.total for bucket in self._buckets)
        return sum(bucket.lost for bucket in self._buckets) / total if total else 0.0

    # -- decision --------------------------------------------------------------------------------------------------

    def _decide(self, bucket: _Bucket) -> DraftPlan:
        rates: dict[DraftPlan, float] = {}
        for plan in self._plans():
            rate = self._rate(bucket, plan)
            if rate is not None:
                rates[plan] = rate
            elif plan in (OFF, self._longest):
                return plan  # the longest draft tells of all shorter ones
        best = max(rates, key=lambda plan: rates[plan])
        incumbent = bucket.incumbent
        if incumbent in rates and rates[best] < rates[incumbent] * (1 + self._settings.margin):
            best = incumbent
        bucket.incumbent = best
        return self._curious(bucket, best, rates)

    def _curious(self, bucket: _Bucket, best: DraftPlan, rates: Mapping[DraftPlan, float]) -> DraftPlan:
        """The best arm, or now and then another one when its expected cost can be afforded."""
        others = [plan for plan in rates if plan != best]
        if not others or self._dice.random() >= self._settings.epsilon:
            return best
        # What is nearly as good is worth another look more than what is far behind.
        [other] = self._dice.choices(others, [(rates[plan] / rates[best]) ** FAVOUR for plan in others])
        cost = self._settings.episode * self._worst_loss(bucket, other, best=rates[best])
        return other if bucket.lost + cost <= self._settings.exploration_share * bucket.total else best

    def _worst_loss(self, bucket: _Bucket, plan: DraftPlan, *, best: float) -> float:
        """Seconds that a step of an arm may lose against the best rate.

        One that was never timed here may find the accelerator busy, so that every drafted token takes its time.
        """
        off = bucket.seconds(OFF) or 0.0
        seconds = bucket.seconds(plan) or max(self._expected_seconds(bucket, plan) or 0.0, off * (1 + plan))
        accepted = self._acceptance[plan.source].mean(int(plan)) or 0.0
        return max(0.0, seconds - (1 + accepted) / best)

    def _plans(self) -> Iterator[DraftPlan]:
        yield OFF
        for source in DraftSource:
            if source in self._sources:
                yield from (DraftPlan(length, source) for length in range(self._longest, 0, -1))

    def _rate(self, bucket: _Bucket, plan: DraftPlan) -> float | None:
        """Tokens per second and request; None when nothing is known to reckon it from."""
        accepted = self._acceptance[plan.source].credited_mean(
            int(plan), credit=self._settings.optimism, known=self._settings.known
        )
        seconds = self._expected_seconds(bucket, plan)
        return None if accepted is None or not seconds else (1 + accepted) / seconds

    def _deficit(self, bucket: _Bucket, plan: DraftPlan, best: DraftPlan) -> float:
        rate, most = self._rate(bucket, plan), self._rate(bucket, best)
        return 0.0 if rate is None or most is None else max(0.0, 1 - rate / most)

    def _expected_seconds(self, bucket: _Bucket, plan: DraftPlan) -> float | None:
        if (own := bucket.seconds(plan)) is not None:
            return own
        return self._between(bucket, plan) or self._by_rows(bucket, plan) or self._as_elsewhere(bucket, plan)

    def _between(self, bucket: _Bucket, plan: DraftPlan) -> float | None:
        """Between the next shorter and the next longer draft that were timed here.

        Nearer to the shorter one than a line: verifying is free up to some length and costs from there on.  Too little
        is reckoned rather than too much, since an arm that is used gets its own time.
        """
        known = {
            int(other): seconds
            for other in bucket.times
            if (not other or other.source is plan.source) and (seconds := bucket.seconds(other)) is not None
        }
        shorter = max((length for length in known if length < plan), default=None)
        longer = min((length for length in known if length > plan), default=None)
        if shorter is None or longer is None:
            return None
        part = (int(plan) - shorter) / (longer - shorter)
        return known[shorter] + part**2 * (known[longer] - known[shorter])

    def _by_rows(self, bucket: _Bucket, plan: DraftPlan) -> float | None:
        """As long as its rows alone take, and longer in the way of the nearest bucket in which was drafted."""
        alone = self._rows_alone(bucket, plan)
        return None if alone is None else alone * self._drafting_factor(bucket, plan)

    def _rows_alone(self, bucket: _Bucket, plan: DraftPlan) -> float | None:
        """Of a step without drafts that has a request for every row which this plan verifies, between known sizes."""
        here = bucket.seconds(OFF)
        if here is None or plan == OFF:
            return None
        rows = bucket.largest * (1 + int(plan))
        smaller, before = bucket.largest, here
        for other in self._buckets[self._buckets.index(bucket) + 1 :]:
            if (there := other.seconds(OFF)) is None:
                continue
            if other.largest >= rows:
                return max(here, before + (rows - smaller) / (other.largest - smaller) * (there - before))
            smaller, before = other.largest, there
        return None

    def _drafting_factor(self, bucket: _Bucket, plan: DraftPlan) -> float:
        """How many times as long as its rows alone a step takes, by the nearest draft length here or elsewhere."""
        for other in (bucket, *self._nearest(bucket)):
            drafted = [known for known in other.times if known and known.source is plan.source]
            for known in sorted(drafted, key=lambda arm: abs(int(arm) - int(plan))):
                own, alone = other.seconds(known), self._rows_alone(other, known)
                if own and alone:
                    return 1 + max(0.0, own / alone - 1) * int(plan) / int(known)
        return 1.0  # too little rather than too much: an arm that is used gets its own time

    def _nearest(self, bucket: _Bucket) -> list[_Bucket]:
        """All others, by how many times as large or small their batches are."""
        others = [other for other in self._buckets if other is not bucket]
        return sorted(others, key=lambda other: abs(math.log(other.largest / bucket.largest)))

    def _as_elsewhere(self, bucket: _Bucket, plan: DraftPlan) -> float | None:
        """In proportion to not drafting, as the nearest bucket that knows both tells."""
        here = bucket.seconds(OFF)
        if here is None or plan == OFF:
            return None
        for other in self._nearest(bucket):
            if (there := other.seconds(OFF)) is not None:
                seconds = other.seconds(plan) or self._between(other, plan)
                if seconds is not None:
                    return seconds * here / there
        return None

    def _bucket(self, batch: int) -> _Bucket:
        return self._buckets[bisect.bisect_left(self._edges, min(batch, LARGEST_BATCH))]

    def _decide_anew(self) -> None:
        for bucket in self._buckets:
            bucket.left, bucket.incumbent = 0, None


def _edges() -> list[int]:
    edges = [1]
    while edges[-1] < LARGEST_BATCH:
        edges.append(max(edges[-1] + 1, int(edges[-1] * GROWTH)))
    return edges
