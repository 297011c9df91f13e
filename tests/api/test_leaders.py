"""Two whole operators, one Lease, and a leader whose way to the API server is cut: never do both act."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
import pytest_asyncio

from tests.api.conftest import World, feed
from tests.support.eventually import eventually_async
from tests.support.fault_proxy import WRITES, Answer, Delay, Fault, FaultProxy, Reset
from tlt_operator.clients.kube import Kubernetes
from tlt_operator.reconcile.answers import cancel
from tlt_operator.reconcile.election import Election, lead
from tlt_operator.reconcile.jobs import Jobs
from tlt_operator.telemetry.metrics import Metrics

TAKE_OVER = 15.0  # seconds from the cut to the other one's first act
NAME = "tlt-operator"


@dataclass
class Operator:
    """One candidate behind a proxy of its own; `called` are the moments of its calls to pods, on the steady clock."""

    proxy: FaultProxy
    jobs: Jobs
    called: list[float] = field(default_factory=list)

    def acts(self) -> list[float]:
        """When it did something that two must not do: calls to pods, and writes that reached the API server."""
        writes = [
            call.at
            for call in self.proxy.calls
            if call.verb in WRITES and call.resource != "leases" and not call.failed
        ]
        return sorted([*self.called, *writes])


@contextlib.asynccontextmanager
async def operator(world: World, kubeconfig: Path, folder: Path, identity: str) -> AsyncIterator[Operator]:
    """What one process is: a connection, all jobs, and the election."""
    proxy, called = FaultProxy(kubeconfig), list[float]()
    await proxy.start()
    kube = await Kubernetes.connect(kubeconfig=str(proxy.write_kubeconfig(folder)), request_timeout=5.0)

    async def note(_: aiohttp.ClientSession, __: SimpleNamespace, ___: aiohttp.TraceRequestStartParams) -> None:
        called.append(time.monotonic())

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(note)
    async with aiohttp.ClientSession(trace_configs=[trace]) as session:
        jobs = Jobs(dataclasses.replace(world.context, kube=kube, session=session, metrics=Metrics()))
        election = Election(kube=kube, namespace=world.namespace, name=NAME, identity=identity)
        feeding = asyncio.create_task(feed(jobs, world.kube, world.namespace))
        leading = asyncio.create_task(lead(election, begin=jobs.begin, pause=jobs.pause))
        try:
            yield Operator(proxy, jobs, called)
            assert not leading.done()
        finally:
            await cancel(feeding, leading)
            await jobs.close()
    await kube.close()
    await proxy.stop()


@pytest_asyncio.fixture
async def two(world: World, kubeconfig: Path, tmp_path: Path) -> AsyncIterator[tuple[Operator, Operator]]:
    """The first one leads, the second one stands by; a device is lent."""
    await world.stop_operator()
    async with operator(world, kubeconfig, tmp_path, "first") as first:
        await eventually_async(lambda: first.jobs.acting, deadline=60, reason="the first one's lead")
        async with operator(world, kubeconfig, tmp_path, "second") as second:
            yield first, second


@pytest.mark.parametrize(
    "fault", [Reset(), Delay(seconds=60), Answer(status=500)], ids=["cut", "answers nothing", "fails"]
)
async def test_cut_off_leader_stops_before_the_other_one_takes_over(
    world: World, two: tuple[Operator, Operator], fault: Fault
) -> None:
    first, second = two
    await world.apply_job()
    busy, idle = await world.add_rollout("rollout-0"), await world.add_rollout("rollout-1")
    busy.generate()
    idle.finish(captured=1000)
    await eventually_async(lambda: idle.lease, deadline=60, reason="a lease")
    assert second.acts() == []
    with first.proxy.failing(fault):
        cut = time.monotonic()
        await eventually_async(second.acts, deadline=60, reason="the take-over")
        busy.finish()
        await eventually_async(lambda: idle.last_lease, deadline=60, reason="the end of the adopted lease")
        stopped, took_over = first.acts()[-1], second.acts()[0]
        print(f"{fault}: acted for {stopped - cut:.1f} s more, the other one from {took_over - cut:.1f} s on")
        assert stopped < took_over
        assert took_over - cut < TAKE_OVER
    await asyncio.sleep(3.0)
    assert not first.jobs.acting, "it has come back, and stands by"
    assert first.acts()[-1] == stopped
    assert len(idle.granted) == 1
    assert len(await world.trainer_pods()) == 2


async def test_leader_that_gets_through_now_and_then_goes_on(world: World, two: tuple[Operator, Operator]) -> None:
    first, second = two
    await world.apply_job()
    with first.proxy.failing(Answer(status=500), share=0.5):
        await asyncio.sleep(TAKE_OVER)
    assert first.jobs.acting
    assert second.acts() == []
