"""Windows of real worker processes, killed at will, and the losses that they tell."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from tlt_workloads.store import open_store
from tlt_workloads.trainer.progress import latest_progress
from tlt_workloads.trainer.settings import TrainerSettings, WindowOrder
from tlt_workloads.trainer.window import WorkerEnded, WorkerFailed, WorkerMessage, WorkerStepped
from tlt_workloads.trainer.workshop import Worker, Workshop

Place = tuple[int, int]  # tokens in the weights, and how many micro-steps have added to the gradient since


@dataclass
class Course:
    """What was told of one job's training over all of its windows."""

    losses: dict[Place, float] = field(default_factory=dict)
    repeated: int = 0  # micro-steps that a kill had taken back
    kills: int = 0
    complaints: list[str] = field(default_factory=list)  # of callbacks, where an assertion would be lost

    def note(self, place: Place, loss: float) -> None:
        """Keeps a loss; one that was told before must come out the same."""
        if place in self.losses:
            self.repeated += 1
            if loss != pytest.approx(self.losses[place], rel=1e-4):
                self.complaints.append(f"at {place} a loss of {self.losses[place]}, after a restart {loss}")
        self.losses[place] = loss


@dataclass(frozen=True, kw_only=True)
class Blow:
    """When to kill: so long after so many micro-steps; with none of them, after the fork."""

    steps: int
    delay: float  # s


def blows(count: int, *, seed: int) -> list[Blow]:
    """Random moments; one in four while the worker still reads what it needs."""
    dice = random.Random(seed)
    found = []
    for number in range(count):
        early = number % 4 == 3
        found.append(Blow(steps=0 if early else dice.randint(1, 12), delay=dice.uniform(0, 0.3 if early else 0.05)))
    return found


class _Window:
    """Follows one worker's messages."""

    def __init__(self, course: Course, *, begin: int) -> None:
        self._course = course
        self._begin, self._place = begin, (begin, 0)
        self.steps = 0
        self.news = asyncio.Event()
        self.last: WorkerMessage | None = None

    def listen(self, message: WorkerMessage) -> None:
        self.last = message
        if isinstance(message, WorkerStepped):
            self._course.note(self._place, message.loss)
            tokens = self._begin + message.tokens
            self._place = (tokens, self._place[1] + 1 if tokens == self._place[0] else 0)
            self.steps += 1
        self.news.set()

    async def has_made(self, steps: int, worker: Worker) -> bool:
        """Whether so many micro-steps are done before the worker ends."""
        end = asyncio.ensure_future(worker.wait())
        while self.steps < steps and not end.done():
            self.news.clear()
            news = asyncio.ensure_future(self.news.wait())
            await asyncio.wait({end, news}, return_when=asyncio.FIRST_COMPLETED)
            news.cancel()
        end.cancel()
        return self.steps >= steps


async def run_killed(settings: TrainerSettings, moments: list[Blow], *, workshop: Workshop) -> Course:
    """Kills a worker at each of the moments, then lets one use up all data."""
    course = Course()
    for blow in moments:
        window, worker = await _start(settings, course, workshop)
        if await window.has_made(blow.steps, worker):
            await _end_within(worker, blow.delay)
            os.kill(worker.pid, signal.SIGKILL)
        course.kills += await worker.wait() == -signal.SIGKILL
        assert not isinstance(window.last, WorkerFailed), window.last
    window, worker = await _start(settings, course, workshop)
    assert await worker.wait() == 0
    assert isinstance(window.last, WorkerEnded), window.last
    return course


async def _start(settings: TrainerSettings, course: Course, workshop: Workshop) -> tuple[_Window, Worker]:
    begin = latest_progress(open_store(settings.job_store_url)).trained_tokens
    assert begin, "the job must have a checkpoint before its windows are followed"
    window = _Window(course, begin=begin)
    return window, await workshop.start(WindowOrder(settings=settings, lease_id="lease"), window.listen)


async def _end_within(worker: Worker, seconds: float) -> None:
    await asyncio.wait({asyncio.ensure_future(worker.wait())}, timeout=seconds)


def differences(found: Mapping[Place, float], wanted: Mapping[Place, float], *, tolerance: float) -> list[str]:
    """Where two courses differ, the first few of them."""
    places = sorted(found.keys() ^ wanted.keys())
    missing = [f"{place}: {found.get(place)} instead of {wanted.get(place)}" for place in places]
    other = [
        f"{place}: {found[place]} instead of {wanted[place]}"
        for place in sorted(found.keys() & wanted.keys())
        if found[place] != pytest.approx(wanted[place], rel=tolerance, abs=1e-6)
    ]
    return [*missing, *other][:5]
