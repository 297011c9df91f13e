"""How the operator behaves towards others in the cluster: people, controllers, and what is not its own."""

from __future__ import annotations

from typing import Any

from tests.api.conftest import World
from tests.api.test_loop import lend
from tests.support.eventually import eventually_async
from tests.support.fake_rollout import manifest
from tlt_operator.clients.kube import DEPLOYMENT, JOB, POD, REVISION, SECRET, SERVICE, Kind

BUDGET = Kind(api_version="policy/v1", kind="PodDisruptionBudget", plural="poddisruptionbudgets")


async def write_as(world: World, who: str, kind: Kind, name: str, body: dict[str, Any]) -> None:
    """A merge patch by another field manager."""
    await world.kube._json(
        "PATCH",
        kind.path(world.namespace, name),
        body=body,
        query=[("fieldManager", who)],
        content_type="application/merge-patch+json",
    )


async def make(world: World, kind: Kind, body: dict[str, Any]) -> None:
    full = {"apiVersion": kind.api_version, "kind": kind.kind, **body}
    await world.kube._json("POST", kind.path(world.namespace), body=full, query=[("fieldManager", "somebody")])


async def test_deletion_ends_while_no_operator_runs(world: World) -> None:
    await lend(world)
    idle = world.rollouts["rollout-1"]
    await world.stop_operator()
    await world.kube.delete(JOB, namespace=world.namespace, name="demo")

    async def gone() -> bool:
        assert await world.kube.find(JOB, namespace=world.namespace, name="demo") is None
        for kind in (POD, SECRET, SERVICE, DEPLOYMENT, REVISION):
            left = await world.kube.list_all(kind, namespace=world.namespace, labels="tlt.dev/job=demo")
            assert not left, [f"{kind.kind} {item['metadata']['name']}" for item in left]
        return True

    await eventually_async(gone, deadline=60, reason="no object of the job")
    await eventually_async(lambda: idle.last_lease, deadline=60, reason="the end of the lease without a heartbeat")
    assert idle.last_lease is not None
    assert idle.last_lease.reason == "Expired"


async def test_every_condition_tells_which_generation_it_is_about(world: World) -> None:
    await lend(world)
    world.trainers["rollout-1"].publish(manifest("demo", 1))
    await world.until_condition("DrafterReady", "True", "RevisionActive")
    await world.apply_job(idle={"after": "60ms", "minWindow": "5s"})
    job = await world.kube.get(JOB, namespace=world.namespace, name="demo")
    generation = job["metadata"]["generation"]
    assert generation > 1

    async def told() -> bool:
        status = await world.status()
        seen = {item["type"]: item["observedGeneration"] for item in status["conditions"]}
        assert len(seen) == 5
        assert set(seen.values()) == {generation}, seen
        return bool(status["observedGeneration"] == generation)

    await eventually_async(told, deadline=60, reason="conditions of the new generation")
    revision = await world.revision("demo-r1")
    assert revision is not None
    assert {item["observedGeneration"] for item in revision["status"]["conditions"]} == {1}


async def test_what_somebody_changes_in_a_child_is_set_back_and_told_with_who_and_which_field(world: World) -> None:
    await world.apply_job(gateway={"enabled": True})

    async def replicas() -> int:
        found = await world.kube.find(DEPLOYMENT, namespace=world.namespace, name="demo-gateway")
        return int(found["spec"]["replicas"]) if found is not None else 0

    await eventually_async(replicas, deadline=60, reason="the gateway")
    await write_as(world, "autoscaler", DEPLOYMENT, "demo-gateway", {"spec": {"replicas": 3}})
    await write_as(world, "autoscaler", DEPLOYMENT, "demo-gateway", {"metadata": {"labels": {"team": "rl"}}})
    await world.apply_job(gateway={"enabled": True}, suspend=True)  # any change of the spec applies the children again

    async def set_back() -> bool:
        return await replicas() == 1

    await eventually_async(set_back, deadline=60, reason="one gateway again")
    (event,) = await eventually_async(lambda: world.events("FieldSetBack"), deadline=60, reason="the Event")
    assert "Deployment demo-gateway" in event["note"]
    assert "autoscaler" in event["note"]
    assert ".spec.replicas" in event["note"]
    found = await world.kube.get(DEPLOYMENT, namespace=world.namespace, name="demo-gateway")
    assert found["metadata"]["labels"]["team"] == "rl", "what the operator does not set is everybody's"


async def test_object_of_somebody_else_is_not_taken_over(world: World) -> None:
    theirs = {"selector": {"app": "theirs"}, "ports": [{"name": "http", "port": 9000, "targetPort": 9000}]}
    await make(world, SERVICE, {"metadata": {"name": "demo-gateway"}, "spec": theirs})
    await world.apply_job(gateway={"enabled": True})
    found = await world.until_condition("Degraded", "True", "ChildNotApplied")
    assert "Service demo-gateway exists and is not of this job" in found["message"]
    kept = await world.kube.get(SERVICE, namespace=world.namespace, name="demo-gateway")
    assert kept["spec"]["selector"] == {"app": "theirs"}
    assert not kept["metadata"].get("ownerReferences")


async def test_rollout_pods_keep_their_disruption_budget_whatever_becomes_of_trainers(world: World) -> None:
    budget = {"minAvailable": 2, "selector": {"matchLabels": {"app": "rollout"}}}
    await make(world, BUDGET, {"metadata": {"name": "rollout"}, "spec": budget})
    await lend(world)
    before = {pod["metadata"]["uid"] for pod in await rollout_pods(world)}

    async def healthy() -> bool:
        status = (await world.kube.get(BUDGET, namespace=world.namespace, name="rollout")).get("status", {})
        found = {key: status.get(key) for key in ("expectedPods", "currentHealthy", "disruptionsAllowed")}
        assert found == {"expectedPods": 2, "currentHealthy": 2, "disruptionsAllowed": 0}, found
        return True

    await eventually_async(healthy, deadline=60, reason="a budget that counts the rollout pods alone")
    await world.apply_job(suspend=True)

    async def gone() -> bool:
        return not await world.trainer_pods()

    await eventually_async(gone, deadline=60, reason="the end of the trainers")
    assert await healthy()
    assert {pod["metadata"]["uid"] for pod in await rollout_pods(world)} == before


async def rollout_pods(world: World) -> list[dict[str, Any]]:
    return await world.kube.list_all(POD, namespace=world.namespace, labels="app=rollout")
