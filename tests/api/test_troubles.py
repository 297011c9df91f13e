"""What goes wrong: each trouble is told by a condition, nothing crashes, other jobs go on."""

from __future__ import annotations

import pytest

from tests.api.conftest import World, job_body
from tests.support.eventually import eventually_async
from tests.support.fake_rollout import FakeRollout, manifest
from tlt_operator.clients.kube import DEPLOYMENT, JOB, POD, REVISION, SECRET, SERVICE
from tlt_operator.errors import RefusedError


async def test_selector_that_matches_nothing(world: World) -> None:
    await world.apply_job()
    found = await world.until_condition("RolloutReady", "False", "NoPodsMatch")
    assert "app=rollout" in found["message"]
    await world.until_status(phase="Pending")


async def test_pod_without_the_plugin_is_named_and_the_others_are_used(world: World) -> None:
    await world.apply_job()
    await world.add_rollout("plain", plugin=False)
    found = await world.until_condition("RolloutReady", "False", "PluginMissing")
    assert "plain" in found["message"]
    good = await world.add_rollout("rollout-0")
    await world.until_condition("RolloutReady", "True", "SomePodsReady")
    await eventually_async(lambda: good.config, deadline=60, reason="the configuration of the good pod")


async def test_pod_that_refuses_the_token(world: World) -> None:
    await world.apply_job()
    await world.add_rollout("rollout-0", token="another")
    found = await world.until_condition("RolloutReady", "False", "TokenRefused")
    assert "demo-tlt-control" in found["message"]


async def test_pod_without_a_claim_is_watched_and_not_lent(world: World) -> None:
    await world.apply_job()
    await world.add_rollout("rollout-0", claim=False)
    found = await world.until_condition("Degraded", "True", "NoResourceClaim")
    assert "rollout-0" in found["message"]
    await world.until_condition("RolloutReady", "True", "PodsReady")
    await world.until_condition("Harvesting", "False", "NoResourceClaim")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"store": {"url": "ftp://host/x"}}, "spec.store.url"),
        ({"rollout": {}}, "spec.rollout.selector"),
        ({"placement": {"strategy": "Magic"}}, "strategy"),
    ],
)
async def test_what_the_schema_refuses_names_the_field(world: World, changes: dict[str, object], word: str) -> None:
    with pytest.raises(RefusedError, match=word):
        await world.kube.apply(job_body(world.namespace, **changes))


async def test_trainer_that_fails_is_told_and_tried_again_when_its_pod_died(world: World) -> None:
    await world.apply_job()
    pod = await world.add_rollout("rollout-0")
    pod.finish(captured=1000)
    trainer = await world.until_warm("rollout-0")
    trainer.fail("model /models/policy does not exist in the trainer's image")
    found = await world.until_condition("Degraded", "True", "TrainerFailed")
    assert "/models/policy" in found["message"]
    (first,) = await world.trainer_pods()
    await world.fail_pod(first["metadata"]["name"], "the node ran out of memory")

    async def replaced() -> bool:
        pods = await world.trainer_pods()
        return bool(pods) and pods[0]["metadata"]["uid"] != first["metadata"]["uid"]

    await eventually_async(replaced, deadline=60, reason="another trainer")
    assert await world.events("TrainerFailed")
    await world.until_condition("Degraded", "False", "AsExpected")


async def test_template_that_makes_no_pod_is_told_with_the_field(world: World) -> None:
    resources = {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}
    await world.apply_job(training={"trigger": {"minNewTokens": 100}, "template": {"resources": resources}})
    pod = await world.add_rollout("rollout-0")
    pod.finish(captured=1000)
    found = await world.until_condition("Degraded", "True", "TrainerFailed")
    assert "spec.training.template" in found["message"]
    assert "resources.requests" in found["message"]


async def test_gateway_that_cannot_be_made_is_told_and_harvesting_goes_on(world: World) -> None:
    await world.apply_job(
        gateway={"enabled": True},
        rollout={"selector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["rollout"]}]}},
    )
    busy, idle = await world.add_rollout("rollout-0"), await world.add_rollout("rollout-1")
    busy.generate()
    idle.finish(captured=1000)
    found = await world.until_condition("Degraded", "True", "ChildNotApplied")
    assert "spec.rollout.selector.matchLabels" in found["message"]
    await eventually_async(lambda: idle.lease, deadline=60, reason="a lease all the same")


async def test_one_bad_job_does_not_touch_another(world: World) -> None:
    await world.apply_job("bad", rollout={"selector": {"matchLabels": {"app": "nobody"}}}, port=1)
    await world.apply_job()
    pod = await world.add_rollout("rollout-0")
    await eventually_async(lambda: pod.config, deadline=60, reason="the configuration")
    await world.until_condition("RolloutReady", "True", "PodsReady")
    await world.until_condition("RolloutReady", "False", "NoPodsMatch", name="bad")


async def test_pod_that_stops_answering_is_unknown_and_comes_back(world: World) -> None:
    await world.apply_job()
    pod = await world.add_rollout("rollout-0")
    await world.until_condition("RolloutReady", "True", "PodsReady")
    await pod.stop()
    await world.until_condition("RolloutReady", "False", "PodsUnreachable")
    await world.until_status(workers={"total": 1, "busy": 0, "idle": 0, "lent": 0, "unknown": 1})
    await pod.start()
    await world.until_condition("RolloutReady", "True", "PodsReady")


async def test_token_is_never_replaced(world: World) -> None:
    await world.apply_job()
    token = await world.token("demo")
    await world.restart_operator()
    await world.add_rollout("rollout-0")
    await world.until_condition("RolloutReady", "True", "PodsReady")
    assert await world.token("demo") == token
    secret = await world.kube.get(SECRET, namespace=world.namespace, name="demo-tlt-control")
    assert secret["metadata"]["ownerReferences"][0]["kind"] == "TLTJob"


async def test_suspended_job_takes_its_devices_back_and_lends_again_afterwards(world: World) -> None:
    await world.apply_job()
    busy, idle = await world.add_rollout("rollout-0"), await world.add_rollout("rollout-1")
    busy.generate()
    idle.finish(captured=1000)
    await eventually_async(lambda: idle.lease, deadline=60, reason="a lease")
    await world.apply_job(suspend=True)
    await eventually_async(lambda: idle.last_lease, deadline=60, reason="the end of the lease")
    assert idle.last_lease is not None
    assert idle.last_lease.reason == "Operator"

    async def gone() -> bool:
        return not await world.trainer_pods()

    await eventually_async(gone, deadline=60, reason="the end of the trainers")
    await world.until_status(phase="Suspended", trainers=0)
    await world.apply_job(suspend=False)
    await eventually_async(lambda: idle.lease, deadline=60, reason="a lease after the suspension")


async def test_deleted_job_leaves_nothing_behind(world: World) -> None:
    await world.apply_job(gateway={"enabled": True})
    busy, idle = await world.add_rollout("rollout-0"), await world.add_rollout("rollout-1")
    busy.generate()
    idle.finish(captured=1000)
    await eventually_async(lambda: idle.lease, deadline=60, reason="a lease")
    job = await world.kube.get(JOB, namespace=world.namespace, name="demo")
    assert not job["metadata"].get("finalizers"), "a job can be deleted while no operator runs"
    await world.kube.delete(JOB, namespace=world.namespace, name="demo")
    await eventually_async(lambda: idle.lease is None, deadline=60, reason="the device back")

    async def gone() -> bool:
        for kind in (POD, SECRET, SERVICE, DEPLOYMENT, REVISION):
            left = await world.kube.list_all(kind, namespace=world.namespace, labels="tlt.dev/job=demo")
            assert not left, [f"{kind.kind} {item['metadata']['name']}" for item in left]
        return True

    await eventually_async(gone, deadline=60, reason="no object of the job")
    assert len(await world.kube.list_all(POD, namespace=world.namespace, labels="app=rollout")) == 2


async def test_gateway_comes_and_goes_with_the_spec(world: World) -> None:
    async def exists() -> bool:
        return await world.kube.find(DEPLOYMENT, namespace=world.namespace, name="demo-gateway") is not None

    async def absent() -> bool:
        return not await exists()

    await world.apply_job(gateway={"enabled": True})
    await eventually_async(exists, deadline=60, reason="the gateway")
    await world.apply_job(gateway={"enabled": False})
    await eventually_async(absent, deadline=60, reason="the end of the gateway")


async def test_trainer_that_does_not_hand_back_loses_its_pod(world: World) -> None:
    await world.apply_job(reclaim={"grace": "0s"}, idle={"after": "50ms", "minWindow": "5s"})
    busy, idle = await world.add_rollout("rollout-0"), await world.add_rollout("rollout-1")
    busy.generate()
    idle.finish(captured=1000)
    await eventually_async(lambda: idle.lease, deadline=60, reason="a lease")
    trainer = world.trainers["rollout-1"]
    supervisor = trainer._supervisor
    assert supervisor is not None
    supervisor.cancel()
    holder = trainer.holder
    idle.granted[-1] = idle.granted[-1].__class__(holder=holder, ttl=1e6)  # this pod would wait for ever
    idle.generate()

    async def replaced() -> bool:
        names = {f"{pod['metadata']['name']}/{pod['metadata']['uid']}" for pod in await world.trainer_pods()}
        return holder not in names

    await eventually_async(replaced, deadline=60, reason="the end of the hung trainer")


class TestRestart:
    """A new operator finds everything in the cluster and in the pods."""

    async def lend(self, world: World) -> FakeRollout:
        await world.apply_job()
        busy, idle = await world.add_rollout("rollout-0"), await world.add_rollout("rollout-1")
        busy.generate()
        idle.finish(captured=1000)
        await eventually_async(lambda: idle.lease, deadline=60, reason="a lease")
        return idle

    async def test_lease_and_trainers_are_adopted(self, world: World) -> None:
        idle = await self.lend(world)
        before = [pod["metadata"]["uid"] for pod in await world.trainer_pods()]
        await world.restart_operator()
        await world.until_condition("Harvesting", "True", "LeaseHeld")
        lease = idle.lease
        assert lease is not None
        assert len(idle.granted) == 1
        world.rollouts["rollout-0"].finish()
        await eventually_async(lambda: idle.last_lease, deadline=60, reason="the end of the adopted lease")
        assert [pod["metadata"]["uid"] for pod in await world.trainer_pods()] == before

    async def test_revision_goes_on_where_it_was(self, world: World) -> None:
        await self.lend(world)
        for pod in world.rollouts.values():
            pod.refuse_drafter = "not yet"
        await world.stop_operator()
        world.trainers["rollout-1"].publish(manifest("demo", 1))
        for pod in world.rollouts.values():
            pod.refuse_drafter = None
        await world.start_operator()
        await world.until_condition("DrafterReady", "True", "RevisionActive")

    async def test_device_seconds_are_neither_lost_nor_repeated(self, world: World) -> None:
        idle = await self.lend(world)
        busy = world.rollouts["rollout-0"]

        async def written() -> bool:
            return bool((await world.status()).get("gpuSeconds", {}).get("busy", 0) > 0.5)

        await eventually_async(written, deadline=60, reason="counters in the status")
        for _ in range(3):
            await world.restart_operator()
        await world.until_condition("Harvesting", "True", "LeaseHeld")

        async def agrees() -> bool:
            seconds = (await world.status())["gpuSeconds"]
            busy._count()
            idle._count()
            real = busy.busy_seconds + idle.busy_seconds
            assert abs(seconds["busy"] - real) < 1.5, (seconds, real)
            return real > 2

        await eventually_async(agrees, deadline=60, reason="counters that agree with the pods")
