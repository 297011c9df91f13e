"""The API server answers errors, comes late, breaks off or falls silent: the operator goes on, waits and catches up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.api.conftest import World, open_world
from tests.support.eventually import eventually_async
from tests.support.fake_rollout import FakeRollout, manifest
from tests.support.fault_proxy import WRITES, Answer, Delay, Fault, FaultProxy, Reset
from tlt_operator.clients.kube import Kubernetes

HIGHEST_WRITE_RATE = 5.0  # a second, while every write fails
LASTS = 8.0  # seconds of a fault
RECOVERY = 15.0  # seconds until everything is as if the fault had never been


@dataclass
class Disturbed:
    """A world whose operator reaches the API server only through a proxy."""

    world: World
    proxy: FaultProxy

    async def lend(self) -> FakeRollout:
        """One pod generates, the other one is idle and lent."""
        world = self.world
        await world.apply_job()
        busy, idle = await world.add_rollout("rollout-0"), await world.add_rollout("rollout-1")
        busy.generate(4)
        idle.finish(captured=1000)
        await eventually_async(lambda: idle.lease, deadline=60, reason="a lease on the idle pod")
        await world.until_condition("Harvesting", "True", "LeaseHeld")
        return idle

    async def next_window(self, idle: FakeRollout) -> None:
        """A request takes the device back; once it is answered the device is lent again."""
        before = len(idle.granted)
        idle.generate()
        await eventually_async(lambda: idle.lease is None, deadline=30, reason="the hand-back")
        idle.finish(captured=1000)
        await eventually_async(lambda: len(idle.granted) > before, deadline=30, reason="the next lease")


@pytest_asyncio.fixture
async def disturbed(kube: Kubernetes, kubeconfig: Path, namespace: str, tmp_path: Path) -> AsyncIterator[Disturbed]:
    proxy = FaultProxy(kubeconfig)
    await proxy.start()
    connection = await Kubernetes.connect(kubeconfig=str(proxy.write_kubeconfig(tmp_path)), request_timeout=3.0)
    async with open_world(kube, namespace, operator=connection) as world:
        yield Disturbed(world, proxy)
    await connection.close()
    await proxy.stop()


@pytest.mark.parametrize(
    "fault",
    [
        Answer(status=409),
        Answer(status=429, retry_after=1),
        Answer(status=500),
        Answer(status=503),
        Reset(),
        Delay(seconds=4),
    ],
    ids=["409", "429", "500", "503", "reset", "slow"],
)
async def test_leases_go_on_while_every_call_fails_and_all_is_told_afterwards(
    disturbed: Disturbed, fault: Fault
) -> None:
    world, proxy = disturbed.world, disturbed.proxy
    idle = await disturbed.lend()
    began = time.monotonic()
    with proxy.failing(fault):
        new = await world.add_rollout("rollout-2")
        world.trainers["rollout-1"].publish(manifest("demo", 1))
        await disturbed.next_window(idle)
        await asyncio.sleep(LASTS)
        assert idle.lease is not None
        assert not world.jobs.hung()
    ended = time.monotonic()
    writes = proxy.count(WRITES, since=began)
    print(f"{fault} for {ended - began:.1f} s: {proxy.summary(began)}")
    assert writes / (ended - began) <= HIGHEST_WRITE_RATE, proxy.summary(began)
    await eventually_async(lambda: new.revision, deadline=RECOVERY, reason="the new revision in a new pod")
    print(f"caught up in {time.monotonic() - ended:.1f} s")
