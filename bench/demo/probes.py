"""Figures that a run does not show by itself, measured on its pods afterwards, with the operator out of the way."""

from __future__ import annotations

import statistics
from pathlib import Path

from bench.demo.cluster import Cluster
from bench.demo.console import Console, StageError
from bench.demo.deploy import without_operator
from bench.demo.follow import JOB, Run
from bench.results import percentile

SCRIPTS = Path(__file__).parent / "in_pod"
STORE_URL = "file:///tlt"
LEASE_ROUNDS = 15
CAPTURE_ROUNDS = 6
FEWEST_ROUNDS = 5  # below, a 95th percentile would mean nothing
TRAINER_PORT = 8001


def measure(*, console: Console, cluster: Cluster, run: Run) -> dict[str, float | int | None]:
    """Metrics by name; one that could not be measured is None, and the console says why."""
    found: dict[str, float | int | None] = {}
    with without_operator(cluster):
        for probe in (_reclaim_penalty, _capture_ratio):
            try:
                found |= probe(cluster, run)
            except StageError as failure:
                console.say(f"  not measured: {failure.message}")
    for name, value in found.items():
        console.say(f"  {name}: {value:.4g}" if value is not None else f"  {name}: not measured")
    return found


def _reclaim_penalty(cluster: Cluster, run: Run) -> dict[str, float | int | None]:
    pod = run.pod_names[0]
    trainers = cluster.list("pods", namespace=run.namespace, labels=f"tlt.dev/job={JOB},tlt.dev/component=trainer")
    mine = [item for item in trainers if item["metadata"]["annotations"].get("tlt.dev/rollout-pod") == pod]
    if not mine:
        raise StageError(f"{pod} has no trainer pod", advice="raise spec.training.keepWarm")
    trainer = mine[0]
    url = f"http://{trainer['status']['podIP']}:{TRAINER_PORT}"
    holder = f"{trainer['metadata']['name']}/{trainer['metadata']['uid']}"
    script = (SCRIPTS / "first_token.py").read_text()
    seconds = cluster.python_in_pod(pod, script, url, holder, str(LEASE_ROUNDS), namespace=run.namespace)
    if len(seconds["lent"]) < FEWEST_ROUNDS:
        raise StageError(f"only {len(seconds['lent'])} rounds found a trainer at work", advice="record more tokens")
    idle = statistics.median(seconds["idle"])
    return {
        "first_token_idle_p50_s": idle,
        "reclaim_first_token_penalty_p50_s": statistics.median(seconds["lent"]) - idle,
        "reclaim_first_token_penalty_p95_s": (percentile(seconds["lent"], 0.95) or 0.0) - idle,
        "reclaim_rounds": len(seconds["lent"]),
    }


def _capture_ratio(cluster: Cluster, run: Run) -> dict[str, float | int | None]:
    script = (SCRIPTS / "capture.py").read_text()
    rates = cluster.python_in_pod(
        run.pod_names[-1], script, f"{run.namespace}/{JOB}", STORE_URL, str(CAPTURE_ROUNDS), namespace=run.namespace
    )
    return {"capture_throughput_ratio": statistics.median(rates["on"]) / statistics.median(rates["off"])}
