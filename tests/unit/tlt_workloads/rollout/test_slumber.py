"""Memory mode Sleep: whatever happens, nobody uses an engine that is not awake, and in the end it is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.eventually import eventually_async
from tlt_workloads.contract import (
    AcceptanceCounters,
    CaptureCounters,
    DrafterLoad,
    LeasePhase,
    LeaseRequest,
    MemoryMode,
    RevokeReason,
)
from tlt_workloads.rollout import slumber
from tlt_workloads.rollout.engine import Swap
from tlt_workloads.rollout.lease import NotHolderError
from tlt_workloads.rollout.pod import Identity, Readings, RefusedError, RolloutPod
from tlt_workloads.rollout.revision_files import FoundRevision
from tlt_workloads.rollout.updates import GapWatch, Updates


class Engine:
    """Sleeps and wakes in several turns of the loop, fails when told to, and refuses to be used while not awake."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.awake = True
        self.busy = 0
        self.failing_sleeps = self.failing_wakes = 0
        self.open = asyncio.Event()
        self.open.set()

    def unfinished_requests(self) -> int:
        return self.busy

    async def sleep(self) -> None:
        assert self.awake, f"put to sleep twice: {self.calls}"
        assert self.busy == 0, "put to sleep under a request"
        self.calls.append("sleep")
        self.awake = False
        await self._take_time()
        if self.failing_sleeps:
            self.failing_sleeps -= 1
            raise RuntimeError("out of host memory")

    async def wake(self) -> None:
        assert not self.awake, f"woken twice: {self.calls}"
        await self._take_time()
        if self.failing_wakes:
            self.failing_wakes -= 1
            self.calls.append("wake failed")
            raise RuntimeError("out of device memory")
        self.calls.append("wake")
        self.awake = True

    async def pause(self) -> None:
        self._use("pause")

    async def resume(self) -> None:
        self._use("resume")

    async def forget_prefixes(self) -> None:
        self._use("forget prefixes")

    async def close_weight_session(self) -> None:
        self._use("close session")

    async def follow_policy(self) -> None:
        self._use("follow policy")

    async def set_policy_version(self, version: int) -> None:
        self._use(f"policy {version}")

    async def stage_drafter(self, *, location: str, sha256: str) -> None:
        """Reads into host memory, which an engine asleep has too."""

    async def stage_own_drafter(self) -> None:
        """The same."""

    async def drafter_staged(self) -> bool:
        return True

    async def apply_drafter(self) -> Swap:
        self._use("drafter")
        return Swap(stall=0.0, checksum_before="a", checksum_after="a")

    @contextlib.contextmanager
    def generating(self) -> Any:
        self._use("generate")
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1

    def _use(self, what: str) -> None:
        assert self.awake, f"{what} while not awake: {self.calls}"
        self.calls.append(what)

    async def _take_time(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        await self.open.wait()


class World:
    """A pod with its updates on a clock of the test's."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.engine = Engine()
        self.pod = RolloutPod(
            self.engine,
            identity=Identity(
                served_names=("policy",),
                engine_version="0",
                plugin_version="0",
                drafter_method="eagle3",
                can_sleep=True,
            ),
            readings=Readings(
                waiting=lambda: 0,
                generated_tokens=lambda: 0,
                acceptance=AcceptanceCounters,
                ngram=AcceptanceCounters,
                drafting=lambda: None,
                capture=CaptureCounters,
            ),
            clock=lambda: self.now,
        )
        self.pod.set_idle_after(0.0)
        gap = GapWatch(start=lambda: None, stop=lambda: None, settle=0.0)
        self.updates = Updates(self.pod, on_new_drafter=lambda: None, longest_gap=gap)

    async def grant(self, holder: str = "trainer", *, memory: MemoryMode = MemoryMode.SLEEP) -> None:
        view = await self.pod.grant(LeaseRequest(holder=holder, ttl=10.0, memory=memory))
        if memory is MemoryMode.SLEEP:
            assert self.engine.calls[-1] == "sleep", "the lease was answered before the memory was free"
        assert view.phase is LeasePhase.GRANTED

    async def request(self, *, finish: asyncio.Event | None = None) -> None:
        """As the door does it."""
        failed = True
        try:
            await self.pod.admit()
            with self.engine.generating():
                if finish is not None:
                    await finish.wait()
            failed = False
        finally:
            self.pod.depart(failed=failed, aborted=False)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.pod._on_deadline()

    def lease_shown(self) -> LeasePhase | None:
        lease = self.pod.facts().lease
        return None if lease is None else lease.phase

    async def update_policy(self) -> None:
        async with self.updates.starting_policy():
            self.engine._use("start")
        async with self.updates.finishing_policy():
            self.engine._use("finish")

    async def pause(self) -> None:
        async with self.updates.pausing():
            await self.engine.pause()

    async def load_drafter(self) -> None:
        async def find(_: str) -> FoundRevision:
            return FoundRevision(location="/x")

        await self.updates.load_drafter(DrafterLoad(revision="r", url="file:///x", sha256="0"), find=find)


@contextlib.asynccontextmanager
async def lent() -> AsyncIterator[World]:
    """A pod whose engine sleeps for a lease."""
    with patch.object(slumber, "FIRST_RETRY", 0.0):
        world = World()
        await world.grant()
        yield world


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_lease_is_not_shown_before_the_memory_is_free() -> None:
    world = World()
    world.engine.open.clear()
    grant = asyncio.ensure_future(world.grant())
    await settle()
    assert world.engine.calls == ["sleep"]
    assert world.lease_shown() is None
    with pytest.raises(RefusedError) as refused:
        await world.pod.grant(LeaseRequest(holder="another"))
    assert refused.value.reason == "Held"
    seq = world.pod.seq
    world.engine.open.set()
    await grant
    assert world.lease_shown() is LeasePhase.GRANTED
    assert world.pod.seq > seq, "the holder's long poll is told"


async def test_an_engine_that_does_not_sleep_is_woken_and_lent_to_nobody() -> None:
    world = World()
    world.engine.failing_sleeps = 1
    with pytest.raises(RefusedError) as refused:
        await world.grant()
    assert refused.value.reason == "SleepFailed"
    assert "out of host memory" in str(refused.value)
    await eventually_async(lambda: world.engine.awake, reason="awake")
    assert world.lease_shown() is None
    await world.request()
    assert world.engine.calls == ["sleep", "wake", "generate"]


async def test_a_request_while_falling_asleep_ends_the_lease_before_anybody_saw_it() -> None:
    world = World()
    world.engine.open.clear()
    grant = asyncio.ensure_future(world.grant())
    await settle()
    request = asyncio.ensure_future(world.request())
    await settle()
    assert not request.done()
    assert world.lease_shown() is None
    world.engine.open.set()
    await request
    with pytest.raises(RefusedError) as refused:
        await grant
    assert refused.value.reason == "NotIdle"
    assert world.engine.calls == ["sleep", "wake", "generate"]


async def test_a_request_that_comes_before_the_engine_began_to_fall_asleep_keeps_it_awake() -> None:
    async with lent() as world:
        world.engine.open.clear()
        await world.pod.release("trainer")
        await settle()  # it is waking, which takes time
        with pytest.raises(RefusedError, match="waking"):
            await world.grant("next")
        world.engine.open.set()
        await world.request()
        assert world.engine.calls == ["sleep", "wake", "generate"]


async def test_requests_wait_for_the_hand_back_and_share_one_wake_up() -> None:
    async with lent() as world:
        requests = [asyncio.ensure_future(world.request()) for _ in range(3)]
        await settle()
        assert world.lease_shown() is LeasePhase.REVOKING
        assert world.engine.calls == ["sleep"]
        await world.pod.release("trainer")
        await asyncio.gather(*requests)
        assert world.engine.calls == ["sleep", "wake", *["generate"] * 3]


async def test_a_lease_that_expires_wakes_the_engine_without_a_request() -> None:
    async with lent() as world:
        world.pass_time(11.0)
        assert not world.pod.facts().idle, "a pod that wakes is not offered"
        await eventually_async(lambda: world.engine.awake, reason="awake")
        assert world.engine.calls == ["sleep", "wake"]
        assert world.pod.facts().idle
        ended = world.pod.facts().last_lease
        assert ended is not None
        assert ended.reason is RevokeReason.EXPIRED


async def test_a_wake_up_that_fails_is_tried_again_while_the_request_waits() -> None:
    async with lent() as world:
        world.engine.failing_wakes = 3
        world.pass_time(11.0)
        await world.request()
        assert world.engine.calls == ["sleep", *["wake failed"] * 3, "wake", "generate"]


async def test_a_request_that_waited_too_long_fails_and_the_wake_up_goes_on() -> None:
    async with lent() as world:
        world.engine.open.clear()
        await world.pod.release("trainer")
        with patch("tlt_workloads.rollout.pod.WAKE_LIMIT", 0.0), pytest.raises(TimeoutError):
            await world.request()
        world.engine.open.set()
        await world.request()
        assert world.engine.calls == ["sleep", "wake", "generate"]
        assert world.pod.facts().failed_requests == 1


async def test_a_policy_update_asks_the_gpu_back_and_waits_for_the_engine() -> None:
    async with lent() as world:
        update = asyncio.ensure_future(world.update_policy())
        await settle()
        lease = world.pod.facts().lease
        assert lease is not None
        assert lease.reason is RevokeReason.POLICY_UPDATE
        assert world.engine.calls == ["sleep"]
        await world.pod.release("trainer")
        await update
        assert world.engine.calls == [
            "sleep",
            "wake",
            "pause",
            "start",
            "finish",
            "policy 1",
            "follow policy",
            "forget prefixes",
            "resume",
        ]


async def test_a_pause_wakes_the_engine_first_because_waking_would_resume_it() -> None:
    async with lent() as world:
        pause = asyncio.ensure_future(world.pause())
        await settle()
        assert world.lease_shown() is LeasePhase.REVOKING
        await world.pod.release("trainer")
        await pause
        assert world.engine.calls == ["sleep", "wake", "pause"]
        with pytest.raises(RefusedError) as refused:
            await world.grant()
        assert refused.value.reason == "Paused"


async def test_a_drafter_waits_for_the_engine_and_asks_for_nothing() -> None:
    async with lent() as world:
        load = asyncio.ensure_future(world.load_drafter())
        await settle()
        assert world.lease_shown() is LeasePhase.GRANTED
        await world.pod.release("trainer")
        await load
        assert world.engine.calls == ["sleep", "wake", "drafter"]


async def test_a_drafter_that_waited_too_long_is_refused_for_now() -> None:
    async with lent() as world:
        with patch("tlt_workloads.rollout.updates.AWAKE_LIMIT", 0.0), pytest.raises(RefusedError) as refused:
            await world.load_drafter()
        assert refused.value.reason == "Asleep"
        assert world.engine.calls == ["sleep"]


async def test_a_server_that_shuts_down_asks_back_and_wakes_for_those_who_wait() -> None:
    async with lent() as world:
        request = asyncio.ensure_future(world.request())
        await settle()
        world.pod.revoke(RevokeReason.SHUTDOWN)
        await world.pod.release("trainer")
        await request
        assert world.engine.calls == ["sleep", "wake", "generate"]


async def test_in_mode_reserve_the_engine_is_left_alone_and_nobody_waits() -> None:
    world = World()
    await world.grant(memory=MemoryMode.RESERVE)
    await world.request()
    await world.update_policy()
    assert "sleep" not in world.engine.calls


async def test_a_holder_that_wants_the_other_mode_must_give_back_first() -> None:
    async with lent() as world:
        with pytest.raises(RefusedError, match="memory mode Sleep"):
            await world.pod.grant(LeaseRequest(holder="trainer", memory=MemoryMode.RESERVE))


EVENTS = st.sampled_from(
    [
        *[
            "grant",
            "grant",
            "grant reserve",
            "request",
            "finish",
            "release",
            "expire",
            "time",
            "policy",
            "pause",
            "resume",
        ],
        *["drafter", "revoke", "heartbeat", "sleep fails", "wake fails", "hold", "let go", "turn", "turn", "turns"],
    ]
)


@settings(max_examples=300, deadline=None)
@given(events=st.lists(EVENTS, max_size=40))
def test_whatever_happens_nobody_uses_a_sleeping_engine_and_it_ends_awake(events: list[str]) -> None:
    with patch.object(slumber, "FIRST_RETRY", 0.0):
        asyncio.run(live(events))


async def live(events: list[str]) -> None:
    """Plays the events; the engine itself asserts that it is awake when used and that sleep and wake alternate."""
    world, tasks = World(), []
    finish = asyncio.Event()
    for event in events:
        match event:
            case "grant" | "grant reserve":
                memory = MemoryMode.RESERVE if event.endswith("reserve") else MemoryMode.SLEEP
                tasks.append(asyncio.ensure_future(world.grant(memory=memory)))
            case "request":
                tasks.append(asyncio.ensure_future(world.request(finish=finish)))
            case "finish":
                finish.set()
                finish = asyncio.Event()
            case "release":
                with contextlib.suppress(NotHolderError):
                    await world.pod.release("trainer")
            case "expire" | "time":
                world.pass_time(11.0 if event == "expire" else 1.0)
            case "policy":
                tasks.append(asyncio.ensure_future(world.update_policy()))
            case "pause":
                tasks.append(asyncio.ensure_future(world.pause()))
            case "resume":
                world.pod.set_paused(False)
            case "drafter":
                tasks.append(asyncio.ensure_future(world.load_drafter()))
            case "revoke":
                world.pod.revoke(RevokeReason.OPERATOR)
            case "heartbeat":
                world.pod.heartbeat("trainer")
            case "sleep fails":
                world.engine.failing_sleeps = 1
            case "wake fails":
                world.engine.failing_wakes = 2
            case "hold":
                world.engine.open.clear()
            case "let go":
                world.engine.open.set()
            case "turn" | "turns":
                for _ in range(1 if event == "turn" else 10):
                    await asyncio.sleep(0)
        shown = world.pod.facts().lease
        if shown is not None and world.pod.leases.current is not None:
            is_sleep = world.pod.leases.current.memory is MemoryMode.SLEEP
            assert not is_sleep or not world.engine.awake, "the holder sees a lease while the engine has the memory"
    await end(world, tasks, finish)


async def end(world: World, tasks: list[asyncio.Future[None]], finish: asyncio.Event) -> None:
    """Everybody goes home: held engine, requests, holder."""
    world.engine.open.set()
    finish.set()
    for _ in range(60):
        await settle()
        await world.pod.release("trainer")
        world.pod.set_paused(False)
        if all(task.done() for task in tasks) and world.engine.awake:
            break
    else:
        raise AssertionError(f"not over: {[task for task in tasks if not task.done()]}, {world.engine.calls}")
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert result is None or isinstance(result, RefusedError), repr(result)
    order = [call for call in world.engine.calls if call in ("sleep", "wake")]
    assert order == ["sleep", "wake"] * (len(order) // 2)
    assert world.pod._slumber.is_awake
    if world.pod._timer is not None:
        world.pod._timer.cancel()
