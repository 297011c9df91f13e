"""Runs inside a rollout pod: how much later the first token comes when a trainer has the device.

Usage: python - TRAINER_URL HOLDER ROUNDS

It plays the operator's part and grants the lease itself, so that every round finds the trainer at work.  Each round
asks once the idle pod and once the lent one, with a prompt that no cache knows.  Prints {"idle": [s], "lent": [s]}.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tlt_workloads.contract import (
    LEASE_ROUTE,
    STATE_ROUTE,
    TOKEN_FILE_DEFAULT,
    TRAINER_ROUTE,
    LeaseRequest,
    encode,
)

SERVER = "http://127.0.0.1:8000"
TOKEN = Path(TOKEN_FILE_DEFAULT).read_text().strip()
WAIT_SECONDS = 30.0
INTO_TRAINING = 0.7  # seconds after the worker took the device: it is in its steps by then


def call(url: str, *, body: Any = None, method: str | None = None) -> Any:
    """JSON of an answer; None when it is refused."""
    request = urllib.request.Request(
        url,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as refusal:
        print(f"{url}: {refusal.code} {refusal.read()[:200]!r}", file=sys.stderr)
        return None


def wait_for(condition: Any) -> bool:
    """Asks until the condition holds; False after WAIT_SECONDS."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def at_rest() -> bool:
    """Nothing runs and nothing is lent."""
    state = call(SERVER + STATE_ROUTE)
    return bool(state and state["idle"] and state["lease"] is None)


def first_token_seconds(number: int) -> float:
    """Time from a request to its only token."""
    prompt = f"Number {number}: a baker has {number + 11} rolls and sells {number % 9 + 2} of them. How many are left?"
    began = time.monotonic()
    answer = call(f"{SERVER}/v1/completions", body={"model": "policy", "prompt": prompt, "max_tokens": 1})
    assert answer["usage"]["completion_tokens"] == 1
    return time.monotonic() - began


def main() -> None:
    """Measures."""
    trainer, holder, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    seconds: dict[str, list[float]] = {"idle": [], "lent": []}
    lease = encode(LeaseRequest(holder=holder, ttl=10.0))
    number = int(time.time()) % 100_000
    first_token_seconds(number)  # warms up
    for _ in range(rounds):
        number += 1
        if not wait_for(at_rest):
            break
        seconds["idle"].append(first_token_seconds(number))
        number += 1
        if not wait_for(at_rest) or call(SERVER + LEASE_ROUTE, body=lease) is None:
            break
        if not wait_for(lambda: (call(trainer + TRAINER_ROUTE) or {}).get("phase") == "Training"):
            break
        time.sleep(INTO_TRAINING)
        if (call(trainer + TRAINER_ROUTE) or {}).get("phase") != "Training":
            continue  # it ran out of data meanwhile
        seconds["lent"].append(first_token_seconds(number))
    print(json.dumps(seconds))


main()
