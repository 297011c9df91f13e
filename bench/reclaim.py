"""How fast and how safely a lent device comes back: interruptions at random moments of windows, on the real node.

A real vLLM pod and its real trainer.  The operator is taken away, so that the benchmark decides when a lease begins,
and because handing back must not need it; leases name the trainer as their holder, as the operator's do.  Windows are
ended by a request (most), by a policy update, and by asking back as the operator would.  Some workers are stopped
(SIGSTOP) first, so that they cannot hear that they are asked, and must be killed.

Hand-back is what the rollout pod itself measures, from asking back to the lease's end; `seen_*` is the same from
outside, connections included.  A kill is timed by the kernel's word of the process's death, from the moment at which
the interruption was sent.  A window is lost when a request failed, when the engine dropped captured tokens, when the
trainer's count lacks what the window trained (a killed worker may lose what it did since its last checkpoint, and no
more), or when the trainer did not come back.

python -m bench.reclaim [--interruptions 500] [--seed 1]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import enum
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bench import node, results, tables
from bench.demo.console import Console, StageError
from bench.demo.deploy import without_operator
from bench.rig import CallRefusedError, Rig, RolloutPod, TrainerPod, connect, rig
from tlt_workloads.contract import LeaseView, RevokeReason, RolloutState, TrainerState

NAMESPACE = "bench-reclaim"
GRACE = 1.0  # seconds, of the job below
SPEC = {
    "gateway": {"enabled": False},
    "idle": {"after": "50ms", "minWindow": "3s"},
    "reclaim": {"grace": f"{GRACE:g}s"},
    # Policy updates come often here and change nothing, so no record is ever too old.
    "training": {"trigger": {"minNewTokens": 1, "maxPolicyLag": 1_000_000}, "keepWarm": "6h"},
    "capture": {"maxTokensPerStep": 1 << 30},
}
RECORDED_REQUESTS, RECORDED_TOKENS = 8, 500
TOKENS_A_WINDOW = 150  # that a window trains on, about
LATEST = 2.0  # seconds after the grant
FIRST_WINDOW = 15.0  # seconds: the first one of a job solves for a drafter
STUBBORN_SHARE = 0.1
ANSWER_TOKENS = 8
IDLE_ANSWERS = 50
COME_BACK_SECONDS = 60.0
PROGRESS_EVERY = 25


class Interruption(enum.Enum):
    """How a window ends."""

    REQUEST = "request"
    POLICY = "policy update"
    OPERATOR = "operator"


WEIGHTS = {Interruption.REQUEST: 8, Interruption.POLICY: 1, Interruption.OPERATOR: 1}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One window; times in seconds."""

    kind: Interruption
    delay: float  # from the grant to the interruption
    hand_back: float
    seen: float
    answer: float | None = None  # the request's, if it was one
    overrun: float | None = None  # of the grace, for a worker that could not hear
    steps: int = 0
    first_step: float | None = None
    lost: str | None = None  # what was


class Bench:
    """One rollout pod, its trainer, and the dice."""

    def __init__(self, made: Rig, trainer: TrainerPod, *, seed: int) -> None:
        self._rig = made
        self._pod: RolloutPod = made.pods[0]
        self._trainer = trainer
        self._dice = random.Random(seed)
        self._pool = concurrent.futures.ThreadPoolExecutor(RECORDED_REQUESTS)
        self._number = 0

    def record(self, interruptions: int) -> None:
        """Generates something to train on, and enough copies of it."""
        jobs = [
            self._pool.submit(self._pod.generate, number=number, tokens=RECORDED_TOKENS)
            for number in range(RECORDED_REQUESTS)
        ]
        for job in jobs:
            job.result()
        captured = self._pod.until(lambda state: state.capture.shards > 0, seconds=30).capture.tokens
        self._rig.multiply_records(2 + interruptions * TOKENS_A_WINDOW // captured)

    def first_window(self) -> None:
        """Lets the job get its first drafter, which takes longer than the windows here."""
        self._rest()
        self._pod.lend(self._trainer.holder)
        time.sleep(FIRST_WINDOW)
        self._pod.revoke(RevokeReason.OPERATOR)
        self._trainer.until(lambda state: state.windows > 0 and state.phase == "Waiting", seconds=COME_BACK_SECONDS)

    def idle_answers(self) -> list[float]:
        """Seconds of the same request when no window is there to interrupt."""
        found = []
        for _ in range(IDLE_ANSWERS):
            began = time.monotonic()
            self._ask()
            found.append(time.monotonic() - began)
        return found

    def run(self, interruptions: int) -> Iterator[Outcome]:
        """Window after window."""
        self._pod.post("/init_weight_transfer_engine", {"init_info": {"transport": "file"}})
        for _ in range(interruptions):
            rollout, trainer = self._rest()
            kinds = list(WEIGHTS)
            [kind] = self._dice.choices(kinds, [WEIGHTS[item] for item in kinds])
            yield self._window(
                kind,
                delay=self._dice.uniform(0, LATEST),
                stubborn=self._dice.random() < STUBBORN_SHARE,
                before=rollout,
                trainer=trainer,
            )

    def _rest(self) -> tuple[RolloutState, TrainerState]:
        rollout = self._pod.until(lambda state: state.idle and state.lease is None, seconds=COME_BACK_SECONDS)
        return rollout, self._trainer.until(lambda state: state.phase == "Waiting", seconds=COME_BACK_SECONDS)

    def _window(
        self, kind: Interruption, *, delay: float, stubborn: bool, before: RolloutState, trainer: TrainerState
    ) -> Outcome:
        lease, granted = self._pod.lend(self._trainer.holder), time.monotonic()
        time.sleep(delay)
        worker = self._stopped_worker() if stubborn else None
        watch = node.Watch(worker) if worker is not None else None
        sent = time.monotonic()
        interruption = self._pool.submit(self._interrupt, kind)
        death = watch.death(within=GRACE + COME_BACK_SECONDS) if watch is not None else None
        rollout = self._pod.until(lambda state: _has_ended(state, lease), seconds=COME_BACK_SECONDS)
        seen = time.monotonic() - sent
        complaint, took = interruption.result()
        assert rollout.last_lease is not None
        try:
            after = self._trainer.until(
                lambda state: state.windows > trainer.windows and state.phase == "Waiting", seconds=COME_BACK_SECONDS
            )
        except (TimeoutError, OSError, CallRefusedError) as error:
            complaint, after = f"the trainer did not come back: {error}", trainer
        window = after.last_window
        return Outcome(
            kind=kind,
            delay=sent - granted,
            hand_back=rollout.last_lease.hand_back,
            seen=seen,
            answer=took if kind is Interruption.REQUEST else None,
            overrun=death - sent - GRACE if death is not None else None,
            steps=window.steps if window is not None else 0,
            first_step=window.lease_to_first_step if window is not None else None,
            lost=complaint or self._loss(before, trainer, after, lease=lease, killed=worker is not None),
        )

    def _stopped_worker(self) -> node.PodProcess | None:
        """The worker, which hears nothing any more; None when this window has none yet."""
        worker = node.trainer_worker(self._trainer.uid)
        if worker is not None:
            with contextlib.suppress(ProcessLookupError):
                worker.send(signal.SIGSTOP)
                return worker
        return None

    def _interrupt(self, kind: Interruption) -> tuple[str | None, float]:
        """Takes the device back; returns what went wrong, and how many seconds the call took."""
        began, complaint = time.monotonic(), None
        try:
            match kind:
                case Interruption.REQUEST:
                    complaint = self._ask()
                case Interruption.POLICY:
                    self._pod.post("/start_weight_update")
                    self._pod.post("/finish_weight_update")
                case Interruption.OPERATOR:
                    self._pod.revoke(RevokeReason.OPERATOR)
        except (OSError, CallRefusedError) as error:
            complaint = str(error)
        return complaint, time.monotonic() - began

    def _ask(self) -> str | None:
        self._number += 1
        count = self._pod.generate(number=self._number, tokens=ANSWER_TOKENS)
        return None if count == ANSWER_TOKENS else f"{count} of {ANSWER_TOKENS} tokens"

    def _loss(
        self, before: RolloutState, trainer: TrainerState, after: TrainerState, *, lease: LeaseView, killed: bool
    ) -> str | None:
        """What a window lost, in words; None when all is there."""
        window, now = after.last_window, self._pod.state()
        if window is None or window.lease_id != lease.id or after.windows != trainer.windows + 1:
            return f"the trainer does not know of the window {lease.id}: {window}"
        if window.stop_reason.startswith("Error"):
            return window.stop_reason
        if (now.failed_requests, now.aborted_requests) != (before.failed_requests, before.aborted_requests):
            return "a request failed or was aborted"
        if now.capture.dropped_tokens != before.capture.dropped_tokens:
            return "captured tokens were dropped"
        least = trainer.trained_tokens + (0 if killed else window.tokens)
        if after.trained_tokens < least:
            return f"{least - after.trained_tokens} trained tokens are missing from the trainer's count"
        return None


def _has_ended(state: RolloutState, lease: LeaseView) -> bool:
    return state.last_lease is not None and state.last_lease.id == lease.id


def metrics(outcomes: list[Outcome], idle_answers: list[float]) -> dict[str, float | int | None]:
    """The figures of a run."""
    asked = [item for item in outcomes if item.overrun is None]
    overruns = [item.overrun for item in outcomes if item.overrun is not None]
    training = [item.hand_back for item in asked if item.steps]
    starting = [item.hand_back for item in asked if not item.steps]
    answers = [item.answer for item in asked if item.answer is not None]
    return {
        "interruptions": len(outcomes),
        "hand_back_p50_s": results.percentile([item.hand_back for item in asked], 0.5),
        "hand_back_p99_s": results.percentile([item.hand_back for item in asked], 0.99),
        "hand_back_max_s": max((item.hand_back for item in asked), default=None),
        "hand_back_training_p99_s": results.percentile(training, 0.99),
        "hand_back_starting_p99_s": results.percentile(starting, 0.99),
        "seen_hand_back_p50_s": results.percentile([item.seen for item in asked], 0.5),
        "seen_hand_back_p99_s": results.percentile([item.seen for item in asked], 0.99),
        "idle_answer_p50_s": results.percentile(idle_answers, 0.5),
        "idle_answer_p95_s": results.percentile(idle_answers, 0.95),
        "interrupting_answer_p50_s": results.percentile(answers, 0.5),
        "interrupting_answer_p95_s": results.percentile(answers, 0.95),
        "windows_with_steps": len(training),
        "kills": len(overruns),
        "kill_overrun_p50_s": results.percentile(overruns, 0.5),
        "kill_overrun_p99_s": results.percentile(overruns, 0.99),
        "lost_windows": sum(item.lost is not None for item in outcomes),
        "lease_to_first_step_p50_s": results.percentile(
            [item.first_step for item in outcomes if item.first_step is not None], 0.5
        ),
        **{
            f"{kind.value.replace(' ', '_')}_interruptions": count
            for kind, count in Counter(item.kind for item in outcomes).items()
        },
    }


def measure(console: Console, *, interruptions: int, seed: int, keep: bool) -> Mapping[str, float | int | None]:
    """Runs everything on the embedded cluster; the figures."""
    cluster = connect()
    outcomes: list[Outcome] = []
    idle: list[float] = []
    with rig(console, cluster, namespace=NAMESPACE, replicas=1, spec=SPEC, keep=keep) as made:
        with console.stage("the trainer warms up", expected=30):
            trainer = made.wait_for_trainer(made.pods[0])
        with without_operator(cluster):
            bench = Bench(made, trainer, seed=seed)
            with console.stage("something to train on, and a first window", expected=90):
                bench.record(interruptions)
                bench.first_window()
                idle = bench.idle_answers()
            with console.stage(f"{interruptions} interruptions", expected=1.8 * interruptions):
                for outcome in bench.run(interruptions):
                    outcomes.append(outcome)
                    if outcome.lost is not None:
                        console.say(f"  window {len(outcomes)} lost something ({outcome.kind.value}): {outcome.lost}")
                    if len(outcomes) % PROGRESS_EVERY == 0:
                        console.say(f"  {len(outcomes)} of {interruptions}: {_short(outcomes)}")
    return metrics(outcomes, idle)


def _short(outcomes: list[Outcome]) -> str:
    found = metrics(outcomes, [])
    names = ("hand_back_p50_s", "hand_back_p99_s", "kills", "kill_overrun_p99_s", "lost_windows")
    return ", ".join(f"{name} {found[name]:.3g}" for name in names if found[name] is not None)


def main() -> int:
    """Measures, writes bench/results/reclaim.json and the page that is made from it."""
    parser = argparse.ArgumentParser(prog="python -m bench.reclaim", description=__doc__)
    parser.add_argument("--interruptions", type=int, default=500, help="windows to interrupt (default 500)")
    parser.add_argument("--seed", type=int, default=1, help="of the random moments (default 1)")
    parser.add_argument("--keep", action="store_true", help="leave pods and namespace for a look")
    options = parser.parse_args()
    if options.interruptions < 1:
        parser.error(f"--interruptions: {options.interruptions} is less than 1")
    console = Console()
    try:
        found = measure(console, interruptions=options.interruptions, seed=options.seed, keep=options.keep)
    except StageError as failure:
        print(failure.told, file=sys.stderr)
        return 1
    tables.publish("reclaim", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
