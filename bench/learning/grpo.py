"""Real GRPO steps on this machine: the example's learner, through the gateway, against one rollout server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import safe_open

from bench import rl_task
from devcluster.preflight import free_port
from tests.support.rollout_server import JOB, RolloutServer
from tlt_workloads.contract import POLICY_FOLDER

STEP_LOG = "learner.jsonl"  # of the example, in the job's folder
PATIENCE = 120.0  # seconds that the gateway may take to find the server


@contextmanager
def gateway(server: RolloutServer) -> Iterator[str]:
    """A gateway in front of one server; its URL."""
    port = free_port()
    variables = {
        "TLT_GATEWAY_BACKEND": server.url.removeprefix("http://"),
        "TLT_GATEWAY_PORT": str(port),
        "TLT_TOKEN_FILE": str(server.store.parent / "token"),
    }
    with (server.store.parent / "gateway.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tlt_workloads.gateway"],
            env={**os.environ, **variables},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def take_steps(server: RolloutServer, model: Path, *, steps: int, learning_rate: float) -> list[Mapping[str, Any]]:
    """So many steps of the example's GRPO run; a line of its log for each.

    Raises:
        RuntimeError: the learner failed.
    """
    with gateway(server) as url:
        variables = {
            "GRPO_MODEL": str(model),
            "GRPO_GATEWAY": url,
            "GRPO_PODS": "1",
            "GRPO_STEPS": str(steps),
            "GRPO_LEARNING_RATE": str(learning_rate),
            "TLT_STORE_URL": f"file://{server.store}",
            "TLT_JOB": JOB,
            "HF_HUB_OFFLINE": "1",
        }
        learner = subprocess.run(
            [sys.executable, rl_task.EXAMPLE],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
    if learner.returncode != 0:
        raise RuntimeError(f"the learner ended with {learner.returncode}:\n{learner.stderr[-4000:]}")
    return [json.loads(line) for line in (server.job / STEP_LOG).read_text().splitlines()]


def policy_change(server: RolloutServer, model: Path) -> float:
    """How far the newest policy file is from the model, as a share of the model's weights (root of summed squares)."""
    files = sorted((server.job / POLICY_FOLDER).glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
    moved = whole = 0.0
    with safe_open(files[-1], "pt") as newer, safe_open(model / "model.safetensors", "pt") as older:
        for name in set(newer.keys()) & set(older.keys()):
            before = older.get_tensor(name).double()
            moved += float((newer.get_tensor(name).double() - before).pow(2).sum())
            whole += float(before.pow(2).sum())
    return float((moved / whole) ** 0.5)


def _wait(url: str) -> None:
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        with suppress(OSError), urllib.request.urlopen(f"{url}/get_world_size", timeout=5) as answer:
            if json.load(answer)["world_size"] == 1:
                return
        time.sleep(0.5)
    raise RuntimeError(f"{url}: no server behind the gateway within {PATIENCE:.0f} s")
