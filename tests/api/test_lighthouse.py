"""Several devices of one job: a lighthouse comes with the second pod, and only with it are two devices lent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest_asyncio

from tests.api.conftest import World
from tests.support.eventually import eventually_async
from tests.support.fake_rollout import FakeRollout
from tlt_operator.clients.kube import DEPLOYMENT, SERVICE, Kind

ANY_IDLE = {"after": "50ms", "minWindow": "5s", "scope": "AnyIdle"}


@pytest_asyncio.fixture(autouse=True)
async def teams(world: World) -> None:
    """They have to be asked for."""
    await world.stop_operator()
    world.context = replace(world.context, settings=replace(world.context.settings, teams=True))
    await world.start_operator()


async def found(world: World, kind: Kind) -> dict[str, Any] | None:
    return await world.kube.find(kind, namespace=world.namespace, name="demo-lighthouse")


async def is_there(world: World) -> bool:
    return await found(world, DEPLOYMENT) is not None and await found(world, SERVICE) is not None


async def is_gone(world: World) -> bool:
    return await found(world, DEPLOYMENT) is None and await found(world, SERVICE) is None


async def two_idle_pods(world: World, **spec: Any) -> tuple[FakeRollout, FakeRollout]:
    await world.apply_job(idle=ANY_IDLE, **spec)
    pods = await world.add_rollout("rollout-0"), await world.add_rollout("rollout-1")
    for pod in pods:
        pod.finish(captured=1000)
    return pods


def leases(*pods: FakeRollout) -> int:
    return sum(pod.lease is not None for pod in pods)


async def test_two_devices_are_lent_once_the_trainers_can_find_each_other(world: World) -> None:
    pods = await two_idle_pods(world)
    await eventually_async(lambda: leases(*pods) == 1, deadline=60, reason="a lease")
    for name in ("rollout-0", "rollout-1"):
        await world.until_warm(name)

    async def says_what_is_missing() -> bool:
        condition = await world.until_condition("Harvesting", "True", "LeaseHeld")
        return "demo-lighthouse" in condition["message"]

    await eventually_async(says_what_is_missing, deadline=60, reason="a word about the lighthouse")
    assert leases(*pods) == 1
    await world.run_lighthouse()
    await eventually_async(lambda: leases(*pods) == 2, deadline=60, reason="the second lease")


async def test_a_lighthouse_that_fails_takes_no_lease_away(world: World) -> None:
    pods = await two_idle_pods(world)
    await world.run_lighthouse()
    await eventually_async(lambda: leases(*pods) == 2, deadline=60, reason="two leases")
    await world.run_lighthouse(ready=False)
    pods[0].generate()
    await eventually_async(lambda: pods[0].lease is None, deadline=60, reason="the end of the first lease")
    assert pods[1].lease is not None


async def test_the_lighthouse_is_there_while_two_trainers_can_be_and_is_the_jobs(world: World) -> None:
    job = await world.apply_job(idle=ANY_IDLE)
    await world.add_rollout("rollout-0")
    await world.until_condition("RolloutReady", "True", "PodsReady")
    assert await is_gone(world), "one pod needs none"
    await world.add_rollout("rollout-1")
    await eventually_async(lambda: is_there(world), deadline=60, reason="a lighthouse")
    for kind in (DEPLOYMENT, SERVICE):
        body = await found(world, kind)
        assert body is not None
        assert [owner["uid"] for owner in body["metadata"]["ownerReferences"]] == [job["metadata"]["uid"]]
    await world.apply_job(idle=ANY_IDLE, suspend=True)
    await eventually_async(lambda: is_gone(world), deadline=60, reason="no lighthouse while nothing is lent")
    await world.apply_job(idle=ANY_IDLE)
    await eventually_async(lambda: is_there(world), deadline=60, reason="a lighthouse again")
    await world.apply_job(idle=ANY_IDLE, training={"maxTrainers": 1})
    await eventually_async(lambda: is_gone(world), deadline=60, reason="no lighthouse for one trainer")
