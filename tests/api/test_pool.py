"""A pool on a real API server with the real StatefulSet controller: made, lent, scaled, rolled, deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from tests.api.conftest import ROLLOUT_PORT, World, follow, next_address
from tests.support.eventually import eventually_async
from tests.support.fake_rollout import FakeRollout
from tlt_operator.api.names import COMPONENT_LABEL
from tlt_operator.clients.kube import CLAIM_TEMPLATE, DISRUPTION_BUDGET, JOB, POD, SERVICE, STATEFUL_SET, Kind
from tlt_operator.errors import RefusedError
from tlt_operator.reconcile.answers import cancel

LABELS = f"{COMPONENT_LABEL}=rollout"
CLAIM = Kind(api_version="resource.k8s.io/v1", kind="ResourceClaim", plural="resourceclaims")
QUOTA = Kind(api_version="v1", kind="ResourceQuota", plural="resourcequotas")


def pool(replicas: int, *, image: str = "vllm:1", count: int = 1) -> dict[str, Any]:
    return {
        "pool": {
            "replicas": replicas,
            "template": {"image": image},
            "claim": {"deviceClassName": "gpu.example.com", "count": count},
        }
    }


@dataclass
class Node:
    """Runs the pods of a pool as a kubelet would: each gets an address with a server, and is ready unless held back.

    `deaths` are the pods that were deleted, with what their server did at that moment.
    """

    world: World
    servers: dict[str, FakeRollout] = field(default_factory=dict)
    ready: bool = True  # whether new pods come up
    images: dict[str, str] = field(default_factory=dict)
    deaths: list[tuple[str, int, bool]] = field(default_factory=list)  # name, requests, lent
    most_missing: int = 0
    _names: dict[str, str] = field(default_factory=dict)  # of running pods, by uid

    async def run(self) -> None:
        async for event in follow(self.world.kube, POD, self.world.namespace, labels=LABELS):
            metadata = event.body["metadata"]
            name, uid = metadata["name"], metadata["uid"]
            if event.change == "DELETED":
                await self._stop(name, uid)
            elif uid not in self._names:
                await self._start(name, uid, event.body)

    async def _start(self, name: str, uid: str, body: dict[str, Any]) -> None:
        self._names[uid] = name
        self.images[name] = body["spec"]["containers"][0]["image"]
        job = body["metadata"]["labels"]["tlt.dev/job"]
        server = FakeRollout(next_address(), ROLLOUT_PORT, token=await self.world.token(job))
        self.servers[name] = server
        if self.ready:
            await self.bring_up(name)

    async def bring_up(self, name: str) -> None:
        """The server of a pod answers."""
        await self.servers[name].start()
        await self.world.set_pod_running(name, self.servers[name].address)

    async def _stop(self, name: str, uid: str) -> None:
        server = self.servers.pop(name)
        self._names.pop(uid)
        self.deaths.append((name, server.running, server.lease is not None))
        await server.stop()

    async def until_up(self, *names: str) -> None:
        """Waits until exactly these pods run and answer."""

        async def probe() -> bool:
            pods = await self.world.kube.list_all(POD, namespace=self.world.namespace, labels=LABELS)
            found = sorted(pod["metadata"]["name"] for pod in pods)
            assert found == sorted(names), found
            assert sorted(self.servers) == sorted(names), sorted(self.servers)
            return True

        await eventually_async(probe, deadline=60, reason=f"pods {names}")

    async def until_images(self, **images: str) -> None:
        """Waits until these pods, named by their ordinal as `_0`, run these images."""
        wanted = {f"demo-rollout-{name[1:]}": image for name, image in images.items()}

        async def probe() -> bool:
            assert {name: self.images[name] for name in self.servers} == wanted, self.images
            return True

        await eventually_async(probe, deadline=60, reason=f"images {wanted}")


@pytest_asyncio.fixture
async def node(world: World) -> AsyncIterator[Node]:
    found = Node(world)
    task = asyncio.create_task(found.run())
    yield found
    await cancel(task)
    for server in found.servers.values():
        await server.stop()


async def status_of_pool(world: World, **fields: int) -> None:
    async def probe() -> bool:
        found = (await world.status()).get("pool") or {}
        assert {name: found.get(name) for name in fields} == fields, found
        return True

    await eventually_async(probe, deadline=60, reason=f"status.pool {fields}")


async def until_told(world: World, reason: str, words: str) -> None:
    async def probe() -> bool:
        found = await world.condition("RolloutReady")
        assert found.get("reason") == reason, found
        assert words in found["message"], found
        return True

    await eventually_async(probe, deadline=60, reason=f"{reason}: {words}")


async def test_a_pool_is_made_and_an_idle_pod_of_it_is_lent(world: World, node: Node) -> None:
    await world.apply_job(rollout=pool(2, count=2))
    await node.until_up("demo-rollout-0", "demo-rollout-1")
    await world.until_condition("RolloutReady", "True", "PodsReady")
    await status_of_pool(world, replicas=2, ready=2, updated=2)
    busy, idle = node.servers["demo-rollout-0"], node.servers["demo-rollout-1"]
    busy.generate(4)
    idle.generate()
    idle.finish(captured=1000)
    await eventually_async(lambda: idle.lease, deadline=60, reason="a lease on the idle pod")
    [trainer] = [pod for pod in await world.trainer_pods() if "demo-rollout-1" in str(pod["metadata"]["annotations"])]
    [rollout] = [
        pod
        for pod in await world.kube.list_all(POD, namespace=world.namespace, labels=LABELS)
        if pod["metadata"]["name"] == "demo-rollout-1"
    ]
    [made] = rollout["status"]["resourceClaimStatuses"]
    assert trainer["spec"]["resourceClaims"] == [{"name": "gpu", "resourceClaimName": made["resourceClaimName"]}]
    claim = await world.kube.get(CLAIM, namespace=world.namespace, name=made["resourceClaimName"])
    assert [item["name"] for item in claim["spec"]["devices"]["requests"]] == ["gpu-0", "gpu-1"]
    await world.kube.get(SERVICE, namespace=world.namespace, name="demo-rollout")
    budget = await world.kube.get(DISRUPTION_BUDGET, namespace=world.namespace, name="demo-rollout")
    assert budget["spec"]["maxUnavailable"] == 1


async def test_fewer_replicas_wait_for_the_pods_at_the_end(world: World, node: Node) -> None:
    await world.apply_job(rollout=pool(3))
    await node.until_up(*(f"demo-rollout-{index}" for index in range(3)))
    node.servers["demo-rollout-2"].generate(2)
    await eventually_async(
        lambda: any(node.servers[f"demo-rollout-{index}"].lease for index in (0, 1)),
        deadline=60,
        reason="a lease on an idle pod",
    )
    scale = {"spec": {"replicas": 1}}
    await world.kube._json(
        "PATCH",
        JOB.path(world.namespace, "demo", "scale"),
        body=scale,
        content_type="application/merge-patch+json",
    )
    await until_told(world, "PoolScaling", "demo-rollout-2 is Busy")
    assert node.deaths == [], "pod 1 is idle, and the StatefulSet can only shrink from its end"
    node.servers["demo-rollout-2"].finish()
    await node.until_up("demo-rollout-0")
    assert [(requests, lent) for _, requests, lent in node.deaths] == [(0, False)] * 2
    await world.until_condition("RolloutReady", "True", "PodsReady")
    await world.apply_job(rollout=pool(2))
    await node.until_up("demo-rollout-0", "demo-rollout-1")
    answer = await world.kube._json("GET", JOB.path(world.namespace, "demo", "scale"))
    assert answer["spec"]["replicas"] == 2
    assert answer["status"]["selector"] == "tlt.dev/job=demo,tlt.dev/component=rollout"


async def test_a_new_template_comes_in_one_by_one_and_never_costs_a_request(world: World, node: Node) -> None:
    await world.apply_job(rollout=pool(3))
    await node.until_up(*(f"demo-rollout-{index}" for index in range(3)))
    busy, lent = node.servers["demo-rollout-0"], node.servers["demo-rollout-1"]
    busy.generate(4)
    for index in (1, 2):
        node.servers[f"demo-rollout-{index}"].finish(captured=1000)
    await eventually_async(
        lambda: lent.lease or node.servers["demo-rollout-2"].lease, deadline=60, reason="a lease on an idle pod"
    )
    node.ready = False
    await world.apply_job(rollout=pool(3, image="vllm:2"))
    await eventually_async(lambda: len(node.deaths) == 1, deadline=60, reason="the first replacement")
    first = node.deaths[0][0]
    await eventually_async(lambda: node.images[first] == "vllm:2", deadline=60, reason="its successor")
    await until_told(world, "PoolRolling", f"pod {first} is not ready yet")
    await asyncio.sleep(3 * world.context.settings.tick)  # several looks, each of which could take the next pod
    assert len(node.deaths) == 1, "the next one waits until this one is ready"
    node.ready = True
    await node.bring_up(first)
    await eventually_async(lambda: len(node.deaths) == 2, deadline=60, reason="the second replacement")
    await status_of_pool(world, replicas=3, ready=3, updated=2)
    assert "demo-rollout-0" not in {name for name, _, _ in node.deaths}, "it generates"
    busy.finish()
    await node.until_images(_0="vllm:2", _1="vllm:2", _2="vllm:2")
    await world.until_condition("RolloutReady", "True", "PodsReady")
    assert [(requests, lent) for _, requests, lent in node.deaths] == [(0, False)] * 3


async def test_a_template_that_does_not_come_up_stops_at_one_pod_and_the_next_one_repairs_it(
    world: World, node: Node
) -> None:
    await world.apply_job(rollout=pool(2))
    await node.until_up("demo-rollout-0", "demo-rollout-1")
    node.ready = False
    await world.apply_job(rollout=pool(2, image="vllm:broken", count=2))
    await eventually_async(lambda: len(node.deaths) == 1, deadline=60, reason="the one replacement")
    broken = node.deaths[0][0]
    started = lambda: broken in node.servers and node.images[broken] == "vllm:broken"  # noqa: E731
    await eventually_async(started, deadline=60, reason="the broken pod, which is not to come up")
    await until_told(world, "PoolRolling", f"pod {broken} is not ready yet")
    node.ready = True
    await world.apply_job(rollout=pool(2, image="vllm:3"))
    await node.until_images(_0="vllm:3", _1="vllm:3")
    assert [name for name, _, _ in node.deaths[:2]] == [broken, broken], "the pod that never came up goes first"
    await world.until_condition("RolloutReady", "True", "PodsReady")
    templates = await world.kube.list_all(CLAIM_TEMPLATE, namespace=world.namespace)
    assert len(templates) == 1, "claims of the old kind are asked for no more"


async def test_a_restarted_operator_goes_on_with_the_roll(world: World, node: Node) -> None:
    await world.apply_job(rollout=pool(2))
    await node.until_up("demo-rollout-0", "demo-rollout-1")
    node.servers["demo-rollout-0"].generate()
    await world.apply_job(rollout=pool(2, image="vllm:2"))
    await node.until_images(_0="vllm:1", _1="vllm:2")
    await world.restart_operator()
    node.servers["demo-rollout-0"].finish()
    await node.until_images(_0="vllm:2", _1="vllm:2")
    assert len(node.deaths) == 2


async def test_a_quota_that_is_too_small_is_told_in_its_own_words(world: World, node: Node) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "few", "namespace": world.namespace},
        "spec": {"hard": {"pods": "1"}},
    }
    await world.kube._json("POST", QUOTA.path(world.namespace), body=quota)

    async def counted() -> bool:
        found = await world.kube.get(QUOTA, namespace=world.namespace, name="few")
        return "hard" in (found.get("status") or {})

    await eventually_async(counted, deadline=60, reason="the quota in force")
    await world.apply_job(rollout=pool(2), suspend=True)
    found = await world.until_condition("Degraded", "True", "QuotaExceeded")
    assert "exceeded quota: few" in found["message"]
    await world.kube._json("DELETE", QUOTA.path(world.namespace, "few"))
    await node.until_up("demo-rollout-0", "demo-rollout-1")
    await world.until_condition("Degraded", "False", "AsExpected")


async def test_a_deleted_job_takes_everything_with_it(world: World, node: Node) -> None:
    await world.apply_job(rollout=pool(2))
    await node.until_up("demo-rollout-0", "demo-rollout-1")
    await world.kube.delete(JOB, namespace=world.namespace, name="demo")
    kinds = (STATEFUL_SET, POD, SERVICE, DISRUPTION_BUDGET, CLAIM_TEMPLATE, CLAIM)

    async def gone() -> bool:
        found = [await world.kube.list_all(kind, namespace=world.namespace) for kind in kinds]
        left = [f"{item['kind']} {item['metadata']['name']}" for items in found for item in items]
        assert left == [], left
        return True

    await eventually_async(gone, deadline=120, reason="the end of the job's objects")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rollout": {"selector": {"matchLabels": {"app": "rollout"}}}}, "cannot change between selector and pool"),
        ({"port": 9000}, "spec.port cannot be changed"),
        ({"rollout": {"pool": {**pool(1)["pool"], "template": {"image": "x", "args": ["--port=1"]}}}}, "--port"),
        (
            {"rollout": {"pool": {**pool(1)["pool"], "template": {"image": "x", "env": [{"name": "TLT_JOB"}]}}}},
            "TLT_JOB",
        ),
    ],
)
async def test_what_a_pool_cannot_take_is_refused_by_the_schema(
    world: World, changes: dict[str, Any], words: str
) -> None:
    await world.stop_operator()
    await world.apply_job(rollout=pool(1))
    with pytest.raises(RefusedError, match=words):
        await world.apply_job(**{"rollout": pool(1), **changes})
