"""Which draft length and which drafter, by how many requests run together: a bandit with a budget for curiosity.

After BEG-MAB of "Taming the Long Tail" (https://arxiv.org/abs/2511.16665): buckets of batch sizes, an epsilon-greedy
choice, scores that are accept length x batch / time with the median time of a window.  Different here:

- Accept lengths belong to a drafter and not to a batch, times belong to a batch and not to a drafter's weights.  They
  are learnt apart, so that a new revision is judged at every batch size as soon as it is known at one, and nothing
  that was learnt about time is lost by it.
- An arm that was never timed in a bucket is reckoned from others, so that a new batch size begins with a few steps
  without drafts and then with a good choice, instead of trying everything.
- An arm that loses much is left after a few steps, before its episode is over.
- Not drafting is an arm, and trying what seems worse is paid out of a fixed share of the time.  So the long run cannot
  be slower than the best arm by more than that share, whatever epsilon is.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field

from tlt_workloads.contract import ArmReport, BucketReport, DraftSource
from tlt_workloads.rollout.draft_acceptance import AcceptanceSettings, DraftAcceptance
from tlt_workloads.rollout.plans import OFF, DraftPlan
from tlt_workloads.rollout.step_times import StepTimes

FAVOUR = 8  # power of the relative rate by which arms to try are drawn


@dataclass(frozen=True, kw_only=True)
class BanditSettings:
    """How a bandit behaves."""

    longest: int  # draft length that the engine can make
    epsilon: float = 0.1  # of decisions that try another arm
    exploration_share: float = 0.0075  # of the time that may be lost by trying
    episode: int = 8  # steps from one decision to the next
    margin: float = 0.02  # by which another arm that drafts must be better to replace the one in use
    glance: int = 3  # timed steps after which an episode ends early ...
    hopeless: float = 0.1  # ... of an arm that is worse by this share


@dataclass
class _Bucket:
    """Batch sizes that are decided together."""

    size: int  # the largest of them
    plan: DraftPlan = OFF
    incumbent: DraftPlan | None = None
    left: int = 0  # steps until the next decision
    seen: list[float] = field(default_factory=list)  # times of the plan since it was decided for
    total: float = 0.0  # seconds of all its steps ...
    lost: float = 0.0  # ... and those lost by trying


class DraftBandit:
    """Decides before each step of an engine and learns from its outcome.

    Args:
        settings: see there.
        dice: for the choice of arms to try.
    """

    def __init__(self, settings: BanditSettings, *, dice: random.Random) -> None:
        self._settings = settings
        self._dice = dice
        self._times = StepTimes()
        self._buckets: dict[int, _Bucket] = {}
        self._acceptance = DraftAcceptance(AcceptanceSettings(longest=settings.longest))
        self._sources: frozenset[DraftSource] = frozenset()
        self._longest = settings.longest

    def offer(self, sources: frozenset[DraftSource], *, longest: int) -> None:
        """Which drafters there are from now on, and the longest drafts that are wanted of them."""
        if (sources, longest) != (self._sources, self._longest):
            self._sources, self._longest = sources, longest
            self._decide_anew()

    def forget(self, source: DraftSource) -> None:
        """Another drafter acts under this name from now on: it is tried as if there had been none."""
        self._acceptance.forget(source)
        self._decide_anew()

    def choose(self, batch: int) -> DraftPlan:
        """What to draft in the next step of so many requests."""
        bucket = self._bucket(batch)
        if bucket.left <= 0 or self._is_hopeless(bucket):
            bucket.plan, bucket.left = self._decide(bucket), self._settings.episode
            bucket.seen.clear()
        bucket.left -= 1
        return bucket.plan

    def note_step(self, batch: int, plan: DraftPlan, seconds: float) -> None:
        """How long a step took that verified a draft of this plan and made the next one."""
        bucket = self._bucket(batch)
        usual = self._times.note(bucket.size, plan, seconds)
        if plan == bucket.plan:
            bucket.seen.append(usual)
        bucket.total += seconds
        if bucket.incumbent is not None and plan != bucket.incumbent:
            bucket.lost += seconds * self._deficit(bucket, plan, bucket.incumbent)

    def note_running(self, requests: Set[str]) -> None:
        """Which requests are being answered."""
        self._acceptance.note_running(requests)

    def note_drafts(self, batch: int, plan: DraftPlan, accepted: Iterable[tuple[str, int]]) -> None:
        """Drafts of this plan: whose, and how many of their tokens were accepted; 0 where there was none to be found.

        They need not have been made in the step of `batch` requests: what would have been accepted tells as much.
        """
        self._acceptance.note(self._times.size(batch), plan, accepted)

    def report(self) -> tuple[BucketReport, ...]:
        """What is known, by bucket; only of batches that were seen."""
        timed = {size: self._times.measured(size) for size in sorted(self._buckets)}
        return tuple(
            BucketReport(
                largest_batch=size,
                source=self._buckets[size].plan.source,
                draft_length=int(self._buckets[size].plan),
                arms=tuple(
                    ArmReport(
                        source=plan.source,
                        draft_length=int(plan),
                        step_seconds=seconds * self._times.pace,
                        accept_length=self._acceptance.tokens(size, plan) or 1.0,
                    )
                    for plan, seconds in sorted(arms.items(), key=lambda item: (item[0].source, int(item[0])))
                ),
            )
            for size, arms in timed.items()
            if arms
        )

    @property
    def lost_share(self) -> float:
        """Of all time, lost by trying what was not the best."""
        total = sum(bucket.total for bucket in self._buckets.values())
        return sum(bucket.lost for bucket in self._buckets.values()) / total if total else 0.0

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
        if incumbent in rates and best != OFF and rates[best] < rates[incumbent] * (1 + self._settings.margin):
            best = incumbent
        bucket.incumbent = best
        return self._curious(bucket, best, rates)

    def _is_hopeless(self, bucket: _Bucket) -> bool:
        """Whether an arm that is tried has shown enough: a large loss needs no whole episode."""
        best = bucket.incumbent or OFF
        if bucket.plan == best or len(bucket.seen) < self._settings.glance:
            return False
        seconds, most = statistics.mean(bucket.seen), self._rate(bucket, best)
        tokens = self._acceptance.tokens(bucket.size, bucket.plan, is_credited=True)
        if tokens is None or most is None:
            return False
        return tokens / seconds < most * (1 - self._settings.hopeless)

    def _curious(self, bucket: _Bucket, best: DraftPlan, rates: Mapping[DraftPlan, float]) -> DraftPlan:
        """The best arm, or now and then another one when its expected cost can be afforded."""
        others = [plan for plan in rates if plan != best]
        if not others or self._dice.random() >= self._settings.epsilon:
            return best
        # What is nearly as good is worth another look more than what is far behind.
        [other] = self._dice.choices(others, [(rates[plan] / rates[best]) ** FAVOUR for plan in others])
        cost = self._worst_loss(bucket, other, best=rates[best])
        return other if self._is_affordable(bucket, other, cost) else best

    def _is_affordable(self, bucket: _Bucket, plan: DraftPlan, cost: float) -> bool:
        """What is seen again is paid by its batch size, a first look by all: a tail is too short to pay for one."""
        paying = [bucket] if plan in self._times.measured(bucket.size) else list(self._buckets.values())
        lost, total = sum(item.lost for item in paying), sum(item.total for item in paying)
        return lost + cost <= self._settings.exploration_share * total

    def _worst_loss(self, bucket: _Bucket, plan: DraftPlan, *, best: float) -> float:
        """Seconds that an episode of an arm may lose against the best rate.

        One that was never timed here may find the accelerator busy, so that every drafted token takes its time.
        """
        seconds = self._times.seconds(bucket.size, plan)
        if seconds is None:
            off = self._times.seconds(bucket.size, OFF) or 0.0
            seconds = max(self._times.expected(bucket.size, plan) or 0.0, off * (1 + plan))
        lost = max(0.0, seconds - (self._acceptance.tokens(bucket.size, plan) or 1.0) / best)
        is_short = lost > self._settings.hopeless * seconds
        return lost * (1 + self._settings.glance if is_short else self._settings.episode)

    def _plans(self) -> Iterator[DraftPlan]:
        yield OFF
        for source in DraftSource:
            if source in self._sources:
                yield from (DraftPlan(length, source) for length in range(self._longest, 0, -1))

    def _rate(self, bucket: _Bucket, plan: DraftPlan) -> float | None:
        """Tokens per second and request; None when nothing is known to reckon it from."""
        tokens = self._acceptance.tokens(bucket.size, plan, is_credited=True)
        seconds = self._times.expected(bucket.size, plan)
        return None if tokens is None or not seconds else tokens / seconds

    def _deficit(self, bucket: _Bucket, plan: DraftPlan, best: DraftPlan) -> float:
        rate, most = self._rate(bucket, plan), self._rate(bucket, best)
        return 0.0 if rate is None or most is None else max(0.0, 1 - rate / most)

    def _bucket(self, batch: int) -> _Bucket:
        size = self._times.size(batch)
        if size not in self._buckets:
            self._buckets[size] = _Bucket(size)
        return self._buckets[size]

    def _decide_anew(self) -> None:
        for bucket in self._buckets.values():
            bucket.left, bucket.incumbent = 0, None
