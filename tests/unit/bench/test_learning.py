"""What a live accept length is worth is told with it."""

from __future__ import annotations

import random
import statistics

import pytest

from bench.learning.estimate import tokens_per_draft


def test_longer_parts_weigh_more() -> None:
    assert tokens_per_draft([(100, 50), (300, 300)])[0] == pytest.approx(1 + 350 / 400)


def test_parts_that_agree_leave_no_error() -> None:
    assert tokens_per_draft([(100, 80), (200, 160), (50, 40)]) == (pytest.approx(1.8), pytest.approx(0.0))


def test_the_error_is_the_spread_of_measurements_of_one_drafter() -> None:
    dice = random.Random(1)

    def measured() -> tuple[float, float]:
        counts = [dice.randint(150, 250) for _ in range(8)]
        return tokens_per_draft([(count, round(count * dice.gauss(0.9, 0.1))) for count in counts])

    found = [measured() for _ in range(400)]
    spread = statistics.stdev(mean for mean, _ in found)
    assert statistics.fmean(error for _, error in found) == pytest.approx(spread, rel=0.15)
