"""How a drafter learns from a job's own rollouts, and how fast it is back after the policy has changed.

One server with the plugin and SmolLM2-135M.  It answers the example's questions at temperature 0.7 and records its
hidden states; between two recordings the trainer's window loop runs for a while on all cores of this machine, each of
which stands for an accelerator, with the settings that a trainer pod has.  After every window the newest revision is
loaded and meets questions that were never recorded: that is the live accept length.  Then such questions are answered
one at a time, turn about, without speculation, with all drafted tokens, and with as many as adaptive speculation
chooses, which is what a job has and has seen one request alone before.  Answers end where the policy ends them: what a
model says beyond that is nothing that a rollout holds, and nothing that a drafter has learnt.

At the end the example's own GRPO learner takes real steps, which are recorded and each of which sends the weights that
the last one has left; the drafter is measured before and after one window of a minute.  `recovery_ratio` is the accept
length after it against that before the steps.  The drafter of before the steps is kept in build/bench/learned-drafter,
for `python -m bench.speculation`.

python -m bench.learning [--tokens 200000] [--steps 3] [--learning-rate 1e-5] [--seed 1] [--publish]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import engines, rl_task, tables
from bench.demo.console import Console
from bench.estimate import tokens_per_draft
from bench.learning import grpo
from bench.learning.picture import Point, draw
from bench.lesson import Lesson
from bench.results import ROOT
from tests.support.rollout_server import RolloutServer, rollout_server

DRAFT_LENGTH = 3
TOKENS = 200_000  # recorded in all ...
STAGES = ((0.1, 60.0), (0.25, 90.0), (0.5, 150.0), (1.0, 300.0))  # ... up to this share, then trained for (s)
LEAST_TOKENS = 20_000
WINDOW = 60.0  # seconds, after the policy has changed
MEASURED_BATCH, MEASURED_QUESTIONS = 16, 64  # answers at once, and in all ...
UNTRAINED_QUESTIONS = 16  # ... of a drafter that slows every answer down and has hardly a draft accepted
PARTS = 8  # of a measurement, whose differences tell its error
SINGLE_ROUNDS, SINGLE_QUESTIONS = 6, 2  # of each way in a round
OFF, FIXED, ADAPTIVE = "off", "fixed", "adaptive"
WAYS = (OFF, FIXED, ADAPTIVE)
UNSEEN = 600  # questions
FOLDER = ROOT / "build" / "bench"
PICTURE = ROOT / "docs" / "images" / "learning.png"
KEPT = FOLDER / "learned-drafter"


@dataclass
class Bench:
    """A server, its lesson, and what was seen so far."""

    lesson: Lesson
    unseen: Sequence[str]
    points: list[Point] = field(default_factory=list)
    trained: float = 0.0  # seconds

    @property
    def server(self) -> RolloutServer:
        """That answers."""
        return self.lesson.server

    def accept_length(self, questions: int) -> tuple[float, float]:
        """Of the drafter in place, over answers to the same questions each time; and its standard error."""
        self._speculate(DRAFT_LENGTH)
        marks = [self._counts()]
        with concurrent.futures.ThreadPoolExecutor(MEASURED_BATCH) as pool:
            jobs = [pool.submit(self.lesson.answer, question) for question in self.unseen[:questions]]
            for number, job in enumerate(concurrent.futures.as_completed(jobs), start=1):
                job.result()
                if number % (questions // PARTS) == 0:
                    marks.append(self._counts())
        return tokens_per_draft([(now[0] - then[0], now[1] - then[1]) for then, now in itertools.pairwise(marks)])

    def look(self, *, offline: float | None, is_other_policy: bool = False) -> Point:
        """Measures the drafter in place."""
        questions = MEASURED_QUESTIONS if self.trained else UNTRAINED_QUESTIONS
        accept_length, error = self.accept_length(questions)
        point = Point(
            seconds=self.trained,
            tokens=self.lesson.recorded,
            accept_length=accept_length,
            error=error,
            offline=offline,
            is_other_policy=is_other_policy,
        )
        self.points.append(point)
        return point

    def train(self, seconds: float) -> Point:
        """One window; the newest revision after it."""
        self.lesson.train(seconds)
        self.trained += seconds
        return self.look(offline=self.lesson.load_newest().evaluation.accept_length)

    def single_rates(self, *, turn: int) -> dict[str, float]:
        """Tokens per second of one request alone, by the way in which it is drafted for; each turn has an order."""
        first, found = MEASURED_QUESTIONS + SINGLE_QUESTIONS * turn, {}
        for number in range(len(WAYS)):
            way = WAYS[(turn + number) % len(WAYS)]
            found[way] = self.single_rate(way, first=first)
        return found

    def single_rate(self, way: str, *, first: int) -> float:
        """Tokens per second of one request alone, of the questions from this one on."""
        self._speculate(0 if way == OFF else DRAFT_LENGTH, is_adaptive=way == ADAPTIVE)
        began = time.monotonic()
        tokens = sum(self.lesson.answer(prompt) for prompt in self.unseen[first : first + SINGLE_QUESTIONS])
        return tokens / (time.monotonic() - began)

    def record_while_drafting(self) -> None:
        """As a job does it."""
        engines.configure(self.server, capture={}, draft_length=DRAFT_LENGTH)

    def _speculate(self, length: int, *, is_adaptive: bool = False) -> None:
        engines.configure(self.server, capture={"enabled": False}, draft_length=length, is_adaptive=is_adaptive)

    def _counts(self) -> tuple[int, int]:
        """Drafts and accepted tokens so far at this draft length."""
        by_length = {item["draftLength"]: item for item in self.server.state()["acceptance"]["byLength"]}
        item = by_length.get(DRAFT_LENGTH, {"drafts": 0, "acceptedTokens": 0})
        return int(item["drafts"]), int(item["acceptedTokens"])


def learn(console: Console, bench: Bench, *, tokens: int) -> None:
    """The curve up to so many recorded tokens."""
    console.say(f"  untrained: {_told(bench.look(offline=None))}")
    for share, seconds in STAGES:
        wanted = int(share * tokens)
        with console.stage(
            f"recording until there are {wanted} tokens", expected=(wanted - bench.lesson.recorded) / 400
        ):
            bench.lesson.capture(wanted)
        with console.stage(f"training for {seconds:.0f} s", expected=seconds + 60):
            console.say(f"  {_told(bench.train(seconds))}")


def recover(console: Console, bench: Bench, model: Path, *, steps: int, learning_rate: float) -> dict[str, float]:
    """Real RL steps, and a window after them."""
    before = bench.points[-1].accept_length
    bench.record_while_drafting()
    with console.stage(f"{steps} steps of GRPO", expected=90.0 * steps):
        lines = grpo.take_steps(bench.server, model, steps=steps, learning_rate=learning_rate)
    changed = bench.look(offline=None, is_other_policy=True)
    console.say(f"  {_told(changed)}")
    with console.stage(f"a window of {WINDOW:.0f} s", expected=WINDOW + 60):
        after = bench.train(WINDOW)
    console.say(f"  {_told(after)}")
    return {
        "rl_steps": len(lines),
        "policy_updates": len(lines) - 1,
        "rl_learning_rate": learning_rate,
        "rl_reward": statistics.mean(line["reward"] for line in lines),
        "policy_change_share": grpo.policy_change(bench.server, model),
        "accept_length_after_steps": changed.accept_length,
        "accept_length_after_window": after.accept_length,
        "accept_length_after_window_error": after.error,
        "recovery_ratio": after.accept_length / before,
    }


def measure(
    console: Console, *, tokens: int, steps: int, learning_rate: float, seed: int
) -> tuple[dict[str, float | int | None], Sequence[Point]]:
    """Runs everything on this machine; the figures, and the curve."""
    model = engines.small_model()
    flags = (*engines.FLAGS, "--speculative-tokens", str(DRAFT_LENGTH))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        with console.stage("a server", expected=60):
            server = stack.enter_context(rollout_server(model, *flags, folder=Path(folder)))
        lesson = Lesson(server, model, draft_length=DRAFT_LENGTH, seed=seed)
        bench = Bench(lesson, rl_task.prompts(UNSEEN, seed=seed + 1))
        learn(console, bench, tokens=tokens)
        lesson.keep_newest(KEPT)
        console.say(f"drafter: {KEPT.relative_to(ROOT)}")
        with console.stage("one request at a time", expected=30.0 * SINGLE_ROUNDS):
            bench.single_rate(ADAPTIVE, first=MEASURED_QUESTIONS + SINGLE_QUESTIONS * SINGLE_ROUNDS)
            rates = [bench.single_rates(turn=turn) for turn in range(SINGLE_ROUNDS)]
        learnt = bench.points[-1]
        recovered = recover(console, bench, model, steps=steps, learning_rate=learning_rate)
    figures = {
        "captured_tokens": learnt.tokens,
        "training_s": sum(seconds for _, seconds in STAGES),
        "draft_length": DRAFT_LENGTH,
        "accept_length": learnt.accept_length,
        "accept_length_error": learnt.error,
        "accept_length_offline": learnt.offline,
        "single_request_ratio": statistics.median(found[ADAPTIVE] / found[OFF] for found in rates),
        "single_request_fixed_ratio": statistics.median(found[FIXED] / found[OFF] for found in rates),
        **{f"single_request_{way}_tokens_per_s": statistics.median(found[way] for found in rates) for way in WAYS},
        **{
            f"accept_length_{int(share * tokens) // 1000}k_tokens": point.accept_length
            for (share, _), point in zip(STAGES, bench.points[1:], strict=False)
        },
        "accept_length_untrained": bench.points[0].accept_length,
        **recovered,
    }
    return figures, bench.points


def _told(point: Point) -> str:
    judged = "" if point.offline is None else f" ({point.offline:.3f} on held-out answers)"
    live = f"{point.accept_length:.3f} ± {point.error:.3f}"
    return f"accept length {live}{judged} after {point.tokens} tokens and {point.seconds:.0f} s"


def main() -> int:
    """Measures, writes bench/results/learning.json and the page that is made from it."""
    parser = argparse.ArgumentParser(prog="python -m bench.learning", description=__doc__)
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"to record in all (default {TOKENS})")
    parser.add_argument("--steps", type=int, default=3, help="of GRPO (default 3)")
    parser.add_argument(
        "--learning-rate", type=float, default=1e-5, help="of GRPO (default 1e-5, the example has 2e-6)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the questions (default 1)")
    parser.add_argument("--publish", action="store_true", help=f"draws {PICTURE.relative_to(ROOT)}")
    parser.add_argument("--dry", action="store_true", help="print the figures and write nothing")
    options = parser.parse_args()
    if options.steps < 2:
        parser.error(f"--steps: {options.steps} is less than 2: weights are sent at the beginning of a step")
    if options.tokens < LEAST_TOKENS:
        parser.error(f"--tokens: {options.tokens} is less than {LEAST_TOKENS}, a drafter learns nothing from them")
    console = Console()
    found, points = measure(
        console,
        tokens=options.tokens,
        steps=options.steps,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    tables.publish("learning", found, dry=options.dry)
    # Only now: a result tells whether the project's files were changed, and the picture is one of them.
    picture = draw(points, PICTURE if options.publish else FOLDER / PICTURE.name, draft_length=DRAFT_LENGTH)
    console.say(f"learning curve: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
