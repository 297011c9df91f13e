"""Runs inside a rollout pod: generation throughput with and without capture, turn about, in the same engine.

Usage: python - JOB STORE_URL ROUNDS

Prints {"on": [tokens/s], "off": [tokens/s]}, one figure for each round.
"""

from __future__ import annotations

import concurrent.futures
import json
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from tlt_workloads.contract import (
    CONFIG_ROUTE,
    STATE_ROUTE,
    TOKEN_FILE_DEFAULT,
    CaptureSettings,
    RolloutConfig,
    SpeculationMode,
    SpeculationSettings,
    encode,
)

SERVER = "http://127.0.0.1:8000"
TOKEN = Path(TOKEN_FILE_DEFAULT).read_text().strip()
REQUESTS = 8
TOKENS = 64


def call(path: str, body: Any = None) -> Any:
    """JSON of an answer."""
    request = urllib.request.Request(
        SERVER + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.loads(answer.read() or b"null")


def configure(job: str, store_url: str, *, enabled: bool) -> None:
    """The job's configuration, capture apart."""
    state = call(STATE_ROUTE)
    speculation = SpeculationSettings(
        mode=SpeculationMode(state["speculation"]), draft_length=max(1, state["draftLength"])
    )
    capture = CaptureSettings(enabled=enabled, max_tokens_per_step=1 << 30)
    call(CONFIG_ROUTE, encode(RolloutConfig(job=job, store_url=store_url, capture=capture, speculation=speculation)))


def throughput(first: int) -> float:
    """Tokens per second of one batch; greedy, so that both sides do the same work."""

    def one(index: int) -> int:
        prompt = f"Case {first + index}: write about a town with {index + 20} houses, street by street."
        body = {"model": "policy", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
        return int(call("/v1/completions", body)["usage"]["completion_tokens"])

    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(REQUESTS) as pool:
        tokens = sum(pool.map(one, range(REQUESTS)))
    return tokens / (time.monotonic() - began)


def main() -> None:
    """Measures on, off, off, on, ...: a drift of the machine then falls on both alike."""
    job, store_url, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    rates: dict[str, list[float]] = {"on": [], "off": []}
    throughput(0)  # warms up
    for number in range(rounds):
        for side in ("on", "off") if number % 2 == 0 else ("off", "on"):
            configure(job, store_url, enabled=side == "on")
            rates[side].append(throughput(1000))
    configure(job, store_url, enabled=True)
    print(json.dumps(rates))


main()
