"""The whole loop against a real API server: lend, hand back, roll a revision."""

from __future__ import annotations

from tests.api.conftest import ROLLOUT_PORT, World
from tests.support.eventually import eventually_async
from tests.support.fake_rollout import manifest


async def lend(world: World) -> None:
    """One pod generates, the other one is idle and lent."""
    await world.apply_job()
    busy, idle = await world.add_rollout("rollout-0"), await world.add_rollout("rollout-1")
    busy.generate(4)
    idle.generate()
    idle.finish(captured=1000)
    await eventually_async(lambda: idle.lease, deadline=60, reason="a lease on the idle pod")


async def test_idle_device_is_lent_while_another_pod_generates(world: World) -> None:
    await lend(world)
    idle, busy = world.rollouts["rollout-1"], world.rollouts["rollout-0"]
    trainer = world.trainers["rollout-1"]
    assert idle.lease is not None
    assert idle.lease.holder == trainer.holder
    assert idle.granted[0].ttl > 0
    assert idle.granted[0].window > 0
    assert busy.lease is None
    await world.until_condition("Harvesting", "True", "LeaseHeld")
    await world.until_status(
        phase="Harvesting", workers={"total": 2, "busy": 1, "idle": 0, "lent": 1, "unknown": 0}, trainers=2
    )
    assert await world.events("LeaseGranted")


async def test_trainer_pod_shares_the_claim_and_nothing_else(world: World) -> None:
    await lend(world)
    (pod,) = [item for item in await world.trainer_pods() if item["metadata"]["labels"]["tlt.dev/rollout-uid"]][-1:]
    spec = pod["spec"]
    rollout = pod["metadata"]["annotations"]["tlt.dev/rollout-pod"]
    assert spec["resourceClaims"] == [{"name": "gpu", "resourceClaimName": f"{rollout}-gpu"}]
    assert spec["containers"][0]["resources"]["claims"] == [{"name": "gpu", "request": "gpu-0"}]
    assert "nodeName" not in spec
    assert spec["automountServiceAccountToken"] is False
    assert spec["terminationGracePeriodSeconds"] > 0


async def test_request_takes_the_device_back_and_the_next_window_is_lent_again(world: World) -> None:
    await lend(world)
    idle = world.rollouts["rollout-1"]
    idle.generate()
    await eventually_async(lambda: idle.lease is None and idle.last_lease, deadline=60, reason="the hand-back")
    assert idle.last_lease is not None
    assert idle.last_lease.reason == "Request"
    idle.finish()
    await eventually_async(lambda: idle.lease, deadline=60, reason="the next lease")
    assert len(idle.granted) == 2
    await eventually_async(lambda: world.events("LeaseEnded"), deadline=60, reason="the event")


async def test_lease_ends_when_the_tail_ends(world: World) -> None:
    await lend(world)
    idle, busy = world.rollouts["rollout-1"], world.rollouts["rollout-0"]
    busy.finish()
    await eventually_async(lambda: idle.last_lease, deadline=60, reason="the end of the lease")
    assert idle.last_lease is not None
    assert idle.last_lease.reason == "WindowEnd"
    await world.until_condition("Harvesting", "False", "OutOfScope")


async def test_any_idle_pod_is_lent_in_the_learners_phase_when_the_job_says_so(world: World) -> None:
    await world.apply_job(idle={"after": "50ms", "scope": "AnyIdle"})
    pod = await world.add_rollout("rollout-0")
    pod.finish(captured=1000)
    await eventually_async(lambda: pod.lease, deadline=60, reason="a lease without anybody generating")


async def test_every_pod_is_told_of_its_job_and_again_after_a_reboot(world: World) -> None:
    await world.apply_job()
    pod = await world.add_rollout("rollout-0")
    await eventually_async(lambda: pod.config, deadline=60, reason="the configuration")
    assert pod.config is not None
    assert pod.config.job == f"{world.namespace}/demo"
    assert pod.config.idle_after == 0.05
    await pod.reboot()
    await eventually_async(lambda: pod.config, deadline=60, reason="the configuration after the reboot")


async def test_better_candidate_becomes_the_active_revision_of_all_pods(world: World) -> None:
    await lend(world)
    world.trainers["rollout-1"].publish(manifest("demo", 1))
    for pod in world.rollouts.values():
        await eventually_async(
            lambda pod=pod: pod.revision and pod.revision.revision == "demo-r1",
            deadline=60,
            reason="the first revision",
        )
    await world.until_condition("DrafterReady", "True", "RevisionActive")
    world.trainers["rollout-1"].publish(manifest("demo", 2, accept_length=1.4, parent=1.5))
    world.trainers["rollout-1"].publish(manifest("demo", 3, accept_length=1.7, parent=1.5))

    async def superseded() -> bool:
        first, third = await world.revision("demo-r1"), await world.revision("demo-r3")
        assert first is not None
        assert third is not None
        assert first["status"]["phase"] == "Superseded", first["status"]
        assert third["status"]["phase"] == "Active", third["status"]
        return True

    await eventually_async(superseded, deadline=60, reason="the third revision in place of the first")
    assert await world.revision("demo-r2") is None
    third = await world.revision("demo-r3")
    assert third is not None
    assert third["spec"]["url"] == f"file:///tlt/{world.namespace}/demo/revisions/demo-r3"
    assert third["spec"]["digest"] == f"{3:064x}"
    assert third["metadata"]["ownerReferences"][0]["name"] == "demo"
    assert third["status"]["pods"] == {"total": 2, "loaded": 2, "failed": 0}

    await world.until_status(activeRevision="demo-r3", candidateRevision=None)


async def test_pod_that_joins_or_reboots_gets_the_active_revision(world: World) -> None:
    await lend(world)
    world.trainers["rollout-1"].publish(manifest("demo", 1))
    await world.until_condition("DrafterReady", "True", "RevisionActive")
    await world.rollouts["rollout-0"].reboot()
    await eventually_async(
        lambda: world.rollouts["rollout-0"].revision, deadline=60, reason="the revision after a reboot"
    )
    late = await world.add_rollout("rollout-2")
    await eventually_async(lambda: late.revision, deadline=60, reason="the revision in a new pod")


async def test_revision_that_every_pod_refuses_is_rolled_back_with_the_reason(world: World) -> None:
    await lend(world)
    world.trainers["rollout-1"].publish(manifest("demo", 1))
    await world.until_condition("DrafterReady", "True", "RevisionActive")
    for pod in world.rollouts.values():
        pod.refuse_drafter = "tensor fc.weight has shape [2, 2]"
    world.trainers["rollout-1"].publish(manifest("demo", 2, accept_length=2.0, parent=1.5))

    async def rolled_back() -> bool:
        second = await world.revision("demo-r2")
        assert second is not None
        assert second.get("status", {}).get("phase") == "RolledBack"
        assert "fc.weight" in second["status"]["message"]
        return True

    await eventually_async(rolled_back, deadline=60, reason="the roll-back")
    assert all(pod.revision and pod.revision.revision == "demo-r1" for pod in world.rollouts.values())
    await world.until_condition("DrafterReady", "True", "RevisionActive")
    assert await world.events("RevisionRolledBack")


async def test_what_the_gateway_waits_for_makes_a_tail_and_what_it_queues_makes_a_pod_busy_soon(world: World) -> None:
    await world.apply_job(gateway={"enabled": True})
    pod = await world.add_rollout("rollout-0")
    pod.finish(captured=1000)
    gateway = await world.run_gateway()
    await world.until_warm("rollout-0")
    await world.until_condition("Harvesting", "False", "OutOfScope")
    gateway.queued, gateway.outstanding = 2, 5
    gateway.bump()
    await world.until_condition("Harvesting", "False", "NoIdlePod")
    assert pod.lease is None
    gateway.queued = 0
    gateway.bump()
    await eventually_async(lambda: pod.lease, deadline=60, reason="a lease in the gateway's tail")


async def test_change_of_port_is_followed(world: World) -> None:
    await world.apply_job(port=ROLLOUT_PORT + 1)
    pod = await world.add_rollout("rollout-0")
    await world.until_condition("RolloutReady", "False", "PodsUnreachable")
    await world.apply_job()
    await eventually_async(lambda: pod.config, deadline=60, reason="the configuration over the right port")
    await world.until_condition("RolloutReady", "True", "PodsReady")


async def test_change_of_the_spec_reaches_pods_and_trainers(world: World) -> None:
    await world.apply_job()
    pod = await world.add_rollout("rollout-0")
    pod.finish(captured=1000)
    await world.until_warm("rollout-0")
    before = (await world.trainer_pods())[0]["metadata"]["uid"]
    await world.apply_job(
        speculation={"mode": "Static"}, training={"learningRate": 0.002, "trigger": {"minNewTokens": 100}}
    )
    await eventually_async(
        lambda: pod.config and pod.config.speculation.mode == "Static", deadline=60, reason="the new configuration"
    )

    async def replaced() -> bool:
        pods = await world.trainer_pods()
        return bool(pods) and pods[0]["metadata"]["uid"] != before

    await eventually_async(replaced, deadline=60, reason="a trainer with the new learning rate")
