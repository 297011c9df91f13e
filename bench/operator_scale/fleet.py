"""Many rollout pods as one HTTP server: real sockets, the real contract, and idle edges by plan.

One process listens on all loopback addresses; which pod is meant follows from the address that was called.  Every pod
generates for half of a period and rests for the other half.  Each idle edge is a line of JSON on standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import heapq
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from tlt_workloads.contract import (
    CONFIG_ROUTE,
    LEASE_ROUTE,
    STATE_ROUTE,
    AcceptanceCounters,
    CaptureCounters,
    RolloutConfig,
    RolloutState,
    SpeculationMode,
    config_digest,
    decode,
    encode,
)

PORT = 18100
PERIOD = 10.0  # seconds from one idle edge of a pod to its next
IDLE_AFTER = 0.05  # seconds without a request until a pod calls itself idle
METRICS_PAGE = Path(__file__).with_name("vllm_metrics.txt")
RUNNING = "vllm:num_requests_running{"


def address_of(number: int) -> str:
    """The loopback address of a pod."""
    return f"127.10.{number // 250}.{number % 250 + 1}"


def name_of(number: int) -> str:
    """The name of a pod."""
    return f"rollout-{number:04d}"


@dataclasses.dataclass(eq=False)
class Pod:
    """One rollout pod: facts, and those who wait for the next change."""

    name: str
    boot: str
    seq: int = 1
    running: int = 0
    idle: bool = False
    since: float = dataclasses.field(default_factory=time.monotonic)
    digest: str | None = None
    changed: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    def change(self, *, running: int, idle: bool) -> None:
        """Takes on another state and answers the open polls."""
        self.running, self.idle, self.since = running, idle, time.monotonic()
        self.bump()

    def bump(self) -> None:
        """Answers the open polls."""
        self.seq += 1
        self.changed.set()
        self.changed = asyncio.Event()

    def state(self) -> RolloutState:
        """As the contract has it."""
        return RolloutState(
            seq=self.seq,
            boot=self.boot,
            running=self.running,
            waiting=0,
            idle=self.idle,
            idle_for=time.monotonic() - self.since if self.idle else 0.0,
            paused=False,
            updating=False,
            lease=None,
            last_lease=None,
            policy_version=1,
            drafter_revision=None,
            drafter_digest=None,
            drafter_method="eagle3",
            speculation=SpeculationMode.ADAPTIVE,
            draft_length=3,
            config_digest=self.digest,
            served_names=("policy",),
            requests=0,
            failed_requests=0,
            aborted_requests=0,
            generated_tokens=0,
            busy_seconds=0.0,
            idle_seconds=0.0,
            lent_seconds=0.0,
            capture=CaptureCounters(),
            acceptance=AcceptanceCounters(),
            engine_version="0.32.0",
            plugin_version="0",
        )


Step = Callable[[Pod], float]  # changes a pod and says after how many seconds the next step follows


class Fleet:
    """All pods, and the plan by which they work."""

    def __init__(self, count: int, *, seed: int) -> None:
        self.pods = {address_of(number): Pod(name_of(number), f"boot-{number}") for number in range(count)}
        self._dice = random.Random(seed)
        before, _, after = METRICS_PAGE.read_text().partition(RUNNING)
        line, _, rest = after.partition("\n")
        self._page = (f"{before}{RUNNING}{line.rsplit(' ', 1)[0]} ", f"\n{rest}")

    def application(self) -> web.Application:
        """The routes that an operator and a scraper ask."""
        app = web.Application()
        app.add_routes(
            [
                web.get(STATE_ROUTE, self._state),
                web.post(CONFIG_ROUTE, self._configure),
                web.post(LEASE_ROUTE, self._refuse),
                web.get("/metrics", self._metrics),
            ]
        )
        return app

    async def work(self) -> None:
        """Runs the plan for ever: pods begin at random moments of the first period."""
        plan: list[tuple[float, int, Pod, Step]] = []
        after: dict[Step, Step] = {self._begin: self._finish, self._finish: self._rest, self._rest: self._begin}
        for number, pod in enumerate(self.pods.values()):
            heapq.heappush(plan, (time.monotonic() + self._dice.uniform(0, PERIOD), number, pod, self._begin))
        while True:
            moment, number, pod, step = heapq.heappop(plan)
            await asyncio.sleep(max(0.0, moment - time.monotonic()))
            pause = step(pod)
            heapq.heappush(plan, (moment + pause, number, pod, after[step]))

    def _begin(self, pod: Pod) -> float:
        pod.change(running=8, idle=False)
        return PERIOD / 2

    def _finish(self, pod: Pod) -> float:
        pod.change(running=0, idle=False)
        return IDLE_AFTER

    def _rest(self, pod: Pod) -> float:
        pod.change(running=0, idle=True)
        sys.stdout.write(json.dumps({"pod": pod.name, "at": time.time()}) + "\n")
        sys.stdout.flush()
        return PERIOD / 2 - IDLE_AFTER

    def _pod(self, request: web.Request) -> Pod:
        assert request.transport is not None
        return self.pods[request.transport.get_extra_info("sockname")[0]]

    async def _state(self, request: web.Request) -> web.Response:
        pod = self._pod(request)
        seq, wait = int(request.query.get("seq", 0)), float(request.query.get("wait", 0))
        if seq == pod.seq:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(pod.changed.wait(), wait)
        return web.json_response(encode(pod.state()))

    async def _configure(self, request: web.Request) -> web.Response:
        pod, body = self._pod(request), await request.json()
        pod.digest = config_digest(decode(RolloutConfig, body))
        pod.bump()
        return web.json_response({})

    async def _refuse(self, _: web.Request) -> web.Response:
        error: dict[str, Any] = {"error": {"reason": "NotIdle", "message": "this pod is not lent"}}
        return web.json_response(error, status=409)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=f"{self._page[0]}{self._pod(request).running}{self._page[1]}")


async def serve(count: int, seed: int) -> None:
    """Serves and works until killed."""
    fleet = Fleet(count, seed=seed)
    runner = web.AppRunner(fleet.application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", PORT, backlog=4096).start()
    print(json.dumps({"ready": count}), flush=True)
    await fleet.work()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    asyncio.run(serve(options.count, options.seed))
