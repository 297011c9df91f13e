"""Two jobs of one operator that may lend one device between them."""

from __future__ import annotations

import dataclasses

from tests.api.conftest import World
from tests.support.eventually import eventually_async
from tests.support.fake_rollout import FakeRollout


async def add_idle_job(world: World, name: str) -> FakeRollout:
    """A job whose one pod is idle and may be lent."""
    await world.apply_job(
        name,
        rollout={"selector": {"matchLabels": {"app": name}}},
        idle={"after": "50ms", "minWindow": "5s", "scope": "AnyIdle"},
    )
    pod = await world.add_rollout(f"{name}-0", job=name, app=name)
    pod.finish(captured=1000)
    return pod


async def test_second_job_gets_the_lease_when_the_first_has_given_it_back(world: World) -> None:
    world.context = dataclasses.replace(
        world.context, settings=dataclasses.replace(world.context.settings, max_leases=1)
    )
    await world.restart_operator()
    first = await add_idle_job(world, "first")
    await eventually_async(lambda: first.lease, deadline=60, reason="a lease for the first job")
    second = await add_idle_job(world, "second")
    await eventually_async(lambda: world.trainers.get("second-0"), deadline=60, reason="a warm trainer")
    found = await world.until_condition("Harvesting", "False", "BudgetSpent", name="second")
    assert "TLT_MAX_LEASES" in found["message"]
    assert second.lease is None
    first.generate()
    await eventually_async(lambda: second.lease, deadline=60, reason="a lease for the second job")
    assert first.lease is None
