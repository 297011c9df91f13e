"""When a pod counts as idle, and that no second is lost or counted twice."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tlt_workloads.rollout.activity import ActivityClock


def test_a_quiet_pod_is_idle_only_after_the_wait() -> None:
    clock = ActivityClock(started_at=0, idle_after=0.5)
    clock.arrive(1.0)
    assert not clock.is_idle(1.0)
    clock.depart(3.0)
    assert clock.next_edge(3.0) == 3.5
    assert not clock.is_idle(3.49)
    assert clock.is_idle(3.5)
    assert clock.idle_for(5.0) == 2.0
    assert clock.next_edge(3.5) is None


def test_the_last_of_several_requests_decides() -> None:
    clock = ActivityClock(started_at=0, idle_after=0.5)
    clock.arrive(1)
    clock.arrive(1)
    clock.depart(2)
    assert clock.next_edge(2) is None
    assert not clock.is_idle(9)
    clock.depart(9)
    assert clock.is_idle(9.5)


def test_paused_or_updating_is_never_idle() -> None:
    clock = ActivityClock(started_at=0, idle_after=0.5)
    clock.set_paused(True, now=1)
    assert not clock.is_idle(100)
    clock.set_paused(False, now=100)
    clock.set_updating(True, now=100.2)
    assert not clock.is_idle(101)
    clock.set_updating(False, now=102)
    assert clock.is_idle(102.5)


def test_lent_time_is_a_part_of_idle_time() -> None:
    clock = ActivityClock(started_at=0)
    clock.set_lent(True, now=2)
    clock.arrive(5)  # the trainer is still stopping
    clock.set_lent(False, now=6)
    clock.depart(8)
    clock.pass_time(10)
    assert (clock.busy_seconds, clock.idle_seconds, clock.lent_seconds) == (3, 7, 3)


def test_failed_and_aborted_requests_are_counted_apart() -> None:
    clock = ActivityClock(started_at=0)
    for outcome in ({}, {"failed": True}, {"aborted": True}):
        clock.arrive(1)
        clock.depart(2, **outcome)
    assert (clock.requests, clock.failed, clock.aborted, clock.in_flight) == (3, 1, 1, 0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 5), st.sampled_from(["arrive", "depart", "pause", "resume", "lend", "return"]))))
def test_every_second_is_busy_or_idle(steps: list[tuple[float, str]]) -> None:
    clock, now = ActivityClock(started_at=0), 0.0
    for seconds, event in steps:
        now += seconds
        if event == "arrive":
            clock.arrive(now)
        elif event == "depart" and clock.in_flight:
            clock.depart(now)
        elif event in ("pause", "resume"):
            clock.set_paused(event == "pause", now=now)
        else:
            clock.set_lent(event == "lend", now=now)
        edge = clock.next_edge(now)
        assert edge is None or clock.is_idle(edge)
    clock.pass_time(now)
    assert abs(clock.busy_seconds + clock.idle_seconds - now) < 1e-6 * (1 + now)
    assert 0 <= clock.lent_seconds <= clock.idle_seconds + 1e-9
