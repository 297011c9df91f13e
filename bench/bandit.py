"""What the choices of adaptive speculation are worth by themselves, on the step times that a real engine has had.

Takes the figures of `python -m bench.speculation`: from the rates of every fixed draft length, and from how many of its
tokens were accepted, follows how long a step of so many requests takes.  The engine's own bandit then chooses for an
engine that has just these times, with some noise, and whose pace drifts.  A run of that benchmark shows it a batch size
for a minute and takes an hour, in which a shared machine becomes faster and slower; here hundreds of servers live
through the same in a few minutes, so that a change of the bandit can be told from chance.  What an engine loses by
changing its draft length is not in it, neither is what a step takes that also computes prompts, and nobody drafts by
n-grams.

Servers are new, as those of a job that has just begun: each answers `--rounds` batches of every size, then rollouts
with a long tail, and at last one batch size for long.  A rate is compared with that of the same engine which always
drafts as much, or not at all.

python -m bench.bandit [--servers 200] [--rounds 6] [--rollouts 3] [--seed 1]
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import mean

from bench import results, tables
from bench.demo.console import Console
from tlt_workloads.contract import DraftSource
from tlt_workloads.rollout.bandit import BanditSettings, DraftBandit
from tlt_workloads.rollout.plans import OFF, DraftPlan

BATCHES = (1, 2, 4, 8, 16)
ANSWER_TOKENS = 64
TAIL, TAIL_TOKENS, OTHER_TOKENS = 2, (90, 130), (10, 60)  # of a rollout of 16 requests
LONG_TOKENS = 4000
NOISE = 0.08  # of a step's time, relative
DRIFT = 0.08  # of the machine's pace from batch to batch
ANSWERS = 0.3  # by which the odds of answers to have a drafted token accepted differ, relative


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Step times (s) by batch size and draft length, and how likely each drafted token is accepted after the last."""

    times: Mapping[int, Sequence[float]]
    chances: Sequence[float]

    @property
    def longest(self) -> int:
        """Drafted tokens."""
        return len(self.chances)

    def seconds(self, batch: int, length: int) -> float:
        """Between two batch sizes that were measured as on a line."""
        for smaller, larger in pairwise(sorted(self.times)):
            if smaller <= batch <= larger:
                before, after = self.times[smaller][length], self.times[larger][length]
                return before + (batch - smaller) / (larger - smaller) * (after - before)
        raise ValueError(f"{batch} requests: step times are known for {min(self.times)} to {max(self.times)}")

    def rate(self, batch: int, length: int) -> float:
        """Tokens per second of usual answers."""
        return batch * tokens_of_drafts(self.chances)[length] / self.seconds(batch, length)


def tokens_of_drafts(chances: Sequence[float]) -> list[float]:
    """Tokens that a step yields on average, by draft length from 0 on."""
    found, reached = [1.0], 1.0
    for chance in chances:
        reached *= chance
        found.append(found[-1] + reached)
    return found


def measured_engine(metrics: Mapping[str, float]) -> Engine:
    """The engine of a result of `bench.speculation`."""
    lengths = range(1, int(metrics["longest_draft"]) + 1)
    tokens = [1.0, *(metrics[f"accept_length_{length}"] for length in lengths)]
    gains = [later - earlier for earlier, later in pairwise(tokens)]
    chances = [gain / before for before, gain in pairwise([1.0, *gains])]
    modes = ("off", *(f"static_{length}" for length in lengths))
    times = {
        batch: [
            batch * count / metrics[f"batch_{batch}_{mode}_tokens_per_s"]
            for mode, count in zip(modes, tokens, strict=True)
        ]
        for batch in BATCHES
    }
    return Engine(times=times, chances=chances)


@dataclass
class Spent:
    """What was generated, and the seconds that each way of drafting has taken or would have taken for as much."""

    tokens: int = 0
    seconds: float = 0.0
    fixed: list[float] = field(default_factory=list)  # seconds by draft length

    def note(self, *, tokens: int, seconds: float, rates: Sequence[float]) -> None:
        """A step, and the tokens per second that each draft length would have had in its place."""
        self.tokens += tokens
        self.seconds += seconds
        before = self.fixed or [0.0] * len(rates)
        self.fixed = [spent + tokens / rate for spent, rate in zip(before, rates, strict=True)]

    @property
    def to_off(self) -> float:
        """Our rate over that of not drafting."""
        return self.fixed[0] / self.seconds

    @property
    def to_best(self) -> float:
        """Our rate over that of the best fixed draft length."""
        return min(self.fixed) / self.seconds


@dataclass
class Answer:
    """What is left of one, in tokens, and how likely its drafted tokens are accepted."""

    name: str
    left: int
    chances: Sequence[float]

    def __post_init__(self) -> None:
        self.yields = tokens_of_drafts(self.chances)


class Server:
    """One engine with a bandit that knows nothing yet."""

    def __init__(self, engine: Engine, *, seed: int) -> None:
        self._engine = engine
        self._dice = random.Random(seed)
        self._bandit = DraftBandit(BanditSettings(longest=engine.longest), dice=random.Random(seed + 1))
        self._bandit.offer(frozenset({DraftSource.LEARNED}), longest=engine.longest)
        self._pace = 1.0
        self._made = OFF
        self._asked = 0

    def answer(self, lengths: Sequence[int], *spent: Spent, tail: Spent | None = None) -> None:
        """Requests that begin together and end after so many tokens each; `tail` counts while few are left."""
        self._pace *= self._dice.lognormvariate(0.0, DRIFT)
        answers = [self._begun(tokens) for tokens in lengths]
        while answers:
            counters = [*spent, *([tail] if tail is not None and len(answers) <= TAIL else [])]
            rates = [
                sum(item.yields[length] for item in answers) / (self._pace * self._engine.seconds(len(answers), length))
                for length in range(1 + self._engine.longest)
            ]
            tokens, seconds = self._step(answers)
            for counter in counters:
                counter.note(tokens=tokens, seconds=seconds, rates=rates)
            answers = [item for item in answers if item.left > 0]

    def _begun(self, tokens: int) -> Answer:
        self._asked += 1
        factor = self._dice.lognormvariate(0.0, ANSWERS)
        odds = [factor * chance / (1 - chance) for chance in self._engine.chances]
        return Answer(name=str(self._asked), left=tokens, chances=[item / (1 + item) for item in odds])

    def _step(self, answers: Sequence[Answer]) -> tuple[int, float]:
        """Tokens of all requests, those beyond an end included, and how long the step took."""
        batch = len(answers)
        verified, self._made = self._made, self._bandit.choose(batch)
        accepted = {item.name: self._accepted(item, verified) for item in answers}
        noise = self._dice.lognormvariate(-(NOISE**2) / 2, NOISE)
        seconds = self._engine.seconds(batch, int(verified)) * self._pace * noise
        self._bandit.note_running(accepted.keys())
        if verified:
            self._bandit.note_drafts(batch, verified, accepted.items())
        if verified == self._made:
            self._bandit.note_step(batch, verified, seconds)
        for item in answers:
            item.left -= 1 + accepted[item.name]
        return batch + sum(accepted.values()), seconds

    def _accepted(self, item: Answer, plan: DraftPlan) -> int:
        for position, chance in enumerate(item.chances[: int(plan)]):
            if self._dice.random() >= chance:
                return position
        return int(plan)

    def rollout(self) -> list[int]:
        """Lengths of answers, two of which are far longer than all others."""
        return [
            *(self._dice.randint(*TAIL_TOKENS) for _ in range(TAIL)),
            *(self._dice.randint(*OTHER_TOKENS) for _ in range(max(BATCHES) - TAIL)),
        ]


@dataclass(frozen=True, kw_only=True)
class Life:
    """What one server has gone through."""

    turns: Mapping[int, Spent]  # by batch size
    rollout: Spent
    tail: Spent
    long: Mapping[int, Spent]  # by batch size


def life(engine: Engine, *, rounds: int, rollouts: int, seed: int) -> Life:
    """The turns of `bench.speculation`, and beyond them one batch size for long, each by a server of its own."""
    server = Server(engine, seed=seed)
    for batch in reversed(BATCHES):
        server.answer([ANSWER_TOKENS] * batch)
    turns, rollout, tail = {batch: Spent() for batch in BATCHES}, Spent(), Spent()
    for turn in range(rounds):
        for batch, spent in turns.items():
            server.answer([ANSWER_TOKENS] * batch, spent)
        if turn < rollouts:
            server.answer(server.rollout(), rollout, tail=tail)
    long = {batch: Spent() for batch in BATCHES}
    for batch, spent in long.items():
        alone = Server(engine, seed=seed + batch)
        for _ in range(LONG_TOKENS // ANSWER_TOKENS):
            alone.answer([ANSWER_TOKENS] * batch, spent)
    return Life(turns=turns, rollout=rollout, tail=tail, long=long)


def metrics(engine: Engine, lives: Sequence[Life]) -> dict[str, float | int | None]:
    """Means over servers."""
    return {
        "servers": len(lives),
        "tail_ratio": mean(item.tail.to_off for item in lives),
        "tail_to_best_ratio": mean(item.tail.to_best for item in lives),
        "rollout_ratio": mean(item.rollout.to_off for item in lives),
        "rollout_to_best_ratio": mean(item.rollout.to_best for item in lives),
        **{
            f"batch_{batch}_best_fixed_ratio": max(
                engine.rate(batch, length) / engine.rate(batch, 0) for length in range(1 + engine.longest)
            )
            for batch in BATCHES
        },
        **{f"batch_{batch}_to_off_ratio": mean(item.turns[batch].to_off for item in lives) for batch in BATCHES},
        **{f"batch_{batch}_to_best_ratio": mean(item.turns[batch].to_best for item in lives) for batch in BATCHES},
        **{f"batch_{batch}_long_to_off_ratio": mean(item.long[batch].to_off for item in lives) for batch in BATCHES},
        **{f"batch_{batch}_long_to_best_ratio": mean(item.long[batch].to_best for item in lives) for batch in BATCHES},
    }


def main() -> int:
    """Simulates, writes bench/results/bandit.json and the page that is made from it."""
    parser = argparse.ArgumentParser(prog="python -m bench.bandit", description=__doc__)
    parser.add_argument("--servers", type=int, default=200, help="that live through the same (default 200)")
    parser.add_argument("--rounds", type=int, default=6, help="of every batch size (default 6)")
    parser.add_argument("--rollouts", type=int, default=3, help="at most one a round (default 3)")
    parser.add_argument("--seed", type=int, default=1, help="of all chance (default 1)")
    parser.add_argument("--dry", action="store_true", help="print the figures and write nothing")
    options = parser.parse_args()
    for name in ("servers", "rounds", "rollouts"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name}: {getattr(options, name)} is not above 0")
    measured: Mapping[str, float] = results.read("speculation").get("metrics", {})
    if "accept_length_1" not in measured:
        parser.error("bench/results/speculation.json is missing or old; python -m bench.speculation writes it")
    engine, console = measured_engine(measured), Console()
    with console.stage(f"{options.servers} servers", expected=1.3 * options.servers):
        lives = [
            life(engine, rounds=options.rounds, rollouts=options.rollouts, seed=options.seed + 100 * number)
            for number in range(options.servers)
        ]
    tables.publish("bandit", metrics(engine, lives), dry=options.dry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
