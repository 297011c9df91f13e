"""How much of the waiting time of a long tail is harvested, and what that costs the generation, on the real node.

Two real vLLM pods.  In each step both get requests at once; one pod is done early and the other generates a tail of
more than ten seconds, in turn.  The operator lends the idle one (`idle.scope: Tail`).  Every step runs twice, once with
harvesting and once with `suspend: true`, in alternating order and with the same requests, so that a drift of the
machine falls on both alike.

The harvested share is lent seconds over idle seconds of the pod that waits, by the pod's own clocks, from its last
answer to the other pod's last one.  Requests go to the pods directly, so that it is known which one waits.

python -m bench.harvest [--steps 5] [--seed 1]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import random
import statistics
import sys
import time
from dataclasses import dataclass

from bench import results, tables
from bench.demo.console import Console, StageError
from bench.rig import Rig, RolloutPod, connect, rig

NAMESPACE = "bench-harvest"
IDLE_AFTER = 0.3  # seconds, as in the example
SPEC = {
    "gateway": {"enabled": False},
    "idle": {"after": f"{IDLE_AFTER:g}s", "minWindow": "2500ms", "scope": "Tail"},
    "training": {"trigger": {"minNewTokens": 1000}, "keepWarm": "6h"},
    "capture": {"maxTokensPerStep": 1 << 30},
}
RECORDED_REQUESTS, RECORDED_TOKENS, COPIES = 4, 400, 60
SHORT_REQUESTS, SHORT_TOKENS = 2, 24
TAIL_REQUESTS, TAIL_TOKENS = 4, (700, 900)  # of each request, drawn; the example's engine takes 1,024 with the prompt
LONG_WINDOW = 10.0  # seconds; shorter ones do not count
WARM_UP_TOKENS = 500  # a first window solves for a drafter
REST_SECONDS = 120.0
SETTLE_SECONDS = 3.0  # until the operator has seen a change of the job


@dataclass(frozen=True, kw_only=True)
class Window:
    """One tail; times in seconds."""

    harvesting: bool
    idle: float  # of the pod that waits
    lent: float
    rate: float  # tokens per second of the pod that generates
    edge_to_lease: float | None = None  # from the idle edge to the grant
    lease_to_step: float | None = None  # from the lease as the trainer sees it to its first micro-step


class Bench:
    """Two rollout pods that take turns in being the tail."""

    def __init__(self, made: Rig) -> None:
        self._rig = made
        self._pool = concurrent.futures.ThreadPoolExecutor(16)

    def record(self) -> None:
        """Something to train on, a warm trainer on each device, and a first drafter."""
        for pod in self._rig.pods:
            self._generate(pod, requests=RECORDED_REQUESTS, tokens=RECORDED_TOKENS)
        self._rig.multiply_records(COPIES)
        for pod in self._rig.pods:
            self._rig.wait_for_trainer(pod)
        for number in range(len(self._rig.pods)):
            self.tail(number, tokens=WARM_UP_TOKENS, harvesting=True)

    def switch(self, *, harvesting: bool) -> None:
        """Suspends the job or goes on."""
        self._rig.patch_job({"suspend": not harvesting})
        time.sleep(SETTLE_SECONDS)

    def tail(self, number: int, *, tokens: int, harvesting: bool) -> Window:
        """One step in which pod `number` waits for the other one."""
        self._rest()
        waits, generates = self._rig.pods[number % 2], self._rig.pods[(number + 1) % 2]
        trainer = self._rig.trainer_of(waits)
        before = waits.state()
        began = time.monotonic()
        long = self._pool.submit(self._generate, generates, requests=TAIL_REQUESTS, tokens=tokens)
        self._generate(waits, requests=SHORT_REQUESTS, tokens=SHORT_TOKENS)
        edge_to_lease = self._edge_to_lease(waits, long) if harvesting else None
        count = long.result()
        rate, after = count / (time.monotonic() - began), waits.state()
        self._rest()
        lease_to_step = None
        if trainer is not None and edge_to_lease is not None:
            window = trainer.state().last_window
            lease_to_step = window.lease_to_first_step if window is not None else None
        return Window(
            harvesting=harvesting,
            idle=after.idle_seconds - before.idle_seconds,
            lent=after.lent_seconds - before.lent_seconds,
            rate=rate,
            edge_to_lease=edge_to_lease,
            lease_to_step=lease_to_step,
        )

    def _edge_to_lease(self, pod: RolloutPod, tail: concurrent.futures.Future[int]) -> float | None:
        """Seconds from the idle edge to the grant, by the pod's clock; None when the tail ended before."""
        state = pod.state()
        while state.lease is None and not tail.done():
            state = pod.state(seq=state.seq, wait=0.5)
        if state.lease is None:
            return None
        return max(0.0, state.idle_for - IDLE_AFTER - state.lease.age)

    def _rest(self) -> None:
        for pod in self._rig.pods:
            pod.until(lambda state: state.idle and state.lease is None, seconds=REST_SECONDS)
            if (trainer := self._rig.trainer_of(pod)) is not None:
                trainer.until(lambda state: state.phase == "Waiting", seconds=REST_SECONDS)

    def _generate(self, pod: RolloutPod, *, requests: int, tokens: int) -> int:
        jobs = [
            self._pool.submit(pod.generate, number=number, tokens=tokens, temperature=0.0) for number in range(requests)
        ]
        return sum(job.result() for job in jobs)


def metrics(windows: list[Window]) -> dict[str, float | int | None]:
    """The figures of a run; windows come in pairs, one of each kind."""
    harvested = [item for item in windows if item.harvesting and item.idle > LONG_WINDOW]
    idle = sum(item.idle for item in harvested)
    pairs = [windows[index : index + 2] for index in range(0, len(windows) - 1, 2)]
    rates = [{item.harvesting: item.rate for item in pair} for pair in pairs]
    leases = [item.edge_to_lease for item in harvested if item.edge_to_lease is not None]
    steps = [item.lease_to_step for item in harvested if item.lease_to_step is not None]
    edges = [
        item.edge_to_lease + item.lease_to_step
        for item in harvested
        if item.edge_to_lease is not None and item.lease_to_step is not None
    ]
    return {
        "steps": len(pairs),
        "long_windows": len(harvested),
        "idle_s": idle,
        "lent_s": sum(item.lent for item in harvested),
        "harvested_share": sum(item.lent for item in harvested) / idle if idle else None,
        "edge_to_lease_p50_s": results.percentile(leases, 0.5),
        "lease_to_first_step_p50_s": results.percentile(steps, 0.5),
        "edge_to_first_step_p50_s": results.percentile(edges, 0.5),
        "rollout_slowdown_share": 1 - statistics.median(rate[True] / rate[False] for rate in rates) if rates else None,
        "tokens_per_s_harvesting": statistics.median(rate[True] for rate in rates) if rates else None,
        "tokens_per_s_suspended": statistics.median(rate[False] for rate in rates) if rates else None,
    }


def measure(console: Console, *, steps: int, seed: int, keep: bool) -> list[Window]:
    """Runs everything on the embedded cluster."""
    cluster, dice, windows = connect(), random.Random(seed), list[Window]()
    with rig(console, cluster, namespace=NAMESPACE, replicas=2, spec=SPEC, keep=keep) as made:
        bench = Bench(made)
        with console.stage("something to train on, and a first drafter", expected=180):
            bench.record()
        with console.stage(f"{steps} steps, each with and without harvesting", expected=100.0 * steps):
            for step in range(steps):
                tokens = dice.randint(*TAIL_TOKENS)
                for harvesting in (True, False) if step % 2 == 0 else (False, True):
                    bench.switch(harvesting=harvesting)
                    windows.append(bench.tail(step, tokens=tokens, harvesting=harvesting))
                    console.say(f"  step {step + 1}: {_told(windows[-1])}")
    return windows


def _told(window: Window) -> str:
    kind = f"lent {window.lent:.1f} s of" if window.harvesting else "suspended,"
    first = f", first step {window.lease_to_step:.2f} s after the lease" if window.lease_to_step is not None else ""
    return f"{kind} {window.idle:.1f} s idle, {window.rate:.1f} tokens/s{first}"


def main() -> int:
    """Measures, writes bench/results/harvest.json and the page that is made from it."""
    parser = argparse.ArgumentParser(prog="python -m bench.harvest", description=__doc__)
    parser.add_argument("--steps", type=int, default=5, help="steps, each run twice (default 5)")
    parser.add_argument("--seed", type=int, default=1, help="of the lengths of the tails (default 1)")
    parser.add_argument("--keep", action="store_true", help="leave pods and namespace for a look")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"--steps: {options.steps} is less than 1")
    console = Console()
    try:
        windows = measure(console, steps=options.steps, seed=options.seed, keep=options.keep)
    except StageError as failure:
        print(failure.told, file=sys.stderr)
        return 1
    tables.publish("harvest", metrics(windows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
