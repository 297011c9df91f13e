"""Killed in any state and started anew, the operator goes on where it was, and makes nothing twice."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.api.conftest import World
from tests.api.test_process import Process, operator_process
from tests.support.eventually import eventually_async
from tests.support.fake_rollout import FakeRollout, manifest
from tests.support.fault_proxy import Answer, FaultProxy, Reset
from tlt_operator.clients.kube import REVISION
from tlt_workloads.contract import STATE_ROUTE

BACK = 60.0  # seconds, for a busy machine; what it takes is printed, and is less than 5 on one that is not
CREATE = frozenset({"create"})


@dataclass
class Killed:
    """A real operator process behind a counting proxy, and the world around it."""

    world: World
    process: Process
    proxy: FaultProxy

    async def begin(self) -> tuple[FakeRollout, FakeRollout]:
        """A job with two pods, a busy one and one with data."""
        self.process.start()
        await self.until_ready()
        await self.world.apply_job()
        busy, idle = await self.world.add_rollout("rollout-0"), await self.world.add_rollout("rollout-1")
        busy.generate()
        idle.finish(captured=1000)
        return busy, idle

    async def until_ready(self) -> None:
        await eventually_async(self.process.is_ready, deadline=BACK, every=0.1, reason="readiness")

    async def lend(self) -> tuple[FakeRollout, FakeRollout]:
        busy, idle = await self.begin()
        await eventually_async(lambda: idle.lease, deadline=BACK, reason="a lease")
        await eventually_async(self.has_two_trainers, deadline=BACK, reason="two trainers")
        return busy, idle

    async def has_two_trainers(self) -> bool:
        return len(await self.world.trainer_pods()) == 2

    async def trainers(self) -> set[str]:
        return {pod["metadata"]["uid"] for pod in await self.world.trainer_pods()}

    async def restart(self, *pods: FakeRollout) -> float:
        """Kills the operator, starts it anew, and waits until it asks the pods again; answers when it was started."""
        self.process.end(signal.SIGKILL)
        for pod in pods:
            pod.calls.clear()
        began = time.monotonic()
        self.process.start()
        await eventually_async(
            lambda: all(f"GET {STATE_ROUTE}" in pod.calls for pod in pods), deadline=BACK, reason="the first polls"
        )
        print(f"asks the pods {time.monotonic() - began:.1f} s after its start")
        return began

    def created(self, resource: str, since: float) -> int:
        return self.proxy.count(CREATE, resource=resource, since=since)


@pytest_asyncio.fixture
async def killed(world: World, kubeconfig: Path, namespace: str, tmp_path: Path) -> AsyncIterator[Killed]:
    await world.stop_operator()
    proxy = FaultProxy(kubeconfig)
    await proxy.start()
    with operator_process(proxy.write_kubeconfig(tmp_path), namespace, tmp_path / "operator.log") as process:
        yield Killed(world, process, proxy)
    await proxy.stop()


async def test_while_a_device_is_lent(killed: Killed) -> None:
    busy, idle = await killed.lend()
    lease, trainers = idle.lease, await killed.trainers()
    began = await killed.restart(busy, idle)
    busy.finish()
    await eventually_async(lambda: idle.last_lease, deadline=BACK, reason="the end of the adopted lease")
    print(f"acts {time.monotonic() - began:.1f} s after its start")
    assert lease is not None
    assert idle.last_lease is not None
    assert (idle.last_lease.id, idle.last_lease.reason) == (lease.id, "WindowEnd")
    assert len(idle.granted) == 1
    assert await killed.trainers() == trainers
    assert killed.created("pods", began) == 0


async def test_while_a_device_is_asked_back(killed: Killed) -> None:
    busy, idle = await killed.lend()
    trainer = killed.world.trainers["rollout-1"]
    trainer.hang()
    idle.generate()
    began = await killed.restart(busy, idle)
    await eventually_async(
        lambda: killed.world.trainers.get("rollout-1") not in (None, trainer), deadline=BACK, reason="another trainer"
    )
    assert await killed.has_two_trainers()
    assert killed.created("pods", began) == 1, "one for the one that did not hand back"
    assert len(idle.granted) == 1


async def test_while_trainers_start(killed: Killed) -> None:
    await killed.world.stop_kubelet()
    busy, idle = await killed.begin()
    await eventually_async(killed.has_two_trainers, deadline=BACK, reason="two trainer pods")
    trainers = await killed.trainers()
    began = await killed.restart(busy, idle)
    await killed.world.until_condition("Harvesting", "False", "TrainerStarting")
    await killed.world.start()
    await eventually_async(lambda: idle.lease, deadline=BACK, reason="a lease")
    assert await killed.trainers() == trainers
    assert killed.created("pods", began) == 0


@pytest.mark.parametrize("phase", ["Candidate", "Canary"])
async def test_while_a_revision_is_on_its_way(killed: Killed, phase: str) -> None:
    busy, idle = await killed.lend()
    world = killed.world
    busy.may_load.clear()
    world.trainers["rollout-1"].publish(manifest("demo", 1))

    async def candidate() -> bool:
        found = await world.revision("demo-r1")
        return found is not None and found.get("status", {}).get("phase") == "Candidate"

    await eventually_async(candidate, deadline=BACK, reason="the candidate")
    await eventually_async(lambda: idle.revision, deadline=BACK, reason="the candidate in one pod")
    uid = (await world.kube.get(REVISION, namespace=world.namespace, name="demo-r1"))["metadata"]["uid"]
    await world.kube.patch_status(REVISION, namespace=world.namespace, name="demo-r1", status={"phase": phase})
    began = await killed.restart(busy, idle)
    busy.may_load.set()
    await world.until_condition("DrafterReady", "True", "RevisionActive")
    (revision,) = await world.kube.list_all(REVISION, namespace=world.namespace)
    assert revision["metadata"]["uid"] == uid
    assert killed.created("drafterrevisions", began) == 0
    assert killed.created("pods", began) == 0


async def test_started_during_an_outage_it_is_alive_and_begins_when_that_ends(killed: Killed) -> None:
    process, proxy = killed.process, killed.proxy
    with proxy.failing(Answer(status=503)):
        process.start()
        await eventually_async(lambda: proxy.count(failed=True) > 2, deadline=BACK, reason="calls that fail")
        health, ready = process.get(process.probes, "/healthz"), process.get(process.probes, "/readyz")
        assert health is not None
        assert health.status_code == 200
        assert ready is not None
        assert ready.status_code == 503
    await killed.until_ready()


async def test_outage_of_everything_is_survived_by_the_same_process(killed: Killed) -> None:
    busy, idle = await killed.lend()
    process, proxy = killed.process, killed.proxy
    began = time.monotonic()
    with proxy.failing(Reset()):
        await asyncio.sleep(15.0)
        health = process.get(process.probes, "/healthz")
        assert health is not None
        assert health.status_code == 200, health.text
        busy.finish()
        await eventually_async(lambda: idle.last_lease, deadline=BACK, reason="the end of the lease")
    lasted = time.monotonic() - began
    print(f"{lasted:.1f} s without an API server:", proxy.summary(began))
    assert proxy.count(since=began) / lasted <= 10.0, proxy.summary(began)
    await killed.world.apply_job("later", rollout={"selector": {"matchLabels": {"app": "later"}}})
    await killed.world.until_condition("RolloutReady", "False", "NoPodsMatch", name="later")
    assert process.process is not None
    assert process.process.poll() is None
    print(f"knows a new job {time.monotonic() - began - lasted:.1f} s after its end")
