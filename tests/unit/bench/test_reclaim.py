"""What the hand-back benchmark makes of its windows."""

from __future__ import annotations

import pytest

from bench.reclaim import Interruption, Outcome, metrics


def outcome(hand_back: float, **changes: object) -> Outcome:
    known = {"kind": Interruption.REQUEST, "delay": 1.0, "hand_back": hand_back, "seen": hand_back + 0.01}
    return Outcome(**{**known, **changes})  # type: ignore[arg-type]


def test_windows_that_end_in_a_kill_count_as_kills_and_not_as_hand_backs() -> None:
    found = metrics([outcome(0.1, steps=3), outcome(0.2), outcome(1.1, overrun=0.03)], [0.4])
    assert (found["interruptions"], found["kills"]) == (3, 1)
    assert found["hand_back_p99_s"] == 0.2
    assert found["hand_back_training_p99_s"] == 0.1
    assert found["hand_back_starting_p99_s"] == 0.2
    assert found["kill_overrun_p99_s"] == pytest.approx(0.03)


def test_whatever_was_lost_counts() -> None:
    found = metrics([outcome(0.1, lost="a request failed"), outcome(0.1), outcome(1.0, overrun=0.0, lost="gone")], [])
    assert found["lost_windows"] == 2


def test_a_run_without_kills_says_nothing_of_them() -> None:
    found = metrics([outcome(0.1, kind=Interruption.OPERATOR)], [])
    assert found["kills"] == 0
    assert found["kill_overrun_p99_s"] is None
    assert found["operator_interruptions"] == 1
