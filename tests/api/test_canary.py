"""A revision on trial against a real API server: tried by few, compared at the same time, promoted or withdrawn."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest_asyncio

from tests.api.conftest import World
from tests.support.eventually import eventually_async
from tests.support.fake_rollout import FakeRollout, FakeTrainer, manifest
from tlt_operator.clients.kube import JOB, REVISION
from tlt_operator.reconcile.answers import cancel

STEP = 0.05  # seconds between two reports of a pod that generates
DRAFTS = 100  # in each
START = 1.4  # accept length of the drafter that servers start with
RELEASE: dict[str, Any] = {"canary": {"replicas": 1, "minDrafts": 500, "timeLimit": "10m"}}


class Stage:
    """A job whose pods draft all the time, each as well as its drafter is."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.worth: dict[str | None, float] = {None: START}
        self.most_canaries: dict[str, int] = {}  # by revision, at one time
        self.drafting = True

    async def set(self, pods: int, **release: Any) -> None:
        await self.world.apply_job(release={**RELEASE, **release})
        for number in range(pods):
            await self.world.add_rollout(f"rollout-{number}")
        self.pods[0].finish(captured=1000)

    @property
    def pods(self) -> list[FakeRollout]:
        return list(self.world.rollouts.values())

    async def publish(self, number: int, *, worth: float) -> str:
        self.worth[f"demo-r{number}"] = worth
        trainer: FakeTrainer = await self.world.until_warm("rollout-0")
        trainer.publish(manifest("demo", number, accept_length=1.5 + number / 10, parent=1.0 if number > 1 else None))
        return f"demo-r{number}"

    async def generate(self) -> None:
        while True:
            await asyncio.sleep(STEP)
            for pod in self.pods if self.drafting else ():
                pod.draft(DRAFTS, accept_length=self.worth[pod.drafter])
            for name in self.worth:
                having = sum(pod.drafter == name for pod in self.pods)
                if name is not None and having < len(self.pods):
                    self.most_canaries[name] = max(self.most_canaries.get(name, 0), having)

    async def status(self, name: str) -> Mapping[str, Any]:
        found = await self.world.revision(name)
        return (found or {}).get("status") or {}

    async def until(self, name: str, phase: str, reason: str | None = None) -> Mapping[str, Any]:
        """Waits until a revision is in a phase, for a reason; its status."""

        async def probe() -> Mapping[str, Any]:
            status = await self.status(name)
            assert status.get("phase") == phase, status
            reasons = {item["reason"] for item in status["conditions"]}
            assert reason is None or reason in reasons, status
            return status

        return await eventually_async(probe, deadline=60, reason=f"{name} {phase} ({reason})")

    async def until_everywhere(self, name: str | None) -> None:
        await eventually_async(
            lambda: {pod.drafter for pod in self.pods} == {name}, deadline=60, reason=f"{name} in every pod"
        )

    async def annotate(self, name: str, **annotations: str) -> None:
        body = {"metadata": {"annotations": {f"tlt.dev/{key}": value for key, value in annotations.items()}}}
        await self.world.kube.patch(REVISION, namespace=self.world.namespace, name=name, body=body)

    async def pin(self, name: str | None) -> None:
        body = {"spec": {"release": {"pin": name}}}
        await self.world.kube.patch(JOB, namespace=self.world.namespace, name="demo", body=body)

    def canary(self, name: str) -> FakeRollout:
        (found,) = [pod for pod in self.pods if pod.drafter == name]
        return found

    async def until_tried(self, name: str) -> FakeRollout:
        await self.until(name, "Canary")
        await eventually_async(
            lambda: sum(pod.drafter == name for pod in self.pods) == 1, deadline=60, reason="a canary with it"
        )
        return self.canary(name)


@pytest_asyncio.fixture
async def stage(world: World) -> AsyncIterator[Stage]:
    found = Stage(world)
    generating = asyncio.create_task(found.generate())
    yield found
    await cancel(generating)


async def test_a_good_one_is_tried_by_one_pod_and_then_comes_to_all(stage: Stage) -> None:
    await stage.set(4)
    name = await stage.publish(1, worth=1.9)
    await stage.until_everywhere(name)
    status = await stage.until(name, "Active", "TestPassed")
    assert stage.most_canaries[name] >= 1
    evidence = status["evidence"]
    assert evidence["comparison"] == "SideBySide"
    assert evidence["canaryDrafts"] >= 500
    assert evidence["baselineDrafts"] >= 500
    assert (evidence["canaryAcceptLength"], evidence["baselineAcceptLength"]) == (1.9, START)
    assert evidence["test"]["fine"] >= evidence["test"]["fineDecides"]
    assert "trial" not in status, "the record is of no use any more"
    await stage.world.until_condition("DrafterReady", "True", "RevisionActive")
    await stage.until(name, "Active", "PodsLoaded")
    for reason in ("RevisionOnTrial", "RevisionActive"):
        assert await stage.world.events(reason)
    second = await stage.publish(2, worth=2.4)
    await stage.until_everywhere(second)
    await stage.until(name, "Superseded")
    await stage.world.until_status(activeRevision=second, candidateRevision=None)


async def test_twenty_bad_ones_are_never_promoted(stage: Stage) -> None:
    await stage.set(3)
    good = await stage.publish(1, worth=1.9)
    await stage.until_everywhere(good)
    for number in range(2, 22):
        bad = await stage.publish(number, worth=1.0)
        status = await stage.until(bad, "RolledBack")
        assert {item["reason"] for item in status["conditions"]} & {"Worse"}, status
        assert stage.most_canaries.get(bad, 0) <= 1
    await stage.until_everywhere(good)
    await stage.until(good, "Active")
    assert all(pod.loads.count(f"demo-r{number}") <= 1 for pod in stage.pods for number in range(2, 22))
    counted = stage.world.context.metrics.rollbacks.labels(job=f"{stage.world.namespace}/demo")
    assert counted._value.get() == 20
    assert await stage.world.events("RevisionRolledBack")


async def test_a_bad_first_one_is_taken_out_again(stage: Stage) -> None:
    await stage.set(3)
    bad = await stage.publish(1, worth=1.0)
    await stage.until(bad, "RolledBack", "Worse")
    await stage.until_everywhere(None)
    assert sum(pod.loads == [bad, None] for pod in stage.pods) == 1
    await stage.world.until_condition("DrafterReady", "False", "RevisionRefused")


async def test_with_few_drafts_nothing_is_promoted_and_the_newest_waits_for_its_turn(stage: Stage) -> None:
    stage.drafting = False
    await stage.set(3)
    first = await stage.publish(1, worth=1.9)
    await stage.until_tried(first)
    second, third = await stage.publish(2, worth=1.9), await stage.publish(3, worth=1.9)

    async def waits() -> bool:
        status = await stage.status(third)
        assert status.get("phase") == "Candidate", status
        assert first in status["message"]
        return True

    await eventually_async(waits, deadline=60, reason="the newest waits")
    if await stage.world.revision(second) is not None:
        await stage.until(second, "Superseded", "Overtaken")
    assert (await stage.status(first))["phase"] == "Canary"
    body = {"spec": {"release": {"canary": {"timeLimit": "1s"}}}}
    await stage.world.kube.patch(JOB, namespace=stage.world.namespace, name="demo", body=body)
    await stage.until(first, "Superseded", "Overtaken")
    await stage.until_tried(third)

    async def told() -> bool:
        return "fewer than 500 drafts" in (await stage.status(third))["message"]

    await eventually_async(told, deadline=60, reason="the message says what is missing")
    assert (await stage.status(third))["phase"] == "Canary"
    stage.drafting = True
    await stage.until(third, "Active")
    await stage.until_everywhere(third)


async def test_an_operator_that_starts_anew_counts_on_with_the_same_canary(stage: Stage) -> None:
    await stage.set(4)
    name = await stage.publish(1, worth=START)
    canary = await stage.until_tried(name)

    await stage.world.stop_operator()
    stage.drafting = False
    before = await stage.status(name)
    assert before["phase"] == "Canary"
    stage.drafting = True
    stage.worth[name] = 2.2  # so that it is decided soon
    await stage.world.start_operator()
    await stage.until(name, "Active")
    assert canary.loads == [name], "it was not loaded again"
    assert stage.most_canaries[name] >= 1


async def test_a_refusal_by_the_canary_withdraws_it_for_all(stage: Stage) -> None:
    await stage.set(3)
    for pod in stage.pods:
        pod.refuse_drafter = "tensor fc.weight is not finite"
    name = await stage.publish(1, worth=1.9)
    status = await stage.until(name, "RolledBack", "Refused")
    assert "not finite" in status["message"]
    for pod in stage.pods:
        pod.refuse_drafter = None
    second = await stage.publish(2, worth=1.9)
    await stage.until_everywhere(second)
    assert all(name not in pod.loads for pod in stage.pods)


async def test_canaries_that_crash_with_it_withdraw_it(stage: Stage) -> None:
    stage.drafting = False
    await stage.set(3)
    name = await stage.publish(1, worth=1.9)
    canary = await stage.until_tried(name)
    (pod_name,) = [key for key, pod in stage.world.rollouts.items() if pod is canary]
    for count in (1, 2):

        async def seen() -> bool:
            trial = (await stage.status(name)).get("trial") or {}
            return canary.drafter == name and bool(trial)

        await eventually_async(seen, deadline=60, reason="the canary has it")
        await asyncio.sleep(1.0)  # the operator must have heard of it; nothing shows that outside
        await stage.world.restart_container(pod_name, count=count)
        await canary.reboot()
    await stage.until(name, "RolledBack", "CrashLoop")
    await stage.until_everywhere(None)


async def test_a_dead_pod_and_a_slow_one_block_nobody(stage: Stage) -> None:
    await stage.set(5)
    dead, slow = stage.pods[3], stage.pods[4]
    slow.may_load.clear()
    await dead.stop()
    name = await stage.publish(1, worth=2.2)
    await stage.until(name, "Active")
    quick = stage.pods[:3]
    await eventually_async(lambda: {pod.drafter for pod in quick} == {name}, deadline=60, reason="the others have it")
    assert slow.drafter is None
    slow.may_load.set()
    await dead.start()
    await stage.until_everywhere(name)


async def test_by_hand_promote_roll_back_and_pin(stage: Stage) -> None:
    stage.drafting = False
    await stage.set(3)
    first = await stage.publish(1, worth=1.9)
    await stage.until_tried(first)
    await stage.annotate(first, promote="true")
    await stage.until(first, "Active", "ByHand")
    await stage.until_everywhere(first)
    second = await stage.publish(2, worth=1.9)
    await stage.until_tried(second)
    await stage.annotate(second, promote="true")
    await stage.until_everywhere(second)
    await stage.until(first, "Superseded")
    await stage.annotate(second, rollback="true")
    await stage.until(second, "RolledBack", "ByHand")
    await stage.until(first, "Active", "Restored")
    await stage.until_everywhere(first)
    await stage.pin(second)
    await stage.until(second, "Active", "Pinned")
    await stage.until_everywhere(second)
    third = await stage.publish(3, worth=1.9)
    await stage.until(third, "Candidate", "Waiting")
    await stage.pin(None)
    await stage.until(second, "RolledBack", "ByHand")
    await stage.until(first, "Active", "Restored")
    await stage.until_tried(third)
    await stage.pin("demo-r77")
    await stage.world.until_condition("DrafterReady", "False", "PinNotFound")
    assert await stage.world.events("ReleaseIgnored")


async def test_an_annotation_that_says_nothing_is_answered(stage: Stage) -> None:
    stage.drafting = False
    await stage.set(2)
    name = await stage.publish(1, worth=1.9)
    await stage.until_tried(name)
    await stage.annotate(name, promote="yes please")
    (event,) = await eventually_async(
        lambda: stage.world.events("ReleaseIgnored"), deadline=60, reason="an Event that says so"
    )
    assert "tlt.dev/promote" in event["note"]
    assert (await stage.status(name))["phase"] == "Canary"


async def test_an_only_pod_is_compared_with_itself(stage: Stage) -> None:
    await stage.set(1)
    name = await stage.publish(1, worth=2.4)
    status = await stage.until(name, "Active")
    assert status["evidence"]["comparison"] == "BeforeAfter"
    assert status["evidence"]["baselineAcceptLength"] == START
    bad = await stage.publish(2, worth=1.0)
    await stage.until(bad, "RolledBack")
    await stage.until_everywhere(name)


async def test_a_worse_one_waits_for_a_person_when_the_job_says_so(stage: Stage) -> None:
    await stage.set(3, autoRollback=False)
    name = await stage.publish(1, worth=1.0)
    await eventually_async(lambda: stage.world.events("RevisionHeld"), deadline=60, reason="an Event that asks")
    assert (await stage.status(name))["phase"] == "Canary"
    await stage.annotate(name, rollback="true")
    await stage.until(name, "RolledBack", "ByHand")
    await stage.until_everywhere(None)


async def test_policy_updates_and_reboots_in_the_middle_do_no_harm(stage: Stage) -> None:
    await stage.set(3)
    name = await stage.publish(1, worth=1.9)
    await stage.until_tried(name)
    for version in (2, 3):
        for pod in stage.pods:
            pod.policy_version = version
            pod.bump()
        with contextlib.suppress(ValueError):
            await stage.canary(name).reboot()
    await stage.until_everywhere(name)
    await stage.until(name, "Active")
