"""Tokens per draft from parts of a measurement, and how much chance is in them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def tokens_per_draft(parts: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Drafts and accepted tokens of parts of a measurement; one more than are accepted, and the standard error.

    That of a ratio whose parts differ in size, so that longer ones weigh more.
    """
    drafts, accepted = (sum(column) for column in zip(*parts, strict=True))
    rate = accepted / drafts
    spread = sum((of_part - rate * count) ** 2 for count, of_part in parts)
    return 1 + rate, math.sqrt(spread * len(parts) / (len(parts) - 1)) / drafts
