"""What running requests feel of a new drafter: swapped in place, against two other ways, in one run on this machine.

- `swap`: this project's way, `POST /tlt/v1/drafter` while requests run.
- `abort_and_clear`: all requests are aborted, the prefix cache is dropped, the drafter loaded, generation resumed; the
  clients send what was aborted again.  That is how verl-SpeCo publishes a drafter.
- `restart`: the server is stopped, which cuts off whatever runs, and started with the new drafter; this lasts until its
  first token.

A stall is the longest time between two tokens of one request around the moment of the change, as its client sees it
in the stream; for a request that was aborted it lasts until the repeated request has as many tokens as were lost.
`quiet_gap_*` is the same in windows in which nothing happens, and `added_stall_*` what is left of a stall without the
median of these: a gap lasts as long as its decode step, whatever is loaded.  All servers share this machine's cores.

python -m bench.swap [--swaps 40] [--model FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save

from bench import results, tables
from bench.demo.console import Console
from tests.support.rollout_server import RolloutServer, rollout_server
from tests.support.tiny_model import perturbed

MODEL = Path.home() / ".cache" / "tlt-operator" / "models" / "smollm2-135m-instruct"
REQUESTS = 4  # that run all the time
TOKENS = 400  # of each
SETTLE = 1.0  # seconds of a window after the change
PAUSE = 0.5  # seconds between two windows
RESTARTS = 2
ABORTS_SHARE = 4  # abort-and-clear is measured once for so many swaps
FLAGS = ("--max-model-len", "1024", "--max-num-seqs", "8")
PROMPT = "Case {number}: describe a town with {number} houses, street by street."


@dataclass
class Client:
    """One client with a request in flight all the time; what was aborted is sent again."""

    server: RolloutServer
    number: int
    arrivals: list[tuple[float, int]] = field(default_factory=list)  # moment, tokens of this answer so far
    aborted: int = 0
    lost_tokens: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Until it is over."""
        turn = 0
        while not self.over.is_set():
            turn += 1
            if not self._answer(f"{self.number}{turn:03d}"):
                self.aborted += 1
                self.lost_tokens += self.arrivals[-1][1] if self.arrivals else 0
                turn -= 1
                time.sleep(0.01)

    def _answer(self, number: str) -> bool:
        """One request; False when it did not get all its tokens."""
        body = {"model": "policy", "prompt": PROMPT.format(number=number), "max_tokens": TOKENS, "stream": True}
        request = urllib.request.Request(
            f"{self.server.url}/v1/completions",
            data=json.dumps({**body, "ignore_eos": True, "temperature": 0, "return_token_ids": True}).encode(),
            headers={"content-type": "application/json"},
        )
        count = 0
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=120) as answer:
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                count += len(json.loads(line[6:])["choices"][0].get("token_ids") or ())
                self.arrivals.append((time.monotonic(), count))
                if self.over.is_set():
                    return True
        return count == TOKENS

    def stall(self, begin: float, end: float) -> float | None:
        """The longest time without progress that touches a window; None when the window saw no token."""
        arrivals = list(self.arrivals)
        before = [item for item in arrivals if item[0] < begin]
        after = [item for item in arrivals if item[0] >= begin]
        if not before or not after:
            return None
        moments, held = [before[-1][0]], before[-1][1]
        for moment, count in after:
            begins_anew = count < held and held < TOKENS
            if begins_anew:
                continue  # an aborted request that is not yet where it was
            held = count
            moments.append(moment)
            if moment > end:
                break
        gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
        return max(gaps, default=None)


@contextlib.contextmanager
def load(server: RolloutServer) -> Iterator[list[Client]]:
    """Requests that run all the time."""
    clients = [Client(server, number) for number in range(10, 10 + REQUESTS)]
    threads = [threading.Thread(target=client.run, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    while not all(client.arrivals for client in clients):
        time.sleep(0.05)
    time.sleep(2.0)
    try:
        yield clients
    finally:
        for client in clients:
            client.over.set()
        for thread in threads:
            thread.join(30)


def stalls(clients: list[Client], change: Callable[[], None], *, settle: float = SETTLE) -> list[float]:
    """Makes a change and says how long each request stood still around it."""
    begin = time.monotonic()
    change()
    end = time.monotonic()
    time.sleep(settle)
    found = [client.stall(begin, end + settle / 2) for client in clients]
    time.sleep(PAUSE)
    return [stall for stall in found if stall is not None]


def post(server: RolloutServer, path: str, body: object = None) -> object:
    """A call that must succeed."""
    status, answer = server.call("POST", path, body)
    if status != 200:
        raise RuntimeError(f"{path}: {status} {answer}")
    return answer


def revisions(server: RolloutServer) -> list[dict[str, object]]:
    """Two drafters to swap to and fro, a little beside the first one."""
    weights = load_file(server.drafter / "model.safetensors")
    return [server.revision(f"bench-{seed}", save(perturbed(weights, seed=seed, amount=0.001))) for seed in (1, 2)]


def recover(clients: list[Client]) -> float:
    """Seconds to wait until aborted requests are where they were."""
    lost = max((client.arrivals[-1][1] for client in clients if client.arrivals), default=0)
    rate = max(1.0, _rate(clients))
    return SETTLE + 1.5 * lost / rate


def _rate(clients: list[Client]) -> float:
    """Tokens per second of one request, lately."""
    arrivals = clients[0].arrivals[-50:]
    return 49 / (arrivals[-1][0] - arrivals[0][0]) if len(arrivals) == 50 else 10.0


def measure(console: Console, *, model: Path, swaps: int) -> dict[str, float | int | None]:
    """All three ways; the figures."""
    swapped: list[float] = []
    quiet: list[float] = []
    aborted: list[float] = []
    engine: list[float] = []
    with tempfile.TemporaryDirectory(prefix="tlt-swap-") as folder:
        first = Path(folder) / "first"
        first.mkdir()
        with contextlib.ExitStack() as stack:
            with console.stage("the server starts", expected=60):
                server = stack.enter_context(rollout_server(model, *FLAGS, folder=first))
            bodies = revisions(server)
            with load(server) as clients:
                before = server.state()

                def swap(number: int) -> None:
                    answer = post(server, "/tlt/v1/drafter", bodies[number % 2])
                    assert isinstance(answer, dict)
                    engine.append(float(answer["stall"]))

                with console.stage(f"{swaps} swaps while {REQUESTS} requests run", expected=3.5 * swaps):
                    for number in range(swaps):
                        quiet += stalls(clients, functools.partial(time.sleep, 0.2))
                        swapped += stalls(clients, functools.partial(swap, number))
                after = server.state()
                swap_aborted = sum(client.aborted for client in clients)
                lost_before = sum(client.lost_tokens for client in clients)

                def abort_and_clear(number: int) -> None:
                    post(server, "/pause?mode=abort")
                    post(server, "/reset_prefix_cache")
                    post(server, "/tlt/v1/drafter", bodies[number % 2])
                    post(server, "/resume")

                aborts = max(1, swaps // ABORTS_SHARE)
                with console.stage(f"{aborts} times abort and clear", expected=20 * aborts):
                    for number in range(aborts):
                        aborted += stalls(clients, functools.partial(abort_and_clear, number), settle=recover(clients))
                abort_aborted = sum(client.aborted for client in clients) - swap_aborted
                lost = sum(client.lost_tokens for client in clients) - lost_before
        restarts = restart_seconds(console, model=model, folder=Path(folder), drafter=first)
    restart = results.percentile(restarts, 0.5)
    stall = results.percentile(swapped, 0.95)
    clear = results.percentile(aborted, 0.95)
    usual = results.percentile(quiet, 0.5) or 0.0
    added = [max(0.0, gap - usual) for gap in swapped]
    return {
        "swaps": swaps,
        "running_requests": REQUESTS,
        "stall_p50_s": results.percentile(swapped, 0.5),
        "stall_p95_s": stall,
        "added_stall_p50_s": results.percentile(added, 0.5),
        "added_stall_p95_s": results.percentile(added, 0.95),
        "engine_stall_p95_s": results.percentile(engine, 0.95),
        "quiet_gap_p50_s": results.percentile(quiet, 0.5),
        "quiet_gap_p95_s": results.percentile(quiet, 0.95),
        "aborted_requests": swap_aborted + after["abortedRequests"] - before["abortedRequests"],
        "abort_and_clear_stall_p50_s": results.percentile(aborted, 0.5),
        "abort_and_clear_stall_p95_s": clear,
        "abort_and_clear_aborted_requests": abort_aborted,
        "abort_and_clear_lost_tokens": lost,
        "restart_s": restart,
        "abort_and_clear_ratio": clear / stall if clear and stall else None,
        "restart_ratio": restart / stall if restart and stall else None,
    }


def restart_seconds(console: Console, *, model: Path, folder: Path, drafter: Path) -> list[float]:
    """From the moment at which a server is told to stop to the first token of its successor."""
    found, began = [], 0.0
    weights = str(drafter / "scratch" / "drafter")
    for number in range(RESTARTS + 1):
        home = folder / f"restart-{number}"
        home.mkdir()
        with (
            console.stage(f"restart {number} of {RESTARTS}" if number else "a server to restart", expected=60),
            rollout_server(model, *FLAGS, "--drafter-folder", weights, folder=home) as server,
        ):
            post(server, "/v1/completions", {"model": "policy", "prompt": "One", "max_tokens": 1})
            if began:
                found.append(time.monotonic() - began)
            began = time.monotonic()
    return found


def main() -> int:
    """Measures, writes bench/results/swap.json and the page that is made from it."""
    parser = argparse.ArgumentParser(prog="python -m bench.swap", description=__doc__)
    parser.add_argument("--swaps", type=int, default=40, help="drafters to load (default 40)")
    parser.add_argument("--model", type=Path, default=MODEL, help=f"folder of the policy (default {MODEL})")
    options = parser.parse_args()
    if options.swaps < 1:
        parser.error(f"--swaps: {options.swaps} is less than 1")
    if not (options.model / "config.json").is_file():
        parser.error(f"--model: no model in {options.model}; make one by python images/workloads/convert_model.py")
    found = measure(Console(), model=options.model, swaps=options.swaps)
    tables.publish("swap", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
