"""Whether two engines sample from the same distribution, token by token: a test that can be wrong at a stated rate.

At each position of each prompt the tokens (or pairs of neighbouring tokens) of both sides are counted and compared by
Pearson's chi-square test of homogeneity; rare ones are pooled, by their count on both sides together, so that pooling
knows nothing of which side they came from.  Over all positions Holm's procedure (Scandinavian Journal of Statistics 6,
1979) keeps the family-wise error: the chance that equal engines are called different anywhere is at most the level,
however the positions depend on each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

LEAST_EXPECTED = 5.0  # per cell and side; below it the chi-square distribution is a poor guide (Cochran, 1954)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The comparison at one place."""

    place: Hashable
    statistic: float
    freedom: int  # degrees of it; 0 when there was nothing to compare
    p_value: float


def compare(ours: Sequence[Hashable], theirs: Sequence[Hashable], *, place: Hashable = None) -> Difference:
    """Pearson's test that two samples have one distribution."""
    left, right = Counter(ours), Counter(theirs)
    share = min(len(ours), len(theirs)) / (len(ours) + len(theirs))
    cells = [(left[item], right[item]) for item in left | right]
    common = [cell for cell in cells if sum(cell) * share >= LEAST_EXPECTED]
    rare = [cell for cell in cells if sum(cell) * share < LEAST_EXPECTED]
    pooled = (sum(cell[0] for cell in rare), sum(cell[1] for cell in rare))
    if sum(pooled) * share >= LEAST_EXPECTED:
        common.append(pooled)
    observed = torch.tensor(common, dtype=torch.float64).reshape(-1, 2)
    freedom = max(0, len(common) - 1)
    if not freedom:
        return Difference(place=place, statistic=0.0, freedom=0, p_value=1.0)
    expected = observed.sum(1, keepdim=True) * observed.sum(0, keepdim=True) / observed.sum()
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return Difference(
        place=place, statistic=statistic, freedom=freedom, p_value=chi_square_tail(statistic, freedom=freedom)
    )


def compare_sequences(
    ours: Mapping[Hashable, Sequence[Sequence[int]]], theirs: Mapping[Hashable, Sequence[Sequence[int]]], *, width: int
) -> list[Difference]:
    """Compares the samples of each prompt at each position, `width` neighbouring tokens at a time.

    Args:
        ours: per prompt its sampled sequences, all of one length.
        theirs: the same prompts.
        width: 1 compares tokens, 2 pairs of them, which also sees tokens that depend on each other wrongly.
    """
    found = []
    for prompt, samples in ours.items():
        length = min(len(sample) for sample in [*samples, *theirs[prompt]])
        for start in range(length - width + 1):
            pick = slice(start, start + width)
            left, right = ([tuple(sample[pick]) for sample in side] for side in (samples, theirs[prompt]))
            found.append(compare(left, right, place=(prompt, start, width)))
    return found


def rejected(differences: Sequence[Difference], *, level: float) -> list[Difference]:
    """Those that Holm's procedure calls real at this family-wise error, smallest p-value first."""
    ordered = sorted(differences, key=lambda item: item.p_value)
    found = []
    for rank, difference in enumerate(ordered):
        if difference.p_value > level / (len(ordered) - rank):
            break
        found.append(difference)
    return found


def chi_square_tail(statistic: float, *, freedom: int) -> float:
    """The chance of a chi-square variable to be larger: the regularised upper incomplete gamma function."""
    half: Any = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
