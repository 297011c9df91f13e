"""Policies of a job: made, repaired, owned, and absent where nobody asked for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.api.conftest import World
from tests.support.eventually import eventually_async
from tlt_operator.clients.kube import NETWORK_POLICY
from tlt_operator.config import Peers

OPERATOR = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "tlt-system"}}}


async def policies(world: World) -> dict[str, dict[str, Any]]:
    found = await world.kube.list_all(NETWORK_POLICY, namespace=world.namespace)
    return {item["metadata"]["name"]: item for item in found}


async def until_policies(world: World, *names: str) -> dict[str, dict[str, Any]]:
    async def probe() -> dict[str, dict[str, Any]]:
        found = await policies(world)
        assert set(found) == set(names), sorted(found)
        return found

    return await eventually_async(probe, deadline=60, reason=f"the policies {names}")


async def test_policies_come_go_and_are_put_right(world: World) -> None:
    await world.stop_operator()
    asked = replace(
        world.context.settings,
        network_policies=True,
        operator_peers=Peers((OPERATOR,)),
        resync_interval=0.5,
        teams=True,
    )
    world.context = replace(world.context, settings=asked)
    await world.start_operator()
    job = await world.apply_job(gateway={"enabled": True})
    found = await until_policies(world, "demo-trainers", "demo-gateway", "demo-lighthouse")
    trainers = found["demo-trainers"]
    assert [owner["uid"] for owner in trainers["metadata"]["ownerReferences"]] == [job["metadata"]["uid"]]
    assert trainers["spec"]["ingress"][0]["from"] == [OPERATOR]

    wide_open = {"spec": {"ingress": [{}], "egress": [{}]}}
    await world.kube.patch(NETWORK_POLICY, namespace=world.namespace, name="demo-trainers", body=wide_open)

    async def is_put_right() -> bool:
        return bool((await policies(world))["demo-trainers"]["spec"] == trainers["spec"])

    await eventually_async(is_put_right, deadline=60, reason="the policy as it was")
    await world.apply_job(gateway={"enabled": False})
    await until_policies(world, "demo-trainers", "demo-lighthouse")
    await world.apply_job(gateway={"enabled": False}, training={"maxTrainers": 1})
    await until_policies(world, "demo-trainers")
    await world.until_condition("RolloutReady", "False", "NoPodsMatch")


async def test_without_being_asked_for_there_are_none(world: World) -> None:
    await world.apply_job(gateway={"enabled": True})
    await world.token("demo")
    await world.until_condition("RolloutReady", "False", "NoPodsMatch")
    assert await policies(world) == {}
