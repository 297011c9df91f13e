"""What adaptive speculation is worth: against none, every fixed draft length and n-grams, with a drafter trained here.

One server with the plugin.  It answers the questions of the example's RL run, its hidden states are captured, and the
trainer's own window loop makes a drafter of them on this machine, which is loaded as any revision is.  Then the same
batches are answered in every mode, in short turns whose order is drawn anew, so that what else a machine has to do
falls on all: batch sizes from 1 to 16 with answers of one length, and rollouts with a long tail.  The number of tokens
is the same in every mode, which tokens is left to chance.  All questions are new ones that were answered a few times
before, and no answer is made to go on for longer than the shortest of these: what a policy says beyond its end is
nothing that a rollout holds.

Adaptive speculation has answered a batch of each size before it is measured; what it tries later is in its figures.
The drafter is kept in build/bench/speculation-drafter.  `--drafter` takes one that is there already, as this benchmark
and `python -m bench.learning` keep theirs, and trains none.

python -m bench.speculation [--rounds 6] [--rollouts 3] [--tokens 100000] [--minutes 8] [--drafter FOLDER] [--seed 1]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import engines, results, rl_task, tables
from bench.demo.console import Console
from bench.lesson import Lesson
from tests.support.rollout_server import rollout_server
from tlt_workloads.contract import REVISION_MANIFEST, RevisionManifest

KEPT = results.ROOT / "build" / "bench" / "speculation-drafter"
LONGEST = 4  # drafted tokens
BATCHES = (1, 2, 4, 8, 16)
ANSWER_TOKENS = 64  # of each request in a batch
SURVEYED = 48  # new questions, each answered `GENERATIONS` times
ROLLOUT_REQUESTS = 16
TAIL = 2  # requests that are left when the tail begins

OFF, ADAPTIVE, NGRAM = "off", "adaptive", "ngram"
STATIC = tuple(f"static {length}" for length in range(1, LONGEST + 1))
MODES = (OFF, *STATIC, NGRAM, ADAPTIVE)


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One rollout with a long tail: tokens per second of all of it and of its tail."""

    whole: float
    tail: float


@dataclass
class Figures:
    """Rates by mode, one for each round."""

    batches: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    rollouts: dict[str, list[Rollout]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A question and how long its answer is to be, in tokens."""

    prompt: str
    tokens: int


class Bench:
    """A server and the questions that it gets."""

    def __init__(self, lesson: Lesson, *, seed: int) -> None:
        self._lesson = lesson
        self._server = lesson.server
        self._dice = random.Random(seed)
        self._seed = seed
        self._pool = concurrent.futures.ThreadPoolExecutor(max(*BATCHES, ROLLOUT_REQUESTS))
        self._requests: list[Request] = []  # longest first

    def survey(self) -> None:
        """Finds out how long the answers to new questions are by themselves."""
        prompts = rl_task.prompts(SURVEYED, seed=self._seed + 1)  # never seen in training
        jobs = [
            [self._pool.submit(self._lesson.answer, prompt) for _ in range(rl_task.GENERATIONS)] for prompt in prompts
        ]
        found = [
            Request(prompt=prompt, tokens=min(job.result() for job in answers))
            for prompt, answers in zip(prompts, jobs, strict=True)
        ]
        self._requests = sorted(found, key=lambda request: -request.tokens)

    def switch(self, mode: str) -> None:
        """Another mode from the next step on."""
        body = {"mode": "Adaptive", "draftLength": LONGEST}
        if mode == OFF:
            body = {"mode": "Off", "draftLength": 0}
        elif mode == NGRAM:
            body = {"mode": "NGram", "draftLength": LONGEST}
        elif mode in STATIC:
            body = {"mode": "Static", "draftLength": 1 + STATIC.index(mode)}
        self._called("POST", "/tlt/v1/speculation", body)

    def rate(self, batch: int, *, turn: int) -> float:
        """Tokens per second of a batch whose answers are equally long."""
        long = [request for request in self._requests if request.tokens >= ANSWER_TOKENS] or self._requests[:batch]
        asked = [long[(turn * batch + number) % len(long)] for number in range(batch)]
        began = time.monotonic()
        jobs = [self._submit(request.prompt, min(request.tokens, ANSWER_TOKENS)) for request in asked]
        return sum(job.result() for job in jobs) / (time.monotonic() - began)

    def rollout(self, requests: Sequence[Request]) -> Rollout:
        """Answers of these lengths, asked for at once."""
        began = time.monotonic()
        jobs = [self._submit(request.prompt, request.tokens) for request in requests]
        for count, _ in enumerate(concurrent.futures.as_completed(jobs), start=1):
            if count == len(jobs) - TAIL:
                tail_began, before = time.monotonic(), self._server.state()["generatedTokens"]
        ended, after = time.monotonic(), self._server.state()["generatedTokens"]
        tokens = sum(request.tokens for request in requests)
        return Rollout(whole=tokens / (ended - began), tail=(after - before) / (ended - tail_began))

    def order(self) -> list[str]:
        """All modes, in an order of chance."""
        return self._dice.sample(MODES, len(MODES))

    def draw(self, *, turn: int) -> list[Request]:
        """One rollout: the longest answers that no rollout before had, and others that are over at half of these."""
        first = TAIL * turn % (len(self._requests) - ROLLOUT_REQUESTS)
        longest, others = self._requests[first : first + TAIL], self._requests[first + TAIL :]
        half = max(1, longest[-1].tokens // 2)
        drawn = self._dice.sample(others, ROLLOUT_REQUESTS - TAIL)
        return [*longest, *(replace(request, tokens=min(request.tokens, half)) for request in drawn)]

    def accept_lengths(self) -> dict[int, float]:
        """Of the drafter in use, by draft length."""
        return {
            int(item["draftLength"]): 1 + float(item["acceptedTokens"]) / float(item["drafts"])
            for item in self._server.state()["acceptance"]["byLength"]
        }

    def _submit(self, prompt: str, tokens: int) -> concurrent.futures.Future[int]:
        return self._pool.submit(self._lesson.answer, prompt, tokens=tokens, fixed=True)

    def _called(self, method: str, route: str, body: Mapping[str, object]) -> None:
        status, answer = self._server.call(method, route, body)
        if status != 200:
            raise RuntimeError(f"{method} {route}: {status} {answer}")


def rounds_of(bench: Bench, *, rounds: int, rollouts: int, figures: Figures) -> Iterator[str]:
    """Measures, and tells of each round; the first ones have a rollout.

    All modes answer a batch size before the next one's turn, and briefly: what is compared lies a minute or two apart,
    and a machine that is shared can be a third slower by then, which the order leaves to chance.
    """
    for turn in range(rounds):
        for batch in BATCHES:
            rates = figures.batches.setdefault(batch, {})
            for mode in bench.order():
                bench.switch(mode)
                rates.setdefault(mode, []).append(bench.rate(batch, turn=turn))
            found = ", ".join(f"{mode} {rates[mode][-1]:.0f}" for mode in MODES)
            yield f"round {turn + 1}, tokens/s of {batch} at once: {found}"
        if turn >= rollouts:
            continue
        drawn = bench.draw(turn=turn)
        for mode in bench.order():
            bench.switch(mode)
            figures.rollouts.setdefault(mode, []).append(bench.rollout(drawn))
        last = {mode: figures.rollouts[mode][-1] for mode in MODES}
        found = ", ".join(f"{mode} {item.whole:.0f} ({item.tail:.0f})" for mode, item in last.items())
        yield f"round {turn + 1}, tokens/s of a rollout (of its tail): {found}"


def metrics(figures: Figures) -> dict[str, float | int | None]:
    """Ratios are medians over the rounds, of rates of the same round."""
    fixed = [mode for mode in MODES if mode != ADAPTIVE]
    tails = {mode: [item.tail for item in found] for mode, found in figures.rollouts.items()}
    wholes = {mode: [item.whole for item in found] for mode, found in figures.rollouts.items()}
    to_off = {batch: _ratio(rates, ADAPTIVE, OFF) for batch, rates in figures.batches.items()}
    to_best = {batch: min(_ratio(rates, ADAPTIVE, mode) for mode in fixed) for batch, rates in figures.batches.items()}
    whole_to_best = min(_ratio(wholes, ADAPTIVE, mode) for mode in fixed)
    return {
        "tail_ratio": _ratio(tails, ADAPTIVE, OFF),
        "tail_to_best_ratio": min(_ratio(tails, ADAPTIVE, mode) for mode in fixed),
        "rollout_ratio": _ratio(wholes, ADAPTIVE, OFF),
        "rollout_to_best_ratio": whole_to_best,
        "worst_ratio_to_off": min(*to_off.values(), _ratio(wholes, ADAPTIVE, OFF)),
        "worst_ratio_to_best": min(*to_best.values(), whole_to_best),
        **{f"batch_{batch}_to_off_ratio": ratio for batch, ratio in to_off.items()},
        **{f"batch_{batch}_to_best_ratio": ratio for batch, ratio in to_best.items()},
        **{
            f"batch_{batch}_{mode.replace(' ', '_')}_tokens_per_s": statistics.median(rates[mode])
            for batch, rates in figures.batches.items()
            for mode in MODES
        },
    }


def _ratio(rates: Mapping[str, Sequence[float]], ours: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(rates[ours], rates[other], strict=True))


def teach(console: Console, lesson: Lesson, *, tokens: int, minutes: float) -> RevisionManifest:
    """A drafter made here, in place."""
    with console.stage(f"capture of {tokens} tokens", expected=tokens / 400):
        lesson.capture(tokens)
    with console.stage("training", expected=minutes * 60 + 20):
        lesson.train(minutes * 60)
    manifest = lesson.load_newest()
    lesson.keep_newest(KEPT)
    console.say(f"drafter: {KEPT.relative_to(results.ROOT)}")
    return manifest


def measure(
    console: Console, *, rounds: int, rollouts: int, tokens: int, minutes: float, drafter: Path | None, seed: int
) -> dict[str, float | int | None]:
    """Runs everything on this machine."""
    model, figures = engines.small_model(), Figures()
    flags = (*engines.FLAGS, "--speculative-tokens", str(LONGEST))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        with console.stage("a server", expected=60):
            server = stack.enter_context(rollout_server(model, *flags, folder=Path(folder)))
        lesson = Lesson(server, model, draft_length=LONGEST, seed=seed)
        if drafter is None:
            manifest = teach(console, lesson, tokens=tokens, minutes=minutes)
        else:
            manifest = lesson.take_over(drafter)
        bench = Bench(lesson, seed=seed)
        bench.switch(ADAPTIVE)
        with console.stage(f"{SURVEYED} new questions", expected=5.0 * SURVEYED):
            bench.survey()
        with console.stage("adaptive speculation gets to know the machine", expected=40):
            for batch in reversed(BATCHES):
                bench.rate(batch, turn=rounds)
        expected = len(MODES) * (rounds * 37.0 + rollouts * 45.0)
        with console.stage(f"{rounds} rounds of {len(MODES)} modes", expected=expected):
            for line in rounds_of(bench, rounds=rounds, rollouts=rollouts, figures=figures):
                console.say(f"  {line}")
        live, recorded = bench.accept_lengths(), lesson.recorded  # while there is a server to ask
    return {
        "rounds": rounds,
        "rollouts": rollouts,
        "captured_tokens": recorded if drafter is None else None,
        "training_s": minutes * 60 if drafter is None else None,
        "trained_tokens": manifest.trained_tokens,
        "offline_accept_length": manifest.evaluation.accept_length,
        "longest_draft": LONGEST,
        **{f"accept_length_{length}": live.get(length) for length in range(1, LONGEST + 1)},
    } | metrics(figures)


def main() -> int:
    """Measures, writes bench/results/speculation.json and the page that is made from it."""
    parser = argparse.ArgumentParser(prog="python -m bench.speculation", description=__doc__)
    parser.add_argument("--rounds", type=int, default=6, help="of every mode and batch size (default 6)")
    parser.add_argument("--rollouts", type=int, default=3, help="of every mode, at most one a round (default 3)")
    parser.add_argument("--tokens", type=int, default=100_000, help="to capture (default 100000); not with --drafter")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training (default 8); not with --drafter")
    parser.add_argument("--drafter", type=Path, metavar="FOLDER", help="of a drafter to take instead of making one")
    parser.add_argument("--dry", action="store_true", help="print the figures and write nothing")
    parser.add_argument(
        "--seed", type=int, default=1, help="of the questions, and of what a rollout is made of (default 1)"
    )
    options = parser.parse_args()
    for name in ("rounds", "rollouts", "tokens", "minutes"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name}: {getattr(options, name)} is not above 0")
    if options.rollouts > options.rounds:
        parser.error(f"--rollouts: {options.rollouts} are more than --rounds has ({options.rounds})")
    if options.drafter is not None and not (options.drafter / REVISION_MANIFEST).is_file():
        parser.error(f"--drafter: {options.drafter} holds no {REVISION_MANIFEST}; python -m bench.learning keeps one")
    found = measure(
        Console(),
        rounds=options.rounds,
        rollouts=options.rollouts,
        tokens=options.tokens,
        minutes=options.minutes,
        drafter=options.drafter,
        seed=options.seed,
    )
    tables.publish("speculation", found, dry=options.dry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
