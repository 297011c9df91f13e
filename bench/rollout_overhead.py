"""What the plugin costs a rollout that it does not speed up: capture on and nothing drafted, against stock vLLM.

Three servers with the same flags run on this machine: stock vLLM, the plugin with capture, and the plugin without a
drafter (nothing to capture then, which tells the plugin's cost from the capture's).  They answer the same greedy
batches turn about, so that only one of them works at a time and a drift of the machine falls on all.
`throughput_ratio` is the median over the rounds of the plugin's rate against stock's in the same round;
`capture_ms_per_step` is what the engine's thread spent on the capture per step, as the engine counts it.

python -m bench.rollout_overhead [--rounds 12] [--requests 8] [--tokens 128]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench import engines, results, tables
from bench.demo.console import Console
from tests.support.rollout_server import PLUGGED, STOCK, RolloutServer, rollout_server
from tlt_workloads.rollout.serve import element_type_for

CAPTURE, BARE = "capture", "without drafter"
ROUND_SECONDS = 50.0
# Otherwise the first server takes half of the machine's memory for its cache, and the others find none.
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}


def flags(side: str) -> tuple[str, ...]:
    """Of one server.  `tlt-rollout` chooses these for a learner's sake; stock vLLM gets them too."""
    kind = element_type_for(frozenset(results.machine()["isa"]))
    chosen = ("--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1", "--dtype", kind)
    return (*engines.FLAGS, *chosen, *(("--no-speculation",) if side == BARE else ()))


@contextlib.contextmanager
def servers(console: Console, folder: Path) -> Iterator[dict[str, RolloutServer]]:
    """All three, started one after the other."""
    model = engines.small_model()
    with contextlib.ExitStack() as stack:
        found: dict[str, RolloutServer] = {}
        for side in (STOCK, CAPTURE, BARE):
            place = folder / side.replace(" ", "-")
            place.mkdir()
            with console.stage(f"a server: {side}", expected=60):
                found[side] = stack.enter_context(
                    rollout_server(
                        model,
                        *flags(side),
                        folder=place,
                        environment={**ENVIRONMENT, **({"VLLM_PLUGINS": ""} if side == STOCK else {})},
                        module=STOCK if side == STOCK else PLUGGED,
                    )
                )
        engines.configure(found[CAPTURE], capture={}, draft_length=0)
        yield found


def measure(console: Console, *, rounds: int, requests: int, tokens: int) -> dict[str, float | int | None]:
    """The figures."""
    rates: dict[str, list[float]] = {side: [] for side in (STOCK, CAPTURE, BARE)}
    with tempfile.TemporaryDirectory(prefix="tlt-overhead-") as folder, servers(console, Path(folder)) as found:
        for side, server in found.items():
            engines.rate(server, requests=requests, tokens=8)  # warms up
            assert (server.call("GET", "/tlt/v1/state")[0] == 404) == (side == STOCK), "stock has no plugin"
        before = found[CAPTURE].state()["capture"]
        with console.stage(f"{rounds} rounds", expected=ROUND_SECONDS * rounds):
            for number in range(rounds):
                turn = list(rates) if number % 2 == 0 else list(reversed(rates))
                for side in turn:
                    first = 1000 * (number + 1)
                    rates[side].append(engines.rate(found[side], requests=requests, tokens=tokens, first=first))
        after = found[CAPTURE].state()["capture"]
    steps = after["steps"] - before["steps"]
    return {
        "rounds": rounds,
        "requests": requests,
        "throughput_ratio": _median_ratio(rates[CAPTURE], rates[STOCK]),
        "throughput_without_drafter_ratio": _median_ratio(rates[BARE], rates[STOCK]),
        "stock_tokens_per_s": statistics.median(rates[STOCK]),
        "stock_spread_ratio": max(rates[STOCK]) / min(rates[STOCK]),
        "capture_ms_per_step": (after["seconds"] - before["seconds"]) / steps * 1e3,
        "captured_tokens": after["tokens"] - before["tokens"],
        "dropped_tokens": after["droppedTokens"] - before["droppedTokens"],
    }


def _median_ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))


def main() -> int:
    """Measures, writes bench/results/rollout_overhead.json and the page that is made from it."""
    parser = argparse.ArgumentParser(prog="python -m bench.rollout_overhead", description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="batches of each server (default 12)")
    parser.add_argument("--requests", type=int, default=8, help="that run together (default 8)")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer (default 128)")
    parser.add_argument("--dry", action="store_true", help="print the figures and write nothing")
    options = parser.parse_args()
    if min(options.rounds, options.requests, options.tokens) < 1:
        parser.error("--rounds, --requests, --tokens: must be at least 1")
    found = measure(Console(), rounds=options.rounds, requests=options.requests, tokens=options.tokens)
    tables.publish("rollout_overhead", found, dry=options.dry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
