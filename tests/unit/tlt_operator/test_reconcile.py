"""Polls, actions and status writes: what happens when the other side is slow, gone or says no."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest_asyncio

from tests.support.eventually import eventually_async
from tests.support.snapshots import make_state
from tlt_operator.errors import (
    BusyError,
    IncompatibleError,
    NotFoundError,
    OperatorError,
    RefusedError,
    UnreachableError,
)
from tlt_operator.plan.actions import Action, CreateTrainer, GrantLease, RevokeLease, action_key
from tlt_operator.plan.snapshot import Fault
from tlt_operator.reconcile.answers import Answers
from tlt_operator.reconcile.clock import Clock
from tlt_operator.reconcile.effects import SETTLE, Effects
from tlt_workloads.contract import LeaseRequest, RevokeReason, RolloutState


@dataclass
class Time:
    """A clock that tests move."""

    now: float = 1000.0

    def clock(self) -> Clock:
        return Clock(steady=lambda: self.now, wall=lambda: self.now)


@dataclass
class Stage:
    """Effects whose performance the test scripts."""

    time: Time = field(default_factory=Time)
    calls: list[Action] = field(default_factory=list)
    failures: list[OperatorError] = field(default_factory=list)
    error: Exception | None = None
    hold: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.hold.set()
        self.effects = Effects(
            self.perform,
            on_failure=lambda _, error: self.failures.append(error),
            wake=lambda: None,
            clock=self.time.clock(),
        )

    async def perform(self, action: Action) -> None:
        self.calls.append(action)
        await self.hold.wait()
        if self.error is not None:
            raise self.error

    async def start(self, *actions: Action) -> int:
        """Starts actions, lets them run, and returns how many calls there were in all."""
        self.effects.start(actions)
        for _ in range(5):
            await asyncio.sleep(0)
        return len(self.calls)


@pytest_asyncio.fixture
async def stage() -> AsyncIterator[Stage]:
    found = Stage()
    yield found
    await found.effects.close()


CREATE = CreateTrainer(rollout_uid="a")


async def test_action_under_way_is_not_started_again(stage: Stage) -> None:
    stage.hold.clear()
    assert await stage.start(CREATE, CREATE) == 1
    assert await stage.start(CREATE) == 1
    assert stage.effects.pending(action_key(CREATE), heard=stage.time.now)
    assert await stage.start(CreateTrainer(rollout_uid="b")) == 2
    stage.hold.set()


async def test_same_action_waits_until_its_news_can_have_arrived(stage: Stage) -> None:
    assert await stage.start(CREATE) == 1
    assert await stage.start(CREATE) == 1
    assert stage.effects.pending(action_key(CREATE), heard=stage.time.now - 1)
    assert not stage.effects.pending(action_key(CREATE), heard=stage.time.now)
    stage.time.now += SETTLE
    assert await stage.start(CREATE) == 2


async def test_grant_is_told_of_until_the_pod_answers_and_then_free_to_come_again(stage: Stage) -> None:
    grant = GrantLease(rollout_uid="a", trainer_uid="t", request=LeaseRequest(holder="t/1"))
    assert await stage.start(grant) == 1
    assert stage.effects.pending(action_key(grant), heard=stage.time.now - 0.1)
    assert not stage.effects.pending(action_key(grant), heard=stage.time.now + 0.1)
    assert await stage.start(grant) == 2


async def test_another_action_of_the_same_key_need_not_wait(stage: Stage) -> None:
    first = RevokeLease(rollout_uid="a", reason=RevokeReason.OPERATOR, why="x")
    assert await stage.start(first) == 1
    assert await stage.start(RevokeLease(rollout_uid="a", reason=RevokeReason.WINDOW_END, why="y")) == 2


async def test_failures_back_off_and_a_success_forgets_them(stage: Stage) -> None:
    stage.error = UnreachableError("down")
    await stage.start(CREATE)
    waits = []
    for count in range(2, 7):
        before = stage.time.now
        while await stage.start(CREATE) < count:
            stage.time.now += 0.25
        waits.append(stage.time.now - before)
    assert waits == sorted(waits)
    assert waits[-1] > 4 * waits[0]
    assert len(stage.failures) == 6
    stage.error = None
    stage.time.now += 60
    await stage.start(CREATE)
    stage.error = UnreachableError("down again")
    stage.time.now += SETTLE
    await stage.start(CREATE)
    stage.time.now += 2 * waits[0]
    assert await stage.start(CREATE) == 9, "a first wait again, and they differ by chance"


async def test_not_now_is_asked_again_soon(stage: Stage) -> None:
    stage.error = BusyError("not idle", reason="NotIdle")
    await stage.start(CREATE)
    stage.time.now += 0.25
    assert await stage.start(CREATE) == 2


async def test_unforeseen_error_ends_nothing(stage: Stage) -> None:
    stage.error = ZeroDivisionError()
    await stage.start(CREATE)
    assert stage.failures == []
    stage.error = None
    stage.time.now += 61
    assert await stage.start(CREATE) == 2


async def test_it_is_told_since_when_an_action_is_under_way_and_whether_its_next_try_waits(stage: Stage) -> None:
    key, began = action_key(CREATE), stage.time.now
    assert stage.effects.under_way_since(key, heard=began) is None
    assert not stage.effects.held_back(key)
    stage.hold.clear()
    await stage.start(CREATE)
    stage.time.now += 3
    assert stage.effects.under_way_since(key, heard=stage.time.now) == began
    stage.error = UnreachableError("down")
    stage.hold.set()
    await stage.start()
    assert stage.effects.under_way_since(key, heard=stage.time.now) is None
    assert stage.effects.held_back(key)
    stage.time.now += 60
    assert not stage.effects.held_back(key)


async def test_held_back_action_waits(stage: Stage) -> None:
    stage.effects.delay(action_key(CREATE), 30.0)
    assert await stage.start(CREATE) == 0
    stage.time.now += 30
    assert await stage.start(CREATE) == 1


class Pods:
    """Answers for polls, one list per URL; an exception is raised, and the last answer stays."""

    def __init__(self) -> None:
        self.script: dict[str, list[Any]] = {}
        self.asked: list[tuple[str, int]] = []
        self.patience = 0.05  # seconds of a poll without news

    async def ask(self, url: str, seq: int) -> RolloutState:
        self.asked.append((url, seq))
        items = self.script[url]
        item = items.pop(0) if len(items) > 1 else items[0]
        if isinstance(item, Exception):
            raise item
        if item.seq == seq:
            await asyncio.sleep(self.patience)
        assert isinstance(item, RolloutState)
        return item


@dataclass
class Polls:
    pods: Pods
    answers: Answers[RolloutState]
    wakes: list[int]


@pytest_asyncio.fixture
async def polls() -> AsyncIterator[Polls]:
    pods, wakes = Pods(), []
    answers: Answers[RolloutState] = Answers(pods.ask, wake=lambda: wakes.append(1), clock=Clock())
    yield Polls(pods, answers, wakes)
    await answers.close()


async def test_answers_are_kept_and_only_news_wakes(polls: Polls) -> None:
    polls.pods.script["u"] = [make_state(seq=1), make_state(seq=2, running=3)]
    polls.answers.follow({"a": "u"})
    await eventually_async(lambda: len(polls.pods.asked) > 5, reason="some polls")
    answer = polls.answers.get("a")
    assert answer is not None
    assert answer.state is not None
    assert answer.state.running == 3
    assert len(polls.wakes) == 2
    assert polls.pods.asked[:3] == [("u", 0), ("u", 1), ("u", 2)]


async def test_fault_is_named_keeps_the_last_answer_and_starts_over(polls: Polls) -> None:
    polls.pods.script["u"] = [make_state(seq=7), UnreachableError("down"), make_state(seq=1, boot="next")]
    polls.answers.follow({"a": "u"})
    answer = polls.answers.get("a")
    assert answer is not None
    await eventually_async(lambda: answer.fault is Fault.UNREACHABLE, every=0.001, reason="the fault")
    assert answer.state is not None
    assert answer.state.boot == "boot"
    await eventually_async(lambda: answer.fault is None and answer.state.boot == "next", reason="the recovery")
    assert polls.pods.asked[2] == ("u", 0)
    assert len(polls.wakes) == 3


async def test_each_error_is_its_own_fault(polls: Polls) -> None:
    polls.pods.script = {"n": [NotFoundError("x")], "i": [IncompatibleError("x")], "r": [RefusedError("x")]}
    polls.answers.follow({"n": "n", "i": "i", "r": "r"})

    def faults() -> list[Fault | None]:
        found = [polls.answers.get(uid) for uid in "nir"]
        return [answer.fault for answer in found if answer is not None]

    await eventually_async(lambda: None not in faults(), reason="all faults")
    assert faults() == [Fault.ROUTE_MISSING, Fault.INCOMPATIBLE, Fault.UNREACHABLE]


async def test_pod_that_is_gone_is_forgotten_and_one_that_moved_is_asked_anew(polls: Polls) -> None:
    polls.pods.script = {"u": [make_state(seq=1)], "v": [make_state(seq=5)]}
    polls.answers.follow({"a": "u"})
    await eventually_async(lambda: polls.pods.asked, reason="a poll")
    polls.answers.follow({"a": "v"})
    await eventually_async(lambda: ("v", 0) in polls.pods.asked, reason="a poll at the new address")
    polls.answers.follow({})
    assert polls.answers.get("a") is None


async def test_a_poll_that_would_last_gives_way_to_a_new_question(polls: Polls) -> None:
    """When a trial begins, what its pods have counted must not come with the end of a poll of 20 seconds."""
    polls.pods.patience = 3600.0
    polls.pods.script = {"u": [make_state(seq=1), make_state(seq=1, generated_tokens=5)], "v": [make_state(seq=1)]}
    polls.answers.follow({"a": "u", "b": "v"})
    await eventually_async(lambda: polls.pods.asked.count(("u", 1)) == 1, reason="an open poll")
    polls.answers.ask_anew(["a", "unknown"])
    answer = polls.answers.get("a")
    assert answer is not None
    await eventually_async(lambda: answer.state and answer.state.generated_tokens == 5, reason="the new answer")
    assert polls.pods.asked.count(("v", 0)) == 1, "nobody else is asked"
    assert len(polls.wakes) == 2, "counters are no news"
