"""What one pass over a job costs by the number of its pods, without network: how far one process reaches.

The pods answer nothing here; their states are put into the observer as the polls would do it, and a share of them
changes before each pass, as in a steady state of one idle edge per pod every 10 s and 20 passes a second.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

from bench.operator_scale.fleet import Pod as FleetPod
from bench.operator_scale.fleet import name_of
from tlt_operator.api.job import Job, parse_job
from tlt_operator.api.pod import Pod, parse_pod
from tlt_operator.plan.decision import Memory, decide, rollout_config
from tlt_operator.plan.lending import LeaseTerms
from tlt_operator.plan.snapshot import RolloutView, Snapshot
from tlt_workloads.contract import config_digest

PASSES = 40
CHANGES = 0.015  # share of the pods with news in a pass


def pass_seconds(count: int, *, job_body: Mapping[str, Any], pod_body: Any, seed: int = 1) -> float:
    """Processor seconds of one decision about `count` pods, the mean of many."""
    job = parse_job({**job_body, "metadata": {**job_body["metadata"], "uid": "bench", "generation": 1}})
    fleet = [_member(job, number, pod_body(name_of(number))) for number in range(count)]
    views = [_view(pod, member, now=0.0) for pod, member in fleet]
    dice, memory, terms, spent = random.Random(seed), Memory(), LeaseTerms(), 0.0
    for turn in range(PASSES):
        now = float(turn)
        for index in dice.sample(range(count), max(1, round(CHANGES * count))):
            pod, member = fleet[index]
            member.running, member.idle, member.seq = (0, True, member.seq + 1) if member.running else (8, False, 1)
            views[index] = _view(pod, member, now=now)
        begun = time.thread_time()
        memory = decide(Snapshot(job=job, now=now, rollouts=tuple(views)), memory, terms=terms).memory
        spent += time.thread_time() - begun
    return spent / PASSES


def _member(job: Job, number: int, body: dict[str, Any]) -> tuple[Pod, FleetPod]:
    body["metadata"]["uid"] = f"uid-{number}"
    body["status"] = {
        "phase": "Running",
        "podIP": "127.0.0.1",
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    member = FleetPod(name_of(number), f"boot-{number}", running=8 * (number % 2), idle=number % 2 == 0)
    member.digest = config_digest(rollout_config(job))
    return parse_pod(body), member


def _view(pod: Pod, member: FleetPod, *, now: float) -> RolloutView:
    return RolloutView(pod=pod, state=member.state(), heard_at=now, silent_since=now)
