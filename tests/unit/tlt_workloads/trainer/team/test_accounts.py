"""Progress after a step of several: counted once, whoever did it, and the next leader knows what the last one tried."""

from __future__ import annotations

from tlt_workloads.trainer.progress import TrainingProgress
from tlt_workloads.trainer.team.accounts import after_step
from tlt_workloads.trainer.team.exchange import Sum, Tried

BEFORE = TrainingProgress(
    trained_tokens=1000,
    trained_seconds=50.0,
    first_policy_version=3,
    last_policy_version=4,
    parent="job-r1",
    attempted_tokens=500,
    attempted_seconds=20.0,
)


def test_everybodys_positions_and_versions_count() -> None:
    found = after_step(BEFORE, Sum(positions=300, policy_versions=(2, 5)), job="namespace/job")
    assert (found.trained_tokens, found.first_policy_version, found.last_policy_version) == (1300, 2, 5)
    assert (found.parent, found.attempted_seconds) == ("job-r1", 20.0)


def test_the_first_step_of_all_has_versions_too() -> None:
    found = after_step(TrainingProgress(), Sum(positions=1, policy_versions=(7, 8)), job="namespace/job")
    assert (found.first_policy_version, found.last_policy_version) == (7, 8)


def test_what_the_leader_has_published_becomes_the_parent_of_what_the_next_one_publishes() -> None:
    told = Sum(positions=1, policy_versions=(3, 4), tried=Tried(tokens=900, seconds=6.0, revision=2))
    found = after_step(BEFORE, told, job="namespace/job")
    assert (found.parent, found.attempted_tokens, found.evaluation_seconds) == ("job-r2", 900, 6.0)
    assert found.attempted_seconds == 50.0


def test_large_totals_are_told_exactly() -> None:
    tried = Tried(tokens=123_456_789_012, seconds=0.5, revision=40)
    assert Tried.of_numbers([float(number) for number in tried.numbers()]) == tried
