"""Figures out of recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.demo import summary
from bench.demo.recording import Recording
from bench.demo.summary import Interval

POD_A, POD_B = "grpo-rollout-0", "grpo-rollout-1"


def step(number: int, *, began: float, generation: float, learner: float, tokens: int = 100) -> dict[str, Any]:
    ended = began + generation + learner
    return {
        "step": number,
        "began": began,
        "ended": ended,
        "wallSeconds": generation + learner,
        "generationSeconds": generation,
        "syncSeconds": 0.0,
        "learnerSeconds": learner,
        "tokens": tokens,
        "lengths": [tokens],
        "reward": 0.5,
        "samplingLogpDifference": 0.01,
        "spans": [{"activity": "generate", "begin": began, "end": began + generation}],
    }


def worker(at: float, pod: str, to: str, **extra: Any) -> dict[str, Any]:
    return {"at": at, "job": "ns/grpo", "kind": "worker", "pod": pod, "from": None, "to": to, **extra}


def sample(at: float, pod: str, *, drafts: int, accepted: int, revision: str | None = None) -> dict[str, Any]:
    acceptance = {"drafts": drafts, "draftTokens": 3 * drafts, "acceptedTokens": accepted}
    state = {
        "acceptance": acceptance,
        "drafterRevision": revision,
        "failedRequests": 0,
        "abortedRequests": 1 if pod == POD_B else 0,
    }
    return {"at": at, "pod": pod, "state": state}


def recording(**parts: Any) -> Recording:
    return Recording(name="demo", namespace="ns", job="grpo", pods=[POD_A, POD_B], began=0.0, ended=100.0, **parts)


def test_a_pods_states_follow_each_other_to_the_end_of_the_recording() -> None:
    run = recording(events=[worker(5, POD_A, "Idle"), worker(0, POD_A, "Busy"), worker(7, POD_B, "Busy")])
    assert summary.intervals(run, POD_A) == [Interval("Busy", 0, 5), Interval("Idle", 5, 100)]


def test_a_deleted_pod_has_no_state_after_its_end() -> None:
    run = recording(events=[worker(0, POD_A, "Busy"), worker(5, POD_A, "Gone")])
    assert summary.intervals(run, POD_A) == [Interval("Busy", 0, 5)]


def test_device_seconds_of_a_step_are_those_inside_it() -> None:
    run = recording(
        steps=[step(1, began=0, generation=20, learner=10), step(2, began=30, generation=20, learner=10)],
        events=[
            worker(0, POD_A, "Busy"),
            worker(10, POD_A, "Idle"),
            worker(12, POD_A, "Lent"),
            worker(35, POD_A, "Revoking"),
            worker(36, POD_A, "Busy"),
            worker(0, POD_B, "Busy"),
        ],
    )
    first, second = summary.rows(run)
    assert (first.idle, first.harvested) == (20, 18)
    assert (second.idle, second.harvested) == (6, 6)


def test_only_windows_that_begin_while_the_step_generates_count() -> None:
    windows = [
        {"at": at, "job": "ns/grpo", "kind": "trainer", "pod": "t", "from": "Waiting", "to": "Training"}
        for at in (15.0, 19.0, 25.0)
    ]
    run = recording(steps=[step(1, began=0, generation=20, learner=10)], events=windows)
    assert [row.windows for row in summary.rows(run)] == [2]


def test_accept_length_survives_the_counters_new_start_with_each_drafter() -> None:
    samples = [
        sample(0, POD_A, drafts=100, accepted=0),
        sample(1, POD_A, drafts=200, accepted=50),
        sample(2, POD_A, drafts=300, accepted=150, revision="grpo-r1"),  # counts from zero, although it looks larger
        sample(0, POD_B, drafts=10, accepted=0),
        sample(2, POD_B, drafts=110, accepted=100),
    ]
    assert summary.accept_length(samples, begin=0, end=2) == pytest.approx(1 + 300 / 500)


def test_without_drafts_there_is_no_accept_length() -> None:
    samples = [sample(0, POD_A, drafts=0, accepted=0), sample(1, POD_A, drafts=0, accepted=0)]
    assert summary.accept_length(samples, begin=0, end=2) is None


def test_totals_of_a_run() -> None:
    run = recording(
        steps=[step(1, began=0, generation=20, learner=10)],
        events=[
            worker(0, POD_A, "Busy"),
            worker(12, POD_A, "Lent", edgeToLease=0.4),
            worker(18, POD_A, "Busy", handBack=0.1, reason="Request"),
            {"at": 19.0, "kind": "swap", "pod": POD_A, "revision": "r", "seconds": 0.3, "stall": 0.02},
            {"at": 19.0, "kind": "revision", "pod": "r", "from": "Candidate", "to": "Active"},
        ],
        samples=[sample(0, POD_A, drafts=0, accepted=0), sample(9, POD_B, drafts=0, accepted=0)],
        gateway={"failedRequests": 2},
    )
    found = summary.metrics(run)
    assert found["rl_steps"] == 1
    assert found["harvested_s"] == 6
    assert found["failed_requests"] == 2
    assert found["aborted_requests"] == 1
    assert found["edge_to_lease_p50_s"] == 0.4
    assert found["swap_stall_p95_s"] == 0.02
    assert found["revisions"] == 1
    assert found["steps_without_window"] == 1
    assert found["accept_length_start"] is None


def test_generation_is_compared_by_rate_because_answers_differ_in_length() -> None:
    ours = summary.rows(recording(steps=[step(1, began=0, generation=10, learner=10, tokens=200)]))
    theirs = summary.rows(recording(steps=[step(1, began=0, generation=10, learner=20, tokens=100)]))
    found = summary.comparison(ours, theirs)
    assert found["generation_rate_ratio"] == 2
    assert found["step_wall_ratio"] == 1.5
    assert found["rollout_share"] == 0.5


def test_tables_have_a_column_for_each_heading() -> None:
    rows = summary.rows(recording(steps=[step(1, began=0, generation=10, learner=10)]))
    heading, line = summary.table(rows).splitlines()
    assert len(heading) == len(line)
    assert summary.markdown(rows).splitlines()[2].count("|") == len(summary.HEADINGS) + 1


def test_a_recording_comes_back_from_its_file(tmp_path: Path) -> None:
    run = recording(steps=[step(1, began=0, generation=10, learner=10)], policy_changes=1)
    assert Recording.load(run.save(tmp_path)) == run
