"""Weight updates in order: one at a time, the policy first, nothing half open."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.eventually import eventually_async
from tests.unit.tlt_workloads.rollout.test_pod import make_pod
from tlt_workloads.contract import DrafterLoad, DrafterRefusal
from tlt_workloads.rollout.engine import DrafterRefusedError, Swap
from tlt_workloads.rollout.locations import OutsideStoreError
from tlt_workloads.rollout.pod import RefusedError, RolloutPod
from tlt_workloads.rollout.revision_files import FoundRevision
from tlt_workloads.rollout.revision_folder import RefusedDrafterError
from tlt_workloads.rollout.updates import GapWatch, Updates

LOAD = DrafterLoad(revision="r1", url="file:///store/r1", sha256="0" * 64)


async def found(_: str) -> FoundRevision:
    return FoundRevision(location="/store/r1")


class Engine:
    """Writes down what happens, in order."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.refusal: DrafterRefusedError | None = None
        self.staged = asyncio.Event()
        self.staged.set()

    def unfinished_requests(self) -> int:
        return 0

    async def pause(self) -> None:
        self.calls.append("pause")

    async def resume(self) -> None:
        self.calls.append("resume")

    async def forget_prefixes(self) -> None:
        self.calls.append("forget")

    async def set_policy_version(self, version: int) -> None:
        self.calls.append(("version", version))

    async def follow_policy(self) -> None:
        self.calls.append("follow")

    async def close_weight_session(self) -> None:
        self.calls.append("close")

    async def stage_drafter(self, *, location: str, sha256: str) -> None:
        self.calls.append("stage")

    async def stage_own_drafter(self) -> None:
        self.calls.append("stage own")

    async def drafter_staged(self) -> bool:
        await self.staged.wait()
        if self.refusal:
            raise self.refusal
        return True

    async def apply_drafter(self) -> Swap:
        self.calls.append("apply")
        return Swap(stall=0.01, checksum_before="c", checksum_after="c")


def make() -> tuple[RolloutPod, Engine, Updates]:
    pod, engine = make_pod(), Engine()
    pod.engine = engine  # type: ignore[assignment]  # what these tests need of it
    gap = GapWatch(start=lambda: None, stop=lambda: 0.05, settle=0)
    return pod, engine, Updates(pod, on_new_drafter=lambda: engine.calls.append("new"), longest_gap=gap)


async def test_a_policy_update_freezes_numbers_forgets_and_goes_on() -> None:
    pod, engine, updates = make()
    async with updates.starting_policy():
        engine.calls.append("start")
    assert pod.facts().updating
    async with updates.receiving_policy():
        engine.calls.append("receive")
    async with updates.finishing_policy() as number:
        engine.calls.append(("finish", number))
    assert engine.calls == ["pause", "start", "receive", ("finish", 1), ("version", 1), "follow", "forget", "resume"]
    assert (pod.facts().policy_version, pod.facts().updating) == (1, False)


async def test_a_learner_that_paused_itself_resumes_itself() -> None:
    pod, engine, updates = make()
    pod.set_paused(True)
    async with updates.starting_policy():
        pass
    async with updates.finishing_policy():
        pass
    assert "pause" not in engine.calls
    assert "resume" not in engine.calls


async def test_a_part_that_fails_ends_the_update() -> None:
    pod, engine, updates = make()
    async with updates.starting_policy():
        pass
    with pytest.raises(RuntimeError):
        async with updates.receiving_policy():
            raise RuntimeError("broken file")
    assert engine.calls == ["pause", "close", "resume"]
    assert (pod.facts().policy_version, pod.facts().updating) == (0, False)


async def test_a_start_that_fails_leaves_nothing_open() -> None:
    pod, engine, updates = make()
    with pytest.raises(RuntimeError):
        async with updates.starting_policy():
            raise RuntimeError("no engine")
    assert engine.calls == ["pause", "resume"]
    assert not pod.facts().updating


async def test_a_finish_that_fails_does_not_count() -> None:
    pod, engine, updates = make()
    async with updates.starting_policy():
        pass
    with pytest.raises(RuntimeError):
        async with updates.finishing_policy():
            raise RuntimeError("no session")
    assert pod.facts().policy_version == 0
    assert engine.calls == ["pause", "resume"]


async def test_a_silent_learner_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlt_workloads.rollout.updates.SESSION_LIMIT", 0.01)
    pod, engine, updates = make()
    async with updates.starting_policy():
        pass
    await asyncio.wait_for(engine_called(engine, "resume"), timeout=5)
    assert engine.calls == ["pause", "close", "resume"]
    assert not pod.facts().updating


async def test_a_drafter_is_staged_then_applied() -> None:
    pod, engine, updates = make()
    loaded = await updates.load_drafter(LOAD, find=found)
    assert engine.calls == ["stage", "apply", "new"]
    assert (loaded.revision, loaded.stall) == ("r1", 0.01)
    facts = pod.facts()
    assert (facts.drafter_revision, facts.drafter_digest, facts.swap_stall) == ("r1", "0" * 64, 0.05)
    assert not facts.updating


async def test_a_refused_drafter_changes_nothing() -> None:
    pod, engine, updates = make()
    engine.refusal = DrafterRefusedError(DrafterRefusal.MISSING_TENSOR, "fc.weight: missing")
    with pytest.raises(DrafterRefusedError):
        await updates.load_drafter(LOAD, find=found)
    assert engine.calls == ["stage"]
    facts = pod.facts()
    assert facts.drafter_revision is None
    assert facts.drafter_refusals == {"MissingTensor": 1}


async def test_a_place_outside_the_job_is_a_refusal_too() -> None:
    pod, engine, updates = make()

    async def find(_: str) -> FoundRevision:
        raise OutsideStoreError("not below the job's folder")

    for _ in range(2):
        with pytest.raises(DrafterRefusedError, match="not below"):
            await updates.load_drafter(LOAD, find=find)
    assert pod.facts().drafter_refusals == {"OutsideStore": 2}
    assert engine.calls == []


async def test_a_store_that_is_gone_is_counted_and_asked_again() -> None:
    pod, _, updates = make()

    async def gone(_: str) -> FoundRevision:
        raise RefusedDrafterError(DrafterRefusal.STORE_UNAVAILABLE, "the store cannot be reached")

    with pytest.raises(DrafterRefusedError, match="cannot be reached"):
        await updates.load_drafter(LOAD, find=gone)
    assert (pod.facts().drafter_refusals, pod.facts().drafter_revision) == ({"StoreUnavailable": 1}, None)
    await updates.load_drafter(LOAD, find=found)
    assert pod.facts().drafter_revision == "r1"


async def test_a_store_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pod, engine, updates = make()
    monkeypatch.setattr("tlt_workloads.rollout.updates.STAGE_LIMIT", 0.0)
    engine.staged.clear()
    with pytest.raises(DrafterRefusedError, match="ask again when the store is faster"):
        await updates.load_drafter(LOAD, find=found)
    assert pod.facts().drafter_refusals == {"StoreUnavailable": 1}


async def test_what_is_only_not_now_is_no_refusal() -> None:
    pod, _, updates = make()
    async with updates.starting_policy():
        pass
    with pytest.raises(RefusedError):
        await updates.load_drafter(LOAD, find=found)
    assert pod.facts().drafter_refusals == {}


async def test_a_policy_update_makes_the_drafter_stale() -> None:
    pod, _, updates = make()

    async def trained_to_the_second(url: str) -> FoundRevision:
        return FoundRevision(location=url, trained_to=2)

    assert pod.facts().drafter_lag is None
    await updates.load_drafter(LOAD, find=trained_to_the_second)
    lags = []
    for _ in range(4):
        lags.append(pod.facts().drafter_lag)
        async with updates.starting_policy():
            pass
        async with updates.finishing_policy():
            pass
    assert lags == [0, 0, 0, 1]
    assert pod.facts().drafter_lag == 2
    await updates.load_drafter(LOAD, find=found)
    assert pod.facts().drafter_lag is None  # this one does not say


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        ([None, None], [1, 2]),
        (["policy-41", None, "policy-43"], [41, 42, 43]),  # a pod that has started anew counts like its peers
        (["step_7", "step_7"], [7, 7]),  # the same policy again
        (["step_7", "step_3"], [7, 8]),  # numbers never go back
        (["v2-final", "", "x"], [1, 2, 3]),  # not at the end
        (["9" * 400], [1]),
    ],
)
async def test_policies_are_numbered(names: list[str | None], numbers: list[int]) -> None:
    pod, _, updates = make()
    found = []
    for name in names:
        async with updates.starting_policy():
            pass
        async with updates.finishing_policy(name) as number:
            pass
        assert pod.facts().policy_version == number
        found.append(number)
    assert found == numbers


async def test_parts_and_ends_need_a_beginning() -> None:
    pod, engine, updates = make()
    for step in (updates.receiving_policy, updates.finishing_policy):
        with pytest.raises(RefusedError) as caught:
            async with step():
                engine.calls.append("reached")
        assert caught.value.reason == "NoUpdate"
    assert engine.calls == []
    assert pod.facts().policy_version == 0


async def test_a_learner_that_begins_anew_leaves_nothing_half_open() -> None:
    pod, engine, updates = make()
    for _ in range(2):
        async with updates.starting_policy():
            engine.calls.append("start")
    assert engine.calls == ["pause", "start", "close", "resume", "pause", "start"]
    async with updates.finishing_policy() as number:
        pass
    assert number == 1
    assert not pod.facts().updating


async def test_nobody_begins_anew_while_weights_are_received() -> None:
    pod, engine, updates = make()
    async with updates.starting_policy():
        pass
    async with updates.receiving_policy():
        with pytest.raises(RefusedError) as caught:
            async with updates.starting_policy():
                engine.calls.append("reached")
        assert caught.value.reason == "Updating"
    async with updates.finishing_policy():
        pass
    assert engine.calls == ["pause", ("version", 1), "follow", "forget", "resume"]
    assert not pod.facts().updating


async def test_weights_that_take_long_are_not_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlt_workloads.rollout.updates.SESSION_LIMIT", 0.01)
    pod, engine, updates = make()
    async with updates.starting_policy():
        pass
    async with updates.receiving_policy():
        await asyncio.sleep(0.05)
    assert "close" not in engine.calls
    await asyncio.wait_for(engine_called(engine, "resume"), timeout=5)
    assert not pod.facts().updating


async def test_a_drafter_waits_outside_while_a_policy_arrives() -> None:
    _, engine, updates = make()
    async with updates.starting_policy():
        pass
    with pytest.raises(RefusedError) as caught:
        await updates.load_drafter(LOAD, find=found)
    assert caught.value.reason == "PolicyUpdate"
    assert "stage" not in engine.calls


async def test_a_policy_that_begins_while_a_drafter_is_read_wins() -> None:
    _, engine, updates = make()
    engine.staged.clear()
    load = asyncio.ensure_future(updates.load_drafter(LOAD, find=found))
    await asyncio.wait_for(engine_called(engine, "stage"), timeout=5)
    async with updates.starting_policy():
        pass
    engine.staged.set()
    with pytest.raises(RefusedError) as caught:
        await load
    assert caught.value.reason == "PolicyUpdate"
    assert "apply" not in engine.calls


async def test_two_drafters_do_not_mix() -> None:
    _, engine, updates = make()
    engine.staged.clear()
    first = asyncio.ensure_future(updates.load_drafter(LOAD, find=found))
    await asyncio.wait_for(engine_called(engine, "stage"), timeout=5)
    with pytest.raises(RefusedError) as caught:
        await updates.load_drafter(LOAD, find=found)
    assert caught.value.reason == "Loading"
    engine.staged.set()
    await first


async def engine_called(engine: Engine, call: str) -> None:
    await eventually_async(lambda: call in engine.calls, reason=f"{call} is called", every=0)


async def test_the_servers_own_drafter_comes_back_and_only_when_it_is_gone() -> None:
    pod, engine, updates = make()
    pod.own_drafter_digest = "f" * 64
    await updates.unload_drafter()
    assert engine.calls == [], "it is there"
    await updates.load_drafter(LOAD, find=found)
    engine.calls.clear()
    await updates.unload_drafter()
    assert engine.calls == ["stage own", "apply", "new"]
    facts = pod.facts()
    assert (facts.drafter_revision, facts.drafter_digest) == (None, "f" * 64)
    assert not facts.updating


async def test_a_policy_update_goes_before_the_servers_own_drafter() -> None:
    pod, _, updates = make()
    await updates.load_drafter(LOAD, find=found)
    async with updates.starting_policy():
        pass
    with pytest.raises(RefusedError, match="policy update"):
        await updates.unload_drafter()
    assert pod.facts().drafter_revision == "r1"
