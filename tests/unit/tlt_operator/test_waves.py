"""Loads in waves: few at first, never many at once, and nobody waits for a pod that is slow or fails."""

from __future__ import annotations

import dataclasses

import pytest

from tests.support.snapshots import NOW, busy, make_revision, make_snapshot
from tlt_operator.plan.snapshot import RolloutView
from tlt_operator.plan.waves import LARGEST_WAVE, SLOW_AFTER, SPREAD, Missing, next_wave

REVISION = make_revision(7)


def missing(*views: RolloutView) -> list[Missing]:
    return [Missing(view=view, revision=REVISION) for view in views]


def pods(count: int) -> list[RolloutView]:
    return [busy(f"pod-{number}") for number in range(count)]


def loading(view: RolloutView, *, for_seconds: float) -> RolloutView:
    return dataclasses.replace(view, loading_since=NOW - for_seconds)


@pytest.mark.parametrize(("loaded", "begun"), [(0, 1), (1, 1), (2, 2), (20, 20), (500, LARGEST_WAVE)])
def test_a_wave_is_as_large_as_what_has_gone_well_up_to_a_limit(loaded: int, begun: int) -> None:
    assert len(next_wave(missing(*pods(100)), make_snapshot(), loaded=loaded)) == begun


def test_a_job_may_bound_its_waves() -> None:
    assert len(next_wave(missing(*pods(100)), make_snapshot(), loaded=50, most=3)) == 3


def test_loads_under_way_count() -> None:
    views = [loading(view, for_seconds=1.0) for view in pods(3)]
    found = next_wave(missing(*views, *(busy(f"other-{number}") for number in range(9))), make_snapshot(), loaded=4)
    assert [item.rollout_uid for item in found] == ["other-0-uid"]


def test_a_slow_load_keeps_nobody_from_its_turn() -> None:
    slow = loading(busy("slow"), for_seconds=SLOW_AFTER)
    (found,) = next_wave(missing(slow, busy("b")), make_snapshot(), loaded=0)
    assert found.rollout_uid == "b-uid"


def test_a_load_that_failed_waits_outside() -> None:
    failing = dataclasses.replace(busy("failing"), load_held_back=True)
    (found,) = next_wave(missing(failing, busy("b")), make_snapshot(), loaded=0)
    assert found.rollout_uid == "b-uid"


def test_the_loads_of_a_wave_begin_at_different_times_and_a_single_one_at_once() -> None:
    delays = [item.delay for item in next_wave(missing(*pods(100)), make_snapshot(), loaded=500)]
    assert len(set(delays)) == LARGEST_WAVE
    assert max(delays) <= SPREAD * LARGEST_WAVE
    (alone,) = next_wave(missing(*pods(5)), make_snapshot(), loaded=1)
    assert alone.delay == 0.0


def test_a_thousand_pods_all_get_it_and_the_store_sees_a_bounded_number_at_a_time() -> None:
    waiting, loaded, rounds, most = pods(1000), 1, 0, 0
    while waiting:
        begun = {item.rollout_uid for item in next_wave(missing(*waiting), make_snapshot(), loaded=loaded)}
        assert begun, "it goes on"
        most, rounds = max(most, len(begun)), rounds + 1
        waiting = [view for view in waiting if view.pod.uid not in begun]
        loaded += len(begun)
    assert most == LARGEST_WAVE
    assert rounds <= 40
