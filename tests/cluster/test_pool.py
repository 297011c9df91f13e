"""A pool on a real node: pods that the operator made serve, are lent, and give way to a new template one by one.

One story on one pair of pods, because a pair takes a minute to start; the tests follow one another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.conftest import WORKLOADS_IMAGE
from tests.support.cluster import Cluster, is_ready
from tests.support.eventually import eventually
from tests.support.rollouts import MODEL, Load, complete, in_namespace, state_of, store_claim
from tlt_workloads.contract import LeasePhase

JOB = "pool"
LABELS = f"tlt.dev/job={JOB},tlt.dev/component=rollout"
ENOUGH_TOKENS = 300


def job(*, replicas: int = 2, marker: str = "1") -> dict[str, Any]:
    """The TLTJob under test; another `marker` is another template."""
    pool = {
        "replicas": replicas,
        "template": {
            "image": WORKLOADS_IMAGE,
            "imagePullPolicy": "IfNotPresent",
            "args": ["--max-model-len=1024", "--max-num-seqs=8", "--enforce-eager"],
            "env": [{"name": "HF_HUB_OFFLINE", "value": "1"}, {"name": "MARKER", "value": marker}],
            "resources": {"requests": {"cpu": "500m", "memory": "3Gi"}},
        },
        "claim": {"deviceClassName": "gpu.example.com"},
    }
    spec = {
        "target": {"model": MODEL, "servedName": "policy"},
        "rollout": {"pool": pool},
        "idle": {"after": "300ms", "minWindow": "3s", "scope": "Tail"},
        "training": {"trigger": {"minNewTokens": ENOUGH_TOKENS}},
        "store": {"url": "file:///tlt", "volumeClaim": "store"},
    }
    return {"apiVersion": "tlt.dev/v1alpha1", "kind": "TLTJob", "metadata": {"name": JOB}, "spec": spec}


class Pool:
    """The job's pods as they are now."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace

    def apply(self, **changes: Any) -> None:
        self.cluster.apply(in_namespace(job(**changes), self.namespace))

    def pods(self) -> dict[str, dict[str, Any]]:
        return {pod["metadata"]["name"]: pod for pod in self.cluster.list("pods", self.namespace, labels=LABELS)}

    def until_ready(self, count: int) -> dict[str, dict[str, Any]]:
        def probe() -> dict[str, dict[str, Any]] | None:
            pods = self.pods()
            assert len(pods) == count, sorted(pods)
            assert all(is_ready(pod) for pod in pods.values()), {name: pod["status"] for name, pod in pods.items()}
            return pods

        found = eventually(probe, deadline=180, every=1, reason=f"{count} ready pods")
        assert found is not None
        return found

    def address(self, index: int) -> str:
        address: str = self.pods()[f"{JOB}-rollout-{index}"]["status"]["podIP"]
        return address

    def lent(self, index: int) -> bool:
        lease = state_of(self.address(index), self.cluster.secret(f"{JOB}-tlt-control", self.namespace, "token")).lease
        return lease is not None and lease.phase is LeasePhase.GRANTED

    def markers(self) -> list[str]:
        found = [pod["spec"]["containers"][0]["env"] for pod in self.pods().values()]
        return sorted(item["value"] for env in found for item in env if item["name"] == "MARKER")


@pytest.fixture(scope="module")
def pool(operator: Cluster, namespace: str) -> Iterator[Pool]:
    """Two ready pods of the operator's own."""
    operator.apply(in_namespace(store_claim(), namespace))
    made = Pool(operator, namespace)
    made.apply()
    made.until_ready(2)
    yield made
    operator.kubectl("delete", "tltjob", JOB, "-n", namespace, "--ignore-not-found", "--timeout=60s")


def test_pods_of_a_pool_answer_behind_the_gateway_and_are_lent(pool: Pool) -> None:
    service = pool.cluster.get("service", f"{JOB}-gateway", pool.namespace)
    assert service is not None
    eventually(
        lambda: pool.cluster.pods_ready(pool.namespace, f"tlt.dev/job={JOB},tlt.dev/component=gateway", 1),
        deadline=60,
        every=0.5,
        reason="a ready gateway",
    )
    answers = complete(service["spec"]["clusterIP"], tokens=ENOUGH_TOKENS // 4, count=6)
    assert len(answers) == 6

    def a_device_is_lent() -> bool:
        load = Load(pool.address(1), tokens=200, count=4)
        eventually(lambda: pool.lent(0) or not load.running, deadline=120, every=0.2, reason="a lease, or the end")
        lent = load.running and pool.lent(0)
        load.answers()
        return lent

    eventually(a_device_is_lent, deadline=150, every=1, reason="a lease on the idle pod while the other one generates")


def test_a_new_template_leaves_a_generating_pod_alone(pool: Pool) -> None:
    before = {name: pod["metadata"]["uid"] for name, pod in pool.pods().items()}
    load = Load(pool.address(1), tokens=600, count=4)
    pool.apply(marker="2")
    eventually(
        lambda: before[f"{JOB}-rollout-0"] not in {pod["metadata"]["uid"] for pod in pool.pods().values()},
        deadline=60,
        every=0.5,
        reason="the replacement of the idle pod",
    )
    assert pool.pods()[f"{JOB}-rollout-1"]["metadata"]["uid"] == before[f"{JOB}-rollout-1"] or not load.running
    assert len(load.answers()) == 4, "no answer was lost"
    eventually(lambda: pool.markers() == ["2", "2"], deadline=150, every=1, reason="the new template in both pods")
    pool.until_ready(2)


def test_it_shrinks_and_ends_with_its_job(pool: Pool) -> None:
    pool.cluster.kubectl("scale", "tltjob", JOB, "-n", pool.namespace, "--replicas=1")
    eventually(lambda: sorted(pool.pods()) == [f"{JOB}-rollout-0"], deadline=90, every=0.5, reason="one pod")
    pool.cluster.kubectl("delete", "tltjob", JOB, "-n", pool.namespace, "--timeout=60s")
    for kind in ("statefulset", "pods", "resourceclaim", "resourceclaimtemplate", "poddisruptionbudget"):
        eventually(
            lambda kind=kind: not pool.cluster.list(kind, pool.namespace),
            deadline=90,
            every=0.5,
            reason=f"the end of every {kind}",
        )
