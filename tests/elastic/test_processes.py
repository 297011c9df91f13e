"""Real workers: killed, stopped in the middle of a sum, and left without a lighthouse."""

from __future__ import annotations

import signal

from tests.support.eventually import eventually_async
from tests.support.lighthouse import Lighthouse
from tests.support.replicas import ProcessReplica, as_pod
from tlt_workloads.store import Store
from tlt_workloads.trainer.progress import latest_progress
from tlt_workloads.trainer.settings import TrainerSettings
from tlt_workloads.trainer.window import WindowEnd, WorkerEnded
from tlt_workloads.trainer.workshop import Workshop


async def two(workshop: Workshop, settings: TrainerSettings) -> tuple[ProcessReplica, ProcessReplica]:
    """The one that leads, and the one that came later."""
    first = await ProcessReplica().start(workshop, as_pod(settings, "a"))
    await first.until(replicas=1)
    second = await ProcessReplica().start(workshop, as_pod(settings, "b"))
    await second.until(replicas=2)
    await first.until(replicas=2)
    return first, second


async def test_a_killed_one_costs_the_other_nothing_but_a_moment(
    workshop: Workshop, settings: TrainerSettings, store: Store
) -> None:
    first, second = await two(workshop, settings)
    second.signal(signal.SIGKILL)
    await first.until(replicas=1)
    third = await ProcessReplica().start(workshop, as_pod(settings, "c"))
    await third.until(replicas=2)
    worker = await first.stop()
    assert not worker.was_killed
    assert first.messages[-1] == WorkerEnded(end=WindowEnd.STOPPED, peak_memory=first.messages[-1].peak_memory)  # type: ignore[union-attr]
    await third.until(replicas=1)
    assert not (await third.stop()).was_killed
    progress = latest_progress(store)
    assert progress.trained_tokens > first.steps[-1].tokens


async def test_when_the_leader_is_killed_the_other_keeps_what_both_have_learnt(
    workshop: Workshop, settings: TrainerSettings, store: Store
) -> None:
    first, second = await two(workshop, settings)
    first.signal(signal.SIGKILL)
    await second.until(replicas=1)
    tokens = first.steps[-1].tokens
    await eventually_async(
        lambda: latest_progress(store).trained_tokens > tokens, deadline=30.0, reason="the second one's checkpoint"
    )
    assert not (await second.stop()).was_killed


async def test_whoever_waits_in_a_sum_hands_the_device_back_all_the_same(
    workshop: Workshop, settings: TrainerSettings
) -> None:
    first, second = await two(workshop, settings)
    second.signal(signal.SIGSTOP)  # a machine that hangs: its connections stay open, and nothing comes
    count = -1

    async def stands_still() -> bool:
        nonlocal count
        before, count = count, len(first.steps)
        return before == count

    await eventually_async(stands_still, deadline=30.0, every=0.3, reason="a sum that does not end")
    assert not (await first.stop()).was_killed
    second.signal(signal.SIGKILL)


async def test_one_that_hangs_does_not_hold_the_other_up_for_ever(
    workshop: Workshop, settings: TrainerSettings
) -> None:
    first, second = await two(workshop, settings)
    second.signal(signal.SIGSTOP)
    await first.until(replicas=1)
    second.signal(signal.SIGCONT)
    await second.until(replicas=2)
    assert not (await second.stop()).was_killed
    assert not (await first.stop()).was_killed


async def test_without_a_lighthouse_nothing_that_runs_alone_stops(
    workshop: Workshop, settings: TrainerSettings, lighthouse: Lighthouse
) -> None:
    first = await ProcessReplica().start(workshop, as_pod(settings, "a"))
    await first.until(replicas=1)
    lighthouse.kill()
    await first.until(replicas=1, more_steps=20)
    second = await ProcessReplica().start(workshop, as_pod(settings, "b"))
    await second.until(replicas=1, more_steps=20)
    lighthouse.start()
    await first.until(replicas=2)
    await second.until(replicas=2)
    assert not (await first.stop()).was_killed
    assert not (await second.stop()).was_killed


async def test_a_team_goes_on_without_its_lighthouse_and_so_does_who_is_left_of_it(
    workshop: Workshop, settings: TrainerSettings, lighthouse: Lighthouse
) -> None:
    first, second = await two(workshop, settings)
    lighthouse.kill()
    await first.until(replicas=2, more_steps=20)
    second.signal(signal.SIGKILL)
    await first.until(replicas=1, more_steps=20)
    assert not (await first.stop()).was_killed
