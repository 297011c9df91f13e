"""The pod as its callers see it: edges, long polls, leases."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.eventually import eventually_async
from tlt_workloads.contract import (
    AcceptanceCounters,
    CaptureCounters,
    LeasePhase,
    LeaseRequest,
    MemoryMode,
    RevokeReason,
)
from tlt_workloads.rollout.pod import Identity, Readings, RefusedError, RolloutPod


class Engine:
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.unfinished = 0

    def unfinished_requests(self) -> int:
        return self.unfinished

    async def sleep(self) -> None:
        self.calls.append("sleep")

    async def wake(self) -> None:
        self.calls.append("wake")


def make_pod(*, idle_after: float = 0.0, can_sleep: bool = False) -> RolloutPod:
    pod = RolloutPod(
        Engine(),  # type: ignore[arg-type]  # what these tests need of it
        identity=Identity(
            served_names=("policy",),
            engine_version="0.32.0",
            plugin_version="0",
            drafter_method="eagle3",
            can_sleep=can_sleep,
        ),
        readings=Readings(
            waiting=lambda: 0,
            generated_tokens=lambda: 0,
            acceptance=AcceptanceCounters,
            ngram=AcceptanceCounters,
            drafting=lambda: None,
            capture=CaptureCounters,
        ),
    )
    pod.set_idle_after(idle_after)
    return pod


def wanted(holder: str = "trainer", **fields: Any) -> LeaseRequest:
    return LeaseRequest(holder=holder, **fields)


async def test_the_idle_edge_wakes_a_long_poll() -> None:
    pod = make_pod(idle_after=0.02)
    await pod.admit()
    pod.depart(failed=False, aborted=False)
    assert not pod.facts().idle
    await pod.wait_for_change(pod.seq, within=10)
    assert pod.facts().idle


async def test_a_poll_with_an_old_number_returns_at_once() -> None:
    pod = make_pod()
    await asyncio.wait_for(pod.wait_for_change(0, within=60), timeout=5)


async def test_a_poll_returns_after_its_time() -> None:
    pod = make_pod()
    await pod.wait_for_change(pod.seq, within=0.01)


async def test_a_request_asks_the_lease_back_at_once() -> None:
    pod = make_pod()
    await pod.grant(wanted())
    await pod.admit()
    lease = pod.facts().lease
    assert lease is not None
    assert (lease.phase, lease.reason) == (LeasePhase.REVOKING, RevokeReason.REQUEST)


async def test_a_busy_pod_is_not_lent() -> None:
    pod = make_pod()
    await pod.admit()
    with pytest.raises(RefusedError) as caught:
        await pod.grant(wanted())
    assert caught.value.reason == "NotIdle"


async def test_requests_that_the_door_did_not_see_count_too() -> None:
    pod = make_pod()
    pod.engine.unfinished = 1  # type: ignore[attr-defined]
    assert not pod.facts().idle
    with pytest.raises(RefusedError, match="1 requests"):
        await pod.grant(wanted())


async def test_the_idle_edge_waits_for_an_engine_that_is_not_done() -> None:
    pod = make_pod(idle_after=0.01)
    await pod.admit()
    pod.engine.unfinished = 1  # type: ignore[attr-defined]  # aborted by its caller, still in the engine
    pod.depart(failed=False, aborted=True)
    seq = pod.seq
    await asyncio.sleep(0.03)
    assert pod.seq == seq
    pod.engine.unfinished = 0  # type: ignore[attr-defined]
    await asyncio.wait_for(pod.wait_for_change(seq, within=60), timeout=10)
    assert pod.facts().idle


@pytest.mark.parametrize(("change", "reason"), [("set_paused", "Paused"), ("set_updating", "Updating")])
async def test_a_paused_or_updating_pod_is_not_lent(change: str, reason: str) -> None:
    pod = make_pod()
    getattr(pod, change)(True)
    with pytest.raises(RefusedError) as caught:
        await pod.grant(wanted())
    assert caught.value.reason == reason


async def test_pausing_asks_the_lease_back() -> None:
    pod = make_pod()
    await pod.grant(wanted())
    pod.set_paused(True)
    lease = pod.facts().lease
    assert lease is not None
    assert (lease.phase, lease.reason) == (LeasePhase.REVOKING, RevokeReason.POLICY_UPDATE)


async def test_only_one_holder_at_a_time() -> None:
    pod = make_pod()
    await pod.grant(wanted("one"))
    with pytest.raises(RefusedError) as caught:
        await pod.grant(wanted("two"))
    assert caught.value.reason == "Held"


async def test_the_same_holder_may_ask_again_because_an_answer_may_be_lost() -> None:
    pod = make_pod()
    first = await pod.grant(wanted())
    assert (await pod.grant(wanted())).id == first.id


async def test_a_silent_holder_loses_the_lease_without_anybody_asking() -> None:
    pod = make_pod()
    await pod.grant(wanted(ttl=0.02))
    await eventually_async(lambda: pod.leases.current is None, reason="the lease ends")
    assert pod.facts().last_lease is not None
    assert pod.facts().lease is None


async def test_heartbeats_keep_it() -> None:
    pod = make_pod()
    await pod.grant(wanted(ttl=30))
    before = pod.facts().lease
    await asyncio.sleep(0)
    assert pod.heartbeat("trainer")
    assert not pod.heartbeat("somebody")
    after = pod.facts().lease
    assert before is not None
    assert after is not None
    assert after.expires_in >= before.expires_in


async def test_a_window_ends_by_itself() -> None:
    pod = make_pod()
    await pod.grant(wanted(window=0.02))
    await eventually_async(
        lambda: pod.leases.current is not None and pod.leases.current.reason is RevokeReason.WINDOW_END,
        reason="the window's end",
    )


async def test_lent_time_is_booked() -> None:
    pod = make_pod()
    await pod.grant(wanted())
    await pod.release("trainer")
    facts = pod.facts()
    assert 0 < facts.lent_seconds <= facts.idle_seconds
    assert facts.last_lease is not None
    assert facts.last_lease.hand_back == 0


async def test_an_engine_that_cannot_sleep_says_so() -> None:
    with pytest.raises(RefusedError) as caught:
        await make_pod().grant(wanted(memory=MemoryMode.SLEEP))
    assert caught.value.reason == "Unsupported"


async def test_with_a_sleeping_engine_a_request_waits_for_the_hand_back() -> None:
    pod = make_pod(can_sleep=True)
    await pod.grant(wanted(memory=MemoryMode.SLEEP))
    request = asyncio.ensure_future(pod.admit())
    await asyncio.sleep(0.01)
    assert not request.done()
    assert pod.engine.calls == ["sleep"]  # type: ignore[attr-defined]
    await pod.release("trainer")
    await asyncio.wait_for(request, timeout=5)
    assert pod.engine.calls == ["sleep", "wake"]  # type: ignore[attr-defined]
