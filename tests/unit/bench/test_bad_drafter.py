"""What the benchmark of bad drafters makes of its rounds."""

from __future__ import annotations

from typing import Any

import pytest

from bench.bad_drafter import Round, metrics


def pair(*, rate: float, without: float = 100.0, **fields: Any) -> list[Round]:
    values: dict[str, Any] = {"canary_seconds": 12.0, "canary_drafts": 700, "reason": "Worse", **fields}
    return [
        Round(offered=True, tokens=1000, seconds=1000 / rate, **values),
        Round(offered=False, tokens=1000, seconds=1000 / without),
    ]


def test_the_loss_is_that_of_the_whole_job() -> None:
    found = metrics([*pair(rate=90.0), *pair(rate=100.0)])
    assert found["offered"] == 2
    assert found["throughput_loss_share"] == pytest.approx(1 - 2000 / (1000 / 90 + 10) / 100)
    assert found["throughput_loss_median_share"] == pytest.approx(0.05)


def test_one_that_was_ever_active_counts_as_promoted_and_the_order_of_a_pair_does_not_matter() -> None:
    found = metrics([*pair(rate=100.0), *reversed(pair(rate=50.0, promoted=True, reason="NotWithdrawn"))])
    assert (found["promoted"], found["shown_worse"]) == (1, 1)
    assert found["throughput_loss_median_share"] == pytest.approx(0.25)


def test_without_a_round_nothing_is_claimed() -> None:
    assert metrics([])["throughput_loss_share"] is None
