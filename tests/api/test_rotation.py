"""A token is replaced while everything runs, and nobody is turned away meanwhile."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest_asyncio

from tests.api.conftest import World
from tests.support.eventually import eventually_async
from tests.support.fake_rollout import FakeRollout
from tests.support.mounted_secret import MountedSecret
from tlt_operator.api.names import token_secret_name
from tlt_operator.clients.kube import JOB, SECRET
from tlt_operator.reconcile.answers import cancel
from tlt_workloads.tokens import TokenFile

OVERLAP = 2.0  # seconds of each step in these tests; kubelets are played ten times faster than that


@dataclass
class Kubelets:
    """Brings the Secret into each mount, into each with a delay of its own."""

    world: World
    folder: Path
    mounts: list[tuple[MountedSecret, float]] = field(default_factory=list)
    states: list[dict[str, str]] = field(default_factory=list)

    async def mount(self, *, delay: float) -> TokenFile:
        secret = MountedSecret(self.folder / str(len(self.mounts)), await self.read() or {})
        self.mounts.append((secret, delay))
        return TokenFile(secret.token)

    async def read(self) -> dict[str, str] | None:
        found = await self.world.kube.find(SECRET, namespace=self.world.namespace, name=token_secret_name("demo"))
        if found is None:
            return None
        return {key: base64.b64decode(value).decode() for key, value in found["data"].items()}

    async def run(self) -> None:
        updates: set[asyncio.Task[None]] = set()
        while True:
            state = await self.read()
            if state is not None and (not self.states or state != self.states[-1]):
                self.states.append(state)
                for secret, delay in self.mounts:
                    updates.add(asyncio.create_task(self._update(secret, state, delay)))
            await asyncio.sleep(0.02)

    async def _update(self, secret: MountedSecret, state: dict[str, str], delay: float) -> None:
        await asyncio.sleep(delay)
        secret.update(state)


@pytest_asyncio.fixture
async def kubelets(world: World, tmp_path: Path) -> AsyncIterator[Kubelets]:
    await world.stop_operator()
    world.context = replace(world.context, settings=replace(world.context.settings, token_overlap=OVERLAP))
    await world.start_operator()
    found = Kubelets(world, tmp_path)
    task = asyncio.create_task(found.run())
    yield found
    await cancel(task)


async def harvest(world: World, kubelets: Kubelets) -> FakeRollout:
    """A job with a busy pod and a lent one, which is returned; all pods have a mounted token of their own."""
    await world.apply_job()
    await world.token("demo")
    busy, idle = await world.add_rollout("rollout-0"), await world.add_rollout("rollout-1")
    busy.token, idle.token = await kubelets.mount(delay=0.2), await kubelets.mount(delay=0.0)
    busy.generate()
    idle.finish(captured=1000)
    for name in world.rollouts:
        trainer = await world.until_warm(name)
        trainer.token = await kubelets.mount(delay=0.1)
    await eventually_async(lambda: idle.lease, deadline=60, reason="a lease")
    return idle


async def annotate(world: World, value: str) -> None:
    body = {"metadata": {"annotations": {"tlt.dev/rotate-token": value}}}
    await world.kube.patch(JOB, namespace=world.namespace, name="demo", body=body)


async def test_a_rotation_turns_nobody_away_and_ends_no_lease(world: World, kubelets: Kubelets) -> None:
    idle = await harvest(world, kubelets)
    lease = idle.lease
    pods = [*world.rollouts.values(), *world.trainers.values()]
    for pod in pods:
        pod.refused.clear()
    (before,) = kubelets.states[-1].values()
    await annotate(world, "because")

    def is_over() -> bool:
        state = kubelets.states[-1]
        return set(state) == {"token"} and state["token"] != before

    await eventually_async(is_over, deadline=60, reason="the end of the rotation")
    after = kubelets.states[-1]["token"]
    assert kubelets.states[-4:] == [
        {"token": before},
        {"token": before, "token-next": after},
        {"token": after, "token-previous": before},
        {"token": after},
    ]
    called = {name: len(pod.calls) for name, pod in world.rollouts.items()}
    await eventually_async(
        lambda: all(len(pod.calls) > called[name] + 3 for name, pod in world.rollouts.items()),
        deadline=60,
        reason="calls with the new token",
    )
    assert [pod.refused for pod in pods] == [[]] * 4
    assert idle.lease is not None
    assert lease is not None
    assert idle.lease.id == lease.id, "the lease went through all of it"
    assert len(await world.events("TokenRotated")) == 3
    secret = await world.kube.get(SECRET, namespace=world.namespace, name=token_secret_name("demo"))
    assert secret["metadata"]["annotations"]["tlt.dev/rotate-token"] == "because"


async def test_a_rotation_goes_on_with_the_next_operator(world: World, kubelets: Kubelets) -> None:
    await harvest(world, kubelets)
    await annotate(world, "because")
    await eventually_async(lambda: "token-next" in kubelets.states[-1], deadline=60, reason="the first step")
    await world.restart_operator()
    await eventually_async(lambda: "token-previous" in kubelets.states[-1], deadline=60, reason="the second step")
    await world.restart_operator()
    await eventually_async(lambda: set(kubelets.states[-1]) == {"token"}, deadline=60, reason="the end")
    assert len({state["token"] for state in kubelets.states}) == 2, "one request, one new token"
    await world.until_condition("RolloutReady", "True", "PodsReady")


async def test_a_deleted_secret_is_made_anew_at_once_when_pods_lose_it(world: World, kubelets: Kubelets) -> None:
    await harvest(world, kubelets)
    before = kubelets.states[-1]["token"]
    await world.kube.delete(SECRET, namespace=world.namespace, name=token_secret_name("demo"))
    for secret, _ in kubelets.mounts:
        secret.update({})  # as the kubelet does with an optional Secret that is gone
    await eventually_async(lambda: kubelets.states[-1]["token"] != before, deadline=60, reason="another token")
    await world.until_condition("RolloutReady", "True", "PodsReady")


async def test_a_secret_of_somebody_elses_making_is_used_and_kept(world: World, kubelets: Kubelets) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": token_secret_name("demo"), "namespace": world.namespace},
        "stringData": {"token": "chosen", "note": "kept"},
    }
    await world.kube.create(body)
    await world.apply_job()
    rollout = await world.add_rollout("rollout-0")
    assert rollout.token == "chosen"
    await world.until_condition("RolloutReady", "True", "PodsReady")
    rollout.token = await kubelets.mount(delay=0.0)
    await annotate(world, "because")
    await eventually_async(
        lambda: set(kubelets.states[-1]) == {"token", "note"} and kubelets.states[-1]["token"] != "chosen",
        deadline=60,
        reason="the end of the rotation",
    )
    assert kubelets.states[-1]["note"] == "kept"
