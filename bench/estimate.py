"""Ratios from parts of a measurement, and how much chance is in them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def ratio_of_sums(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Sum of the first ones over the sum of the second ones, and the standard error, to first order.

    Args:
        pairs: at least two that vary independently.  What the two of a pair share is no error, and larger ones weigh
            more.

    Source:
        The ratio estimator of survey sampling; Cochran, Sampling Techniques, 1977, chapter 6.
    """
    above, below = (sum(column) for column in zip(*pairs, strict=True))
    ratio = above / below
    spread = sum((first - ratio * second) ** 2 for first, second in pairs)
    return ratio, math.sqrt(spread * len(pairs) / (len(pairs) - 1)) / below


def tokens_per_draft(parts: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Drafts and accepted tokens of parts of a measurement; one more than are accepted, and the standard error."""
    rate, error = ratio_of_sums([(accepted, drafts) for drafts, accepted in parts])
    return 1 + rate, error
