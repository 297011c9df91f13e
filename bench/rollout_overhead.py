"""What the plugin costs a rollout that it does not speed up: capture on and nothing drafted, against stock vLLM.

Four servers with the same flags run on this machine: stock vLLM, the plugin with capture, the plugin without a
drafter (nothing to capture then, which tells the plugin's cost from the capture's), and stock vLLM once more.  They
answer the same greedy batches turn about, so that only one of them works at a time and a drift of the machine falls on
all.  `throughput_ratio` is the median over the rounds of the plugin's rate against stock's in the same round, with the
interval in which that median lies with 95 % confidence.  Two servers of one kind are not equally fast either, because
each has its own place in memory: `stock_again_ratio` tells by how much, and what is no larger than that is no cost of
the plugin's that this benchmark can see.  On a machine that is shared with others all of this is wide;
`quiet_step_ratio` is what they disturb least: the time of a decode step that nine of ten steps exceed, stock's against
the plugin's.  `capture_ms_per_step` is what the engine's thread spent on the capture per step, as the engine counts it.

python -m bench.rollout_overhead [--rounds 20] [--requests 8] [--tokens 256]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench import engines, results, tables
from bench.demo.console import Console
from tests.support.rollout_server import PLUGGED, STOCK, RolloutServer, rollout_server
from tlt_workloads.rollout.serve import element_type_for

CAPTURE, BARE, AGAIN = "capture", "without drafter", "stock again"
SIDES = (STOCK, CAPTURE, BARE, AGAIN)
ROUND_SECONDS = 60.0
QUIET = 0.1  # share of all steps that are faster
# Otherwise the first server takes half of the machine's memory for its cache, and the others find none.
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}


def is_stock(side: str) -> bool:
    """Whether this server is vLLM without the plugin."""
    return side in (STOCK, AGAIN)


def flags(side: str) -> tuple[str, ...]:
    """Of one server.  `tlt-rollout` chooses these for a learner's sake; stock vLLM gets them too."""
    kind = element_type_for(frozenset(results.machine()["isa"]))
    chosen = ("--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1", "--dtype", kind)
    return (*engines.FLAGS, *chosen, *(("--no-speculation",) if side == BARE else ()))


@contextlib.contextmanager
def servers(console: Console, folder: Path) -> Iterator[dict[str, RolloutServer]]:
    """All of them, started one after the other."""
    model = engines.small_model()
    with contextlib.ExitStack() as stack:
        found: dict[str, RolloutServer] = {}
        for side in SIDES:
            place = folder / side.replace(" ", "-")
            place.mkdir()
            with console.stage(f"a server: {side}", expected=60):
                found[side] = stack.enter_context(
                    rollout_server(
                        model,
                        *flags(side),
                        folder=place,
                        environment={**ENVIRONMENT, **({"VLLM_PLUGINS": ""} if is_stock(side) else {})},
                        module=STOCK if is_stock(side) else PLUGGED,
                    )
                )
        engines.configure(found[CAPTURE], capture={}, draft_length=0)
        yield found


def measure(console: Console, *, rounds: int, requests: int, tokens: int) -> dict[str, float | int | None]:
    """The figures."""
    batches: dict[str, list[engines.Batch]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="tlt-overhead-") as folder, servers(console, Path(folder)) as found:
        for side, server in found.items():
            engines.timed_batch(server, requests=requests, tokens=8)  # warms up
            assert (server.call("GET", "/tlt/v1/state")[0] == 404) == is_stock(side), "stock has no plugin"
        before = found[CAPTURE].state()["capture"]
        with console.stage(f"{rounds} rounds", expected=ROUND_SECONDS * rounds):
            for number in range(rounds):
                turn = list(batches) if number % 2 == 0 else list(reversed(batches))
                for side in turn:
                    first = 1000 * (number + 1)
                    batches[side].append(
                        engines.timed_batch(found[side], requests=requests, tokens=tokens, first=first)
                    )
        after = found[CAPTURE].state()["capture"]
    steps = after["steps"] - before["steps"]
    rates = [batch.rate for batch in batches[STOCK]]
    quiet = {side: results.percentile(_steps(found), QUIET) or 0.0 for side, found in batches.items()}
    low, high = results.median_interval(_ratios(batches, CAPTURE))
    return {
        "rounds": rounds,
        "requests": requests,
        "throughput_ratio": statistics.median(_ratios(batches, CAPTURE)),
        "throughput_ratio_low": low,
        "throughput_ratio_high": high,
        "throughput_without_drafter_ratio": statistics.median(_ratios(batches, BARE)),
        "stock_again_ratio": statistics.median(_ratios(batches, AGAIN)),
        "quiet_step_ratio": quiet[STOCK] / quiet[CAPTURE],
        "quiet_step_without_drafter_ratio": quiet[STOCK] / quiet[BARE],
        "quiet_step_stock_again_ratio": quiet[STOCK] / quiet[AGAIN],
        "stock_quiet_step_ms": quiet[STOCK] * 1e3,
        "stock_tokens_per_s": statistics.median(rates),
        "stock_spread_ratio": max(rates) / min(rates),
        "capture_ms_per_step": (after["seconds"] - before["seconds"]) / steps * 1e3,
        "captured_tokens": after["tokens"] - before["tokens"],
        "dropped_tokens": after["droppedTokens"] - before["droppedTokens"],
    }


def _ratios(batches: Mapping[str, Sequence[engines.Batch]], side: str) -> list[float]:
    """Of rates, against stock's in the same round."""
    return [ours.rate / stock.rate for ours, stock in zip(batches[side], batches[STOCK], strict=True)]


def _steps(batches: Sequence[engines.Batch]) -> list[float]:
    return [seconds for batch in batches for seconds in batch.steps]


def main() -> int:
    """Measures, writes bench/results/rollout_overhead.json and the page that is made from it."""
    parser = argparse.ArgumentParser(prog="python -m bench.rollout_overhead", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="batches of each server (default 20)")
    parser.add_argument("--requests", type=int, default=8, help="that run together (default 8)")
    parser.add_argument("--tokens", type=int, default=256, help="of each answer (default 256)")
    parser.add_argument("--dry", action="store_true", help="print the figures and write nothing")
    options = parser.parse_args()
    if min(options.rounds, options.requests, options.tokens) < 1:
        parser.error("--rounds, --requests, --tokens: must be at least 1")
    found = measure(Console(), rounds=options.rounds, requests=options.requests, tokens=options.tokens)
    tables.publish("rollout_overhead", found, dry=options.dry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
