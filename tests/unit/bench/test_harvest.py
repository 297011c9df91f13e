"""What the harvest benchmark makes of its windows."""

from __future__ import annotations

import pytest

from bench.harvest import Window, metrics


def pair(idle: float, lent: float, *, rate: float = 50.0, suspended: float = 50.0) -> list[Window]:
    return [
        Window(harvesting=True, idle=idle, lent=lent, rate=rate, edge_to_lease=0.05, lease_to_step=0.5),
        Window(harvesting=False, idle=idle, lent=0.0, rate=suspended),
    ]


def test_the_share_is_that_of_long_windows_with_harvesting() -> None:
    found = metrics([*pair(20.0, 19.0), *pair(5.0, 1.0), *pair(30.0, 26.0)])
    assert found["long_windows"] == 2
    assert found["harvested_share"] == pytest.approx(45 / 50)


def test_the_slowdown_compares_neighbours_whatever_their_order() -> None:
    slow = pair(20.0, 19.0, rate=45.0, suspended=50.0)
    found = metrics([*slow, *reversed(slow), *slow])
    assert found["rollout_slowdown_share"] == pytest.approx(0.1)


def test_the_first_step_counts_from_the_idle_edge() -> None:
    found = metrics(pair(20.0, 19.0))
    assert found["lease_to_first_step_p50_s"] == 0.5
    assert found["edge_to_first_step_p50_s"] == pytest.approx(0.55)


def test_without_a_long_window_nothing_is_claimed() -> None:
    assert metrics(pair(5.0, 4.0))["harvested_share"] is None
