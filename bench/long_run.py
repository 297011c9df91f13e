"""Whether adaptive speculation is ever slower than none once it knows the machine: each batch size in many short turns.

`python -m bench.speculation` compares seven modes, and so has few turns of each; a shared machine's pace differs by a
tenth from turn to turn.  Here only two modes take turns of a few seconds, in an order drawn anew each time, with the
drafter that the other benchmark has made.  Both answer the same questions at the same lengths, so a ratio is that of
their times over all rounds.  Its standard error is told with it.

What adaptive speculation tries now and then is in its times.  Steps without drafts are timed in the turns without
speculation too, so that it seldom has to try that by itself; a job that always speculates adaptively pays for this.

python -m bench.long_run [--rounds 30] [--drafter FOLDER] [--seed 1]
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench import engines, tables
from bench.demo.console import Console
from bench.estimate import ratio_of_sums
from bench.lesson import Lesson
from bench.speculation import ADAPTIVE, BATCHES, KEPT, LONGEST, OFF, SURVEYED, Bench
from tests.support.rollout_server import rollout_server
from tlt_workloads.contract import REVISION_MANIFEST

MET_BEFORE = 2  # batches of each size that adaptive speculation has answered before it is measured
SECONDS_A_ROUND = 34.0


Turns = dict[int, list[tuple[float, float]]]  # by batch size: seconds per token, off and adaptive


def rounds_of(bench: Bench, *, rounds: int, dice: random.Random, turns: Turns) -> Iterator[str]:
    """Measures, and tells of all rounds so far."""
    for turn in range(rounds):
        for batch in BATCHES:
            times: dict[str, float] = {}
            for mode in dice.sample((OFF, ADAPTIVE), 2):
                bench.switch(mode)
                times[mode] = 1.0 / bench.rate(batch, turn=turn)
            turns.setdefault(batch, []).append((times[OFF], times[ADAPTIVE]))
        if turn > 0:
            ratios = {batch: ratio_of_sums(pairs) for batch, pairs in turns.items()}
            found = ", ".join(f"{batch}: {ratio:.3f} +- {error:.3f}" for batch, (ratio, error) in ratios.items())
            yield f"{turn + 1} rounds, tokens/s adaptive to off by requests at once: {found}"


def measure(console: Console, *, rounds: int, drafter: Path, seed: int) -> dict[str, float | int | None]:
    """Runs everything on this machine."""
    turns: Turns = {}
    flags = (*engines.FLAGS, "--speculative-tokens", str(LONGEST))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        model = engines.small_model()
        with console.stage("a server", expected=60):
            server = stack.enter_context(rollout_server(model, *flags, folder=Path(folder)))
        lesson = Lesson(server, model, draft_length=LONGEST, seed=seed)
        manifest = lesson.take_over(drafter)
        bench = Bench(lesson, seed=seed)
        bench.switch(ADAPTIVE)
        with console.stage(f"{SURVEYED} new questions", expected=5.0 * SURVEYED):
            bench.survey()
        with console.stage("adaptive speculation gets to know the machine", expected=MET_BEFORE * 20.0):
            for turn in range(MET_BEFORE):
                for batch in reversed(BATCHES):
                    bench.rate(batch, turn=rounds + turn)
        with console.stage(f"{rounds} rounds of two modes", expected=rounds * SECONDS_A_ROUND):
            for line in rounds_of(bench, rounds=rounds, dice=random.Random(seed), turns=turns):
                console.say(f"  {line}")
    ratios = {batch: ratio_of_sums(pairs) for batch, pairs in turns.items()}
    return {
        "rounds": rounds,
        "offline_accept_length": manifest.evaluation.accept_length,
        "worst_ratio_to_off": min(ratio for ratio, _ in ratios.values()),
        **{f"batch_{batch}_to_off_ratio": ratio for batch, (ratio, _) in ratios.items()},
        **{f"batch_{batch}_to_off_standard_error": error for batch, (_, error) in ratios.items()},
    }


def main() -> int:
    """Measures, writes bench/results/long_run.json and the page that is made from it."""
    parser = argparse.ArgumentParser(prog="python -m bench.long_run", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="of both modes at every batch size (default 30)")
    parser.add_argument(
        "--drafter", type=Path, default=KEPT, metavar="FOLDER", help="default: that of `python -m bench.speculation`"
    )
    parser.add_argument("--dry", action="store_true", help="print the figures and write nothing")
    parser.add_argument("--seed", type=int, default=1, help="of the questions and the order (default 1)")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds: {options.rounds} is less than 2, which the error needs")
    if not (options.drafter / REVISION_MANIFEST).is_file():
        keeps = "python -m bench.speculation keeps one"
        parser.error(f"--drafter: {options.drafter} holds no {REVISION_MANIFEST}; {keeps}")
    found = measure(Console(), rounds=options.rounds, drafter=options.drafter, seed=options.seed)
    tables.publish("long_run", found, dry=options.dry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
