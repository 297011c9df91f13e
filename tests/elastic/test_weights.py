"""What a team holds: the same weights everywhere bit for bit, and every sequence trained by one of them."""

from __future__ import annotations

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
