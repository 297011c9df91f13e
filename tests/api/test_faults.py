"""The API server answers errors, comes late, breaks off or falls silent: the operator goes on, waits and catches up."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.api.conftest import World, open_world
from tests.support.eventually import eventually_async
from tests.support.fake_rollout import FakeRollout, manifest
from tests.support.fault_proxy import WATCH, WRITES, Answer, Delay, Fault, FaultProxy, Reset, Silence
from tlt_operator.api.job import parse_job
from tlt_operator.api.names import EventReason
from tlt_operator.clients.kube import JOB, POD, WATCH_SILENCE, Kubernetes
from tlt_operator.reconcile.answers import cancel
from tlt_operator.reconcile.clock import Clock
from tlt_operator.reconcile.recorder import Recorder

HIGHEST_WRITE_RATE = 5.0  # a second, while every write fails
HIGHEST_LIST_RATE = 2.0  # a second, of all watches of one job, while each breaks as soon as it is open
LASTS = 6.0  # seconds of a fault
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


@contextlib.asynccontextmanager
async def disturbance(
    kube: Kubernetes, kubeconfig: Path, namespace: str, folder: Path, *, silence: float = WATCH_SILENCE
) -> AsyncIterator[Disturbed]:
    """A world behind a proxy; `silence` is how long its operator bears a watch that tells nothing, in seconds."""
    proxy = FaultProxy(kubeconfig)
    await proxy.start()
    connection = await Kubernetes.connect(
        kubeconfig=str(proxy.write_kubeconfig(folder)), request_timeout=3.0, watch_silence=silence
    )
    async with open_world(kube, namespace, operator=connection) as world:
        yield Disturbed(world, proxy)
    await connection.close()
    await proxy.stop()


@pytest_asyncio.fixture
async def disturbed(kube: Kubernetes, kubeconfig: Path, namespace: str, tmp_path: Path) -> AsyncIterator[Disturbed]:
    async with disturbance(kube, kubeconfig, namespace, tmp_path) as found:
        yield found


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


async def test_half_of_all_calls_failing_delays_everything_and_stops_nothing(disturbed: Disturbed) -> None:
    world, proxy = disturbed.world, disturbed.proxy
    with proxy.failing(Answer(status=500), share=0.5):
        idle = await disturbed.lend()
        world.trainers["rollout-1"].publish(manifest("demo", 1))
        await world.until_condition("DrafterReady", "True", "RevisionActive")
        await disturbed.next_window(idle)
    assert len(await world.trainer_pods()) == 2
    assert not world.jobs.hung()


async def test_watches_that_break_at_once_make_no_storm_of_lists(disturbed: Disturbed) -> None:
    world, proxy = disturbed.world, disturbed.proxy
    await disturbed.lend()
    began = time.monotonic()
    with proxy.failing(Reset(), verbs=WATCH):
        await asyncio.sleep(2 * LASTS)
        rate = proxy.count(frozenset({"list"}), since=began) / (2 * LASTS)
        assert rate <= HIGHEST_LIST_RATE, proxy.summary(began)
        await world.kube.delete(POD, namespace=world.namespace, name="rollout-0")
        await world.until_workers(1)


async def test_kind_that_is_not_served_for_a_moment_is_written_to_again(disturbed: Disturbed) -> None:
    world, proxy = disturbed.world, disturbed.proxy
    idle = await disturbed.lend()
    with proxy.failing(Answer(status=404), resources=frozenset({"tltjobs", "tltjobs/status", "drafterrevisions"})):
        idle.generate()
        await eventually_async(
            lambda: proxy.count(resource="tltjobs/status", failed=True),
            deadline=30,
            reason="a status write that failed",
        )
    await world.until_condition("Harvesting", "False", "NoIdlePod")


async def test_two_hundred_identical_failures_are_one_event_that_counts(world: World) -> None:
    await world.apply_job()
    job = parse_job(await world.kube.get(JOB, namespace=world.namespace, name="demo"))
    now = 1000.0
    context = dataclasses.replace(world.context, clock=Clock(steady=lambda: now))
    message = "Trainer pod demo-trainer-1: model /models/policy does not exist in the trainer's image"

    async def fail(recorder: Recorder) -> None:
        nonlocal now
        for _ in range(200):
            recorder.warning(job, EventReason.TRAINER_FAILED, message, subject="demo-trainer-1")
            now += 1.0
            await asyncio.sleep(0.01)  # one write at a time, as it happens with a minute between them
        await recorder.close()

    await fail(Recorder(context))
    (event,) = await world.events("TrainerFailed")
    assert event["note"] == message
    assert event["regarding"]["name"] == "demo"
    assert event["series"]["count"] == 181, "the last write; what came after it is told with the next one"
    await fail(Recorder(context))  # of an operator that was started anew
    (event,) = await world.events("TrainerFailed")
    assert event["series"]["count"] == 2 * 181


async def test_pod_deleted_behind_a_silent_watch_is_noticed_after_the_silence(
    kube: Kubernetes, kubeconfig: Path, namespace: str, tmp_path: Path
) -> None:
    silence = 3.0
    async with disturbance(kube, kubeconfig, namespace, tmp_path, silence=silence) as found:
        world, proxy = found.world, found.proxy
        await found.lend()
        with proxy.failing(Silence(), verbs=WATCH):
            began = time.monotonic()
            await world.kube.delete(POD, namespace=namespace, name="rollout-0")
            await world.until_workers(1)
            assert time.monotonic() - began < silence + RECOVERY
            assert not world.jobs.hung()


async def test_job_that_no_watch_told_of_is_found_and_one_that_is_gone_is_let_go(world: World) -> None:
    await world.stop_feeding()
    recheck = asyncio.create_task(world.jobs.recheck())
    await world.apply_job()
    busy, idle = await world.add_rollout("rollout-0"), await world.add_rollout("rollout-1")
    busy.generate()
    idle.finish(captured=1000)
    await eventually_async(lambda: idle.lease, deadline=60, reason="a lease")
    await world.apply_job(suspend=True)
    await eventually_async(lambda: idle.last_lease, deadline=60, reason="the suspension")
    await world.apply_job(suspend=False)
    await eventually_async(lambda: idle.lease, deadline=60, reason="the next lease")
    await world.kube.delete(JOB, namespace=world.namespace, name="demo")
    await eventually_async(lambda: idle.lease is None, deadline=60, reason="the device back")
    assert not recheck.done()
    await cancel(recheck)


async def test_job_made_anew_under_its_name_is_another_job(world: World) -> None:
    await world.apply_job()
    busy, idle = await world.add_rollout("rollout-0"), await world.add_rollout("rollout-1")
    busy.generate()
    idle.finish(captured=1000)
    await eventually_async(lambda: idle.lease, deadline=60, reason="a lease")
    await world.stop_feeding()
    await world.kube.delete(JOB, namespace=world.namespace, name="demo")

    async def gone() -> bool:
        return await world.kube.find(JOB, namespace=world.namespace, name="demo") is None

    await eventually_async(gone, reason="the deletion")
    await world.apply_job()
    await world.start_feeding()  # begins with a list, which does not tell of the deletion

    async def lent_anew() -> bool:
        token = await world.token("demo")  # the old job's Secret goes with it, and kubelets bring the new one
        for pod in (*world.rollouts.values(), *world.trainers.values()):
            pod.token = token
        return len(idle.granted) > 1

    await eventually_async(lent_anew, deadline=60, every=0.2, reason="a lease of the new job")
    owner = (await world.kube.get(JOB, namespace=world.namespace, name="demo"))["metadata"]["uid"]

    async def owned() -> bool:
        owners = {pod["metadata"]["ownerReferences"][0]["uid"] for pod in await world.trainer_pods()}
        assert owners == {owner}, owners
        return True

    await eventually_async(owned, deadline=60, reason="trainers of the new job alone")
