"""Two drafters compared while they run: a sequential test that may be looked at as often as one likes.

A draft of k tokens has between 0 and k of them accepted, so its accepted share lies between 0 and 1.  Of such a share
with mean p, given everything before it, exp(L * share) has at most the mean 1 - p + p * exp(L), that of a coin (the
line above a convex curve).  Hence exp(L * S - n * log(1 - p + p * exp(L))), with S the sum of n shares, never grows on
the average: a nonnegative supermartingale, however the shares depend on each other, and if p drifts it holds for the
mean of the drifting values.  So is the product of two such of different streams or strata, and so is a mixture of
products over several L (Robbins, 1970).  Ville's inequality (1939) bounds the chance that one ever exceeds 1 / error
by `error`: at any time, at all times, and whenever somebody looks.  This is the sub-Bernoulli case of Howard, Ramdas,
McAuliffe and Sekhon, "Time-uniform Chernoff bounds via nonnegative supermartingales", Probability Surveys 17 (2020).
To compare two streams, one bets on both and assumes of their means the worst that the null hypothesis allows, as in
Turner, Ly and Grünwald, "Generic E-variables for exact sequential k-sample tests", JSPI 230 (2024).  Only n and S of
each side are needed, so totals that pods count, seen now and then, are enough.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from tlt_operator.plan.acceptance import DraftCounts

WORSE_ERROR = 0.01  # chance that a drafter which is as good is ever called worse
FINE_ERROR = 0.05  # chance that one which is worse by `TOLERANCE` is ever called fine
TOLERANCE = 0.05  # share of the accept length that a new drafter may lose and still be called fine
CLUSTER = 10.0  # drafts that tell as much as one independent draft would: those of one answer resemble each other
_STAKES = tuple(0.02 * 2.0**step for step in range(10))  # on the canary: for differences of half a percent or of all
_BALANCES = (
    4.0,
    2.0,
    1.0,
    0.5,
    0.25,
    0.125,
)  # stakes on the control, for one that drafts a quarter or eight times as much
_BETS = tuple((stake, stake * balance) for stake in _STAKES for balance in _BALANCES)


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """What both sides counted under the same circumstances: drafts of one length, made for one policy."""

    policy_version: int  # 0 when sides are compared one after the other
    draft_length: int
    canary: DraftCounts = field(default_factory=DraftCounts)
    control: DraftCounts = field(default_factory=DraftCounts)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Natural logarithms of e-values: against "the canary is as good", and against "it is worse by `TOLERANCE`"."""

    worse: float = 0.0
    fine: float = 0.0

    @property
    def shows_worse(self) -> bool:
        """Whether the canary is worse, beyond `WORSE_ERROR`."""
        return self.worse >= math.log(1 / WORSE_ERROR)

    @property
    def shows_fine(self) -> bool:
        """Whether the canary is not worse by `TOLERANCE`, beyond `FINE_ERROR`."""
        return self.fine >= math.log(1 / FINE_ERROR) and not self.shows_worse


def weigh(strata: Iterable[Stratum]) -> Evidence:
    """The evidence of all strata together; one where a side has no drafts says nothing."""
    found = [_log_wealth(item) for item in strata if item.canary.drafts and item.control.drafts]
    if not found:
        return Evidence()
    # One bet for all strata, and the mixture over the bets outside: what each stratum hints at adds up.
    worse = [sum(gains) for gains in zip(*(item.worse for item in found), strict=True)]
    fine = [sum(gains) for gains in zip(*(item.fine for item in found), strict=True)]
    return Evidence(worse=_log_mean(worse), fine=_log_mean(fine))


def lean(strata: Iterable[Stratum]) -> float:
    """By how many tokens per draft the canary seems better than the least that is called fine; no error is promised.

    Strata count by how precisely they tell the difference.
    """
    total = weight = 0.0
    for item in strata:
        if item.canary.drafts and item.control.drafts:
            precision = 1 / (1 / item.canary.drafts + 1 / item.control.drafts)
            total += precision * (item.canary.length - (1 - TOLERANCE) * item.control.length)
            weight += precision
    return total / weight if weight else 0.0


@dataclass(frozen=True)
class _LogWealth:
    """Logs of what each of `_BETS` has made of 1 in one stratum, for the two claims."""

    worse: tuple[float, ...]
    fine: tuple[float, ...]


@functools.lru_cache(maxsize=512)  # between two answers of the pods nothing changes
def _log_wealth(stratum: Stratum) -> _LogWealth:
    length = stratum.draft_length
    canary, control = _shares(stratum.canary, length), _shares(stratum.control, length)
    # "As good": the canary's mean is p or more where the control's is p or less.
    # "Worse by the tolerance": 1 + k * c <= (1 - TOLERANCE) * (1 + k * p) for the canary's mean c.  A control below
    # `lowest` cannot be fallen short of by so much.
    slope, offset = 1 - TOLERANCE, -TOLERANCE / length
    lowest = min(1.0, -offset / slope)
    return _LogWealth(
        worse=tuple(_gain(canary, control, stakes=(-own, other)) for own, other in _BETS),
        fine=tuple(
            _gain(canary, control, stakes=(own, -other), slope=slope, offset=offset, lowest=lowest)
            for own, other in _BETS
        ),
    )


@dataclass(frozen=True)
class _Shares:
    """So many independent shares, and their sum."""

    count: float
    total: float


def _shares(counts: DraftCounts, length: int) -> _Shares:
    """A supermartingale to the power of 1 / CLUSTER is one as well, so fewer shares are only less evidence."""
    accepted = min(counts.accepted, counts.drafts * length)
    return _Shares(counts.drafts / CLUSTER, accepted / length / CLUSTER)


def _gain(
    canary: _Shares,
    control: _Shares,
    *,
    stakes: tuple[float, float],
    slope: float = 1.0,
    offset: float = 0.0,
    lowest: float = 0.0,
) -> float:
    """Log of what one bet on both sides has made of 1, for the least favourable means that the null allows.

    On its edge the control's mean is p and the canary's slope * p + offset, with p from `lowest` to 1.  The logs are
    convex in p, so that where their derivative vanishes, or the end of the interval next to it, is the minimum.
    """
    own, other = math.expm1(stakes[0]), math.expm1(stakes[1])
    base, steep = 1 + own * offset, own * slope
    count = canary.count + control.count
    flat = -(canary.count * steep + control.count * other * base) / (steep * other * count)
    p = min(1.0, max(lowest, flat))
    return (
        stakes[0] * canary.total
        + stakes[1] * control.total
        - canary.count * math.log(base + steep * p)
        - control.count * math.log1p(other * p)
    )


def _log_mean(logs: list[float]) -> float:
    """The log of the mean of numbers that are given by their logs."""
    highest = max(logs)
    return highest + math.log(sum(math.exp(item - highest) for item in logs) / len(logs))
