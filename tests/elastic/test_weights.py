"""What a team holds: the same weights everywhere bit for bit, and every sequence trained by one of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.eventually import eventually
from tests.support.lighthouse import Lighthouse
from tests.support.replicas import ThreadReplica, as_pod
from tlt_workloads.store import Store
from tlt_workloads.trainer.checkpoint import load_checkpoint
from tlt_workloads.trainer.settings import TrainerSettings


def common(first: ThreadReplica, second: ThreadReplica) -> list[int]:
    """Steps that both took as one of two."""
    return sorted(
        step
        for step, moment in first.moments.items()
        if moment.replicas == 2 and step in second.moments and second.moments[step].replicas == 2
    )


def test_a_newcomer_becomes_the_same_and_shares_the_data(settings: TrainerSettings, store: Store) -> None:
    first = ThreadReplica(as_pod(settings, "a"))
    first.until(replicas=1)
    second = ThreadReplica(as_pod(settings, "b"))
    second.until(replicas=2, more_steps=20)
    second.stop()
    first.until(replicas=1, more_steps=3)
    first.stop()

    steps = common(first, second)
    assert len(steps) >= 20
    assert min(second.moments) > 1, "it began where the first one was"
    for step in steps:
        assert first.moments[step] == second.moments[step], step
    ours, theirs = (
        frozenset().union(*(used for replicas, used in one.used if replicas == 2)) for one in (first, second)
    )
    assert ours
    assert theirs
    assert not ours & theirs
    found = load_checkpoint(store)
    assert found is not None
    assert found[0].steps == first.steps, "the last one that was there has kept everything"
    assert not [name for name in store.folders("checkpoints") if name.endswith("-" + "b" * 8)]


def test_the_next_one_leads_when_the_leader_leaves(settings: TrainerSettings, store: Store) -> None:
    first = ThreadReplica(as_pod(settings, "a"))
    first.until(replicas=1)
    second = ThreadReplica(as_pod(settings, "b"))
    second.until(replicas=2)
    first.stop()
    second.until(replicas=1)
    second.stop()
    assert second.steps > first.steps
    assert second.moments[second.steps].tokens > first.moments[first.steps].tokens
    found = load_checkpoint(store)
    assert found is not None
    assert found[0].steps == second.steps


def test_two_histories_that_meet_become_one(settings: TrainerSettings, lighthouse: Lighthouse) -> None:
    """Both trained by themselves while nobody could introduce them; none of it is averaged."""
    lighthouse.kill()
    first, second = ThreadReplica(as_pod(settings, "a")), ThreadReplica(as_pod(settings, "b"))
    first.until(replicas=1)
    second.until(replicas=1)
    lighthouse.start()
    first.until(replicas=2)
    second.until(replicas=2)
    eventually(lambda: len(common(first, second)) >= 10, deadline=60.0, reason="steps together")
    second.stop()
    first.stop()
    for step in common(first, second):
        assert first.moments[step].digest == second.moments[step].digest, step


def test_what_the_leader_solves_for_becomes_everybodys(
    settings: TrainerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From many times the rows, where gradients have hardly changed the first solution."""
    monkeypatch.setattr("tlt_workloads.trainer.solve.WINDOW_SHARE", 0.0)
    monkeypatch.setattr("tlt_workloads.trainer.solve.FEWEST_ROWS", 50)
    settings = replace(
        settings,
        config=replace(settings.config, learning_rate=1e-6),
        solved_tokens=100,
        most_solved_tokens=10_000,
    )
    first = ThreadReplica(as_pod(settings, "a"))
    first.until(replicas=1)
    second = ThreadReplica(as_pod(settings, "b"))
    second.until(replicas=2)
    before = second.steps
    monkeypatch.setattr("tlt_workloads.trainer.solve.WINDOW_SHARE", 1e9)
    eventually(lambda: second.solved_rows > 1000, deadline=60.0, reason="a solution that the follower has, too")
    first.until(replicas=2, more_steps=10)
    second.until(replicas=2, more_steps=10)
    second.stop()
    first.stop()
    steps = [step for step in common(first, second) if step > before]
    assert len(steps) >= 10
    for step in steps:
        assert first.moments[step] == second.moments[step], step
    found = load_checkpoint(store)
    assert found is not None
    assert found[0].solved_rows > 1000
    assert before < found[0].solved_steps < found[0].steps
