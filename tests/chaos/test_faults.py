"""Every fault in every state of a worker, in an order drawn by a seed, and what must hold after each.

`TLT_CHAOS_SEED` repeats an order, `TLT_CHAOS_MINUTES` bounds the time; rounds begin with every fault once.
"""

from __future__ import annotations

import functools
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from bench import results, tables
from tests.chaos.faults import Fault, inject
from tests.chaos.scene import GATEWAYS, JOB, LONG, MEDIUM, MIN_WINDOW, READY_SECONDS, Kept, Moment, Scene, quietly
from tests.chaos.watch import Watch
from tests.cluster.conftest import OPERATOR_NAMESPACE, WORKLOADS_IMAGE
from tests.support.cluster import Cluster
from tests.support.eventually import eventually
from tests.support.rollouts import LABELS, MODEL, Load, complete, in_namespace, rollout_set, store_claim

SEED = int(os.environ.get("TLT_CHAOS_SEED", "1"))
MINUTES = float(os.environ.get("TLT_CHAOS_MINUTES", "15"))
GRACE = 2.0  # seconds
ENOUGH_TOKENS = 400
WITH_WORKER = (Moment.LENT, Moment.REVOKING)
COPIES = 60  # of what was recorded, so that no window ends for want of data


@dataclass(frozen=True)
class Outcome:
    """What became of one fault."""

    fault: Fault
    moment: Moment
    seconds: float
    complaint: str = ""

    def line(self, number: int) -> str:
        result = f"survived in {self.seconds:5.1f} s" if not self.complaint else f"FAILED: {self.complaint}"
        return f"{number:3d}  {self.fault.value:<28} {self.moment.value:<9} {result}"


def job() -> dict[str, Any]:
    return {
        "apiVersion": "tlt.dev/v1alpha1",
        "kind": "TLTJob",
        "metadata": {"name": JOB},
        "spec": {
            "target": {"model": MODEL, "servedName": "policy"},
            "rollout": {"selector": {"matchLabels": LABELS}},
            "idle": {"after": "300ms", "minWindow": f"{MIN_WINDOW:g}s", "scope": "Tail"},
            "training": {
                "trigger": {"minNewTokens": ENOUGH_TOKENS},
                "keepWarm": "1h",
                # As the example: an emulated accelerator is a core that others may use too.
                "template": {"resources": {"requests": {"cpu": "200m", "memory": "1Gi"}}},
            },
            "reclaim": {"grace": f"{GRACE:g}s"},
            "store": {"url": "file:///tlt", "volumeClaim": "store"},
        },
    }


@pytest.fixture(scope="module")
def scene(operator: Cluster, namespace: str) -> Scene:
    """Two rollout pods with a drafter of their own making, at rest."""
    items = [store_claim(), job(), *rollout_set(JOB, image=WORKLOADS_IMAGE, device_class="gpu.example.com")]
    operator.apply(*(in_namespace(item, namespace) for item in items))
    eventually(
        lambda: operator.pods_ready(namespace, "app=rollout", 2), deadline=300, every=1, reason="two ready rollout pods"
    )
    eventually(
        lambda: operator.get("secret", f"{JOB}-tlt-control", namespace), deadline=60, every=0.5, reason="the token"
    )
    bound = operator.get("persistentvolumeclaim", "store", namespace)
    assert bound is not None
    volume = json.loads(operator.kubectl("get", "persistentvolume", bound["spec"]["volumeName"], "-o", "json"))
    made = Scene(operator, namespace, volume=Path(volume["spec"]["hostPath"]["path"]))
    made.rest()
    for pod in made.pods:
        complete(pod.address, tokens=LONG, count=4)
    eventually(lambda: made.multiply_records(COPIES), deadline=30, every=0.5, reason="recorded shards")

    def learned() -> bool:
        load, _ = made.lend()
        load.answers()
        return bool(made.kept().revisions)

    eventually(learned, deadline=400, every=1, reason="a first revision")
    made.rest()
    made.checksum = made.policy_checksum()
    return made


def order(seed: int) -> Iterator[tuple[Fault, Moment]]:
    """All pairs: in each round every fault once, in a state that it has not met yet."""
    dice = random.Random(seed)
    moments = {}
    for fault in Fault:
        possible = [moment for moment in Moment if fault is not Fault.WORKER_KILLED or moment in WITH_WORKER]
        moments[fault] = dice.sample(possible, len(possible))
    for turn in range(len(Moment)):
        for fault in dice.sample(list(Fault), len(Fault)):
            if turn < len(moments[fault]):
                yield fault, moments[fault][turn]


def strike(scene: Scene, watch: Watch, fault: Fault, moment: Moment) -> str:
    """Brings the state about, does the damage and waits until all is well; returns what was not."""
    loads = scene.bring_into(moment)
    before = scene.kept()
    lease = scene.state(0).lease
    hit = inject(fault, scene)
    if moment is Moment.LENT and hit and fault.spares_leases:
        now = scene.state(0).lease
        if loads[0].running:  # else the window may have ended with the tail
            assert now is not None, "the lease did not outlive the fault"
            assert lease is not None
            assert now.id == lease.id, "another lease has taken the place of the one before"
    answers(loads, fault=fault, moment=moment)
    recover(scene, before)
    assert not (seen := watch.take_complaints()), "; ".join(seen)
    return "" if hit else "nothing to hit"


def answers(loads: list[Load], *, fault: Fault, moment: Moment) -> None:
    """All requests succeed, but those on a pod that was killed."""
    for index, load in enumerate(loads):
        on_pod_zero = index == 1  # see `Scene.bring_into`
        failure = ""
        try:
            assert all(load.answers())
        except requests.RequestException as error:
            failure = str(error)
        may_fail = fault.hits_pod_zero and on_pod_zero
        assert may_fail or not failure, f"a request on a pod that lived failed in state {moment.value}: {failure}"


def recover(scene: Scene, before: Kept) -> None:
    """Everything is as before: pods ready and answering, nothing lost, and devices are lent again."""
    labels = "app.kubernetes.io/name=tlt-operator"
    for where, which, what in (
        (OPERATOR_NAMESPACE, labels, "a ready operator"),
        (scene.namespace, GATEWAYS, "a ready gateway"),
    ):
        ready = functools.partial(scene.cluster.pods_ready, where, which, 1)
        eventually(quietly(ready), deadline=READY_SECONDS, every=0.5, reason=what)
    scene.rest()
    scene.serve()
    load, _ = scene.lend(tokens=MEDIUM)
    assert len(load.answers()) == 4
    scene.rest()
    after = scene.kept()
    assert after.trained_tokens >= before.trained_tokens, f"training went back: {before} -> {after}"
    assert after.revisions >= before.revisions, f"revisions are gone: {before.revisions - after.revisions}"
    assert scene.policy_checksum() == scene.checksum, "the policy's weights have changed"
    states = [scene.state(index) for index in (0, 1)]
    assert [state.policy_version for state in states] == [0, 0]


def test_faults_leave_nothing_broken(scene: Scene) -> None:
    began, outcomes = time.monotonic(), []
    with Watch(scene, grace=GRACE) as watch:
        for fault, moment in order(SEED):
            if (time.monotonic() - began) / 60 > MINUTES:
                break
            started, complaint = time.monotonic(), ""
            try:
                missed = strike(scene, watch, fault, moment)
            except AssertionError as failure:
                missed, complaint = "", str(failure).splitlines()[0][:300]
            if missed:
                print(f"     {fault.value} in state {moment.value}: {missed}", flush=True)
                continue
            outcomes.append(Outcome(fault, moment, time.monotonic() - started, complaint))
            print(outcomes[-1].line(len(outcomes)), flush=True)
    failed = [outcome for outcome in outcomes if outcome.complaint]
    summary = "\n".join(outcome.line(number + 1) for number, outcome in enumerate(outcomes))
    print(f"\nfaults injected and outcomes, seed {SEED}, {watch.looks} looks at the devices\n{summary}")
    print(f"{len(outcomes)} faults, {len(outcomes) - len(failed)} survived")
    if not failed:
        results.write(
            "chaos",
            command=f"TLT_CHAOS_SEED={SEED} TLT_CHAOS_MINUTES={MINUTES:g} make test-chaos",
            metrics={"faults": len(outcomes), "survived": len(outcomes) - len(failed), "seed": SEED},
        )
        tables.write()
    assert not failed, "\n".join(outcome.line(0) for outcome in failed)
