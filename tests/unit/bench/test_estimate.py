"""What a measured ratio is worth is told with it."""

from __future__ import annotations

import random
import statistics

import pytest

from bench.estimate import ratio_of_sums, tokens_per_draft


def test_longer_parts_weigh_more() -> None:
    assert tokens_per_draft([(100, 50), (300, 300)])[0] == pytest.approx(1 + 350 / 400)


def test_parts_that_agree_leave_no_error() -> None:
    assert tokens_per_draft([(100, 80), (200, 160), (50, 40)]) == (pytest.approx(1.8), pytest.approx(0.0))


def test_a_pace_that_both_of_a_pair_share_is_no_error() -> None:
    """As of a machine that was slower for one turn of each."""
    dice = random.Random(1)

    def measured() -> tuple[float, float]:
        paces = [dice.gauss(1.0, 0.2) for _ in range(30)]
        return ratio_of_sums([(pace * dice.gauss(1.0, 0.05), pace * dice.gauss(0.8, 0.02)) for pace in paces])

    found = [measured() for _ in range(400)]
    spread = statistics.stdev(ratio for ratio, _ in found)
    assert statistics.fmean(ratio for ratio, _ in found) == pytest.approx(1.25, rel=0.01)
    assert statistics.fmean(error for _, error in found) == pytest.approx(spread, rel=0.15)
    assert spread < 0.02


def test_the_error_is_the_spread_of_measurements_of_one_drafter() -> None:
    dice = random.Random(1)

    def measured() -> tuple[float, float]:
        counts = [dice.randint(150, 250) for _ in range(8)]
        return tokens_per_draft([(count, round(count * dice.gauss(0.9, 0.1))) for count in counts])

    found = [measured() for _ in range(400)]
    spread = statistics.stdev(mean for mean, _ in found)
    assert statistics.fmean(error for _, error in found) == pytest.approx(spread, rel=0.15)
