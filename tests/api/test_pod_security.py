"""The API server's own judgement of our pods: a namespace that enforces the restricted profile takes all of them.

https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from devcluster.binaries import command_path
from devcluster.settings import node_settings
from tests.support.snapshots import make_job, make_pod
from tlt_operator.api.job import Placement, PlacementOptions
from tlt_operator.clients.kube import POD, Kubernetes
from tlt_operator.config import Settings
from tlt_operator.errors import UnauthorizedError
from tlt_operator.manifests.gateway import gateway_objects
from tlt_operator.manifests.lighthouse import lighthouse_objects
from tlt_operator.manifests.pool import pool_set
from tlt_operator.manifests.trainer_pod import trainer_pod
from tlt_operator.placement.strategy import Site

CHART = Path(__file__).parents[2] / "charts" / "tlt-operator"
SETTINGS = Settings(workloads_image="workloads:test", operator_image="operator:test", visible_devices=True)
POOL = {"replicas": 1, "template": {"image": "vllm:1"}, "claim": {"deviceClassName": "gpu.example.com"}}


@pytest_asyncio.fixture
async def restricted(kube: Kubernetes, namespace: str) -> AsyncIterator[str]:
    """A namespace that refuses every pod outside the profile."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    await kube._json(
        "PATCH",
        f"/api/v1/namespaces/{namespace}",
        body={"metadata": {"labels": labels}},
        content_type="application/merge-patch+json",
    )
    # The chart's priority class and account are not there, and are not what is judged.
    yield namespace


def plain(body: dict[str, Any]) -> dict[str, Any]:
    """A pod without what other objects would have to exist for."""
    spec = copy.deepcopy(body["spec"])
    for field in ("serviceAccountName", "priorityClassName", "runtimeClassName"):
        spec.pop(field, None)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "judged"}, "spec": spec}


def trainer(**options: Any) -> dict[str, Any]:
    job, rollout = make_job(placement=options), make_pod("rollout-0", node="node-0", visible_devices=("GPU-12345678",))
    return trainer_pod(job, rollout, settings=SETTINGS, site=Site(visible_devices=True))


def gateway() -> dict[str, Any]:
    deployment: dict[str, Any] = gateway_objects(make_job(), settings=SETTINGS)[-1]
    found: dict[str, Any] = deployment["spec"]["template"]
    return found


def lighthouse() -> dict[str, Any]:
    deployment: dict[str, Any] = lighthouse_objects(make_job(), settings=SETTINGS)[-1]
    found: dict[str, Any] = deployment["spec"]["template"]
    return found


def rollout() -> dict[str, Any]:
    job = make_job(rollout={"pool": POOL})
    assert job.spec.rollout.pool is not None
    found: dict[str, Any] = pool_set(job, job.spec.rollout.pool, replicas=1, settings=SETTINGS)["spec"]["template"]
    return found


def operator() -> dict[str, Any]:
    helm = command_path(node_settings().binaries, "helm")
    command = [str(helm), "template", "x", str(CHART), "--kube-version", "1.34.0"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    deployment = next(item for item in yaml.safe_load_all(answer.stdout) if item and item["kind"] == "Deployment")
    found: dict[str, Any] = deployment["spec"]["template"]
    return found


PODS = {
    "trainer": lambda: trainer(strategy=PlacementOptions().strategy.value),
    "trainer on visible devices": lambda: trainer(strategy=Placement.VISIBLE_DEVICES.value),
    "gateway": gateway,
    "lighthouse": lighthouse,
    "rollout pod of a pool": rollout,
    "operator": operator,
}


@pytest.mark.parametrize("part", PODS)
async def test_each_pod_of_ours_is_admitted(kube: Kubernetes, restricted: str, part: str) -> None:
    body = plain(PODS[part]())
    body["metadata"]["namespace"] = restricted
    made = await kube.create(body)
    assert made["metadata"]["name"] == "judged"
    await kube.delete(POD, namespace=restricted, name="judged")


async def test_the_namespace_does_refuse(kube: Kubernetes, restricted: str) -> None:
    body = plain(gateway())
    body["metadata"]["namespace"] = restricted
    body["spec"]["containers"][0]["securityContext"] = {"allowPrivilegeEscalation": True}
    with pytest.raises(UnauthorizedError, match="violates PodSecurity"):
        await kube.create(json.loads(json.dumps(body)))
