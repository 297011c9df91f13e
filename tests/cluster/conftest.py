"""The cluster under test: the embedded one, or the one that `CLUSTER` names; the operator installed by its chart."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.eventually import eventually

ROOT = Path(__file__).parents[2]
OPERATOR_NAMESPACE = "tlt-system"
RELEASE = "tlt"  # the demo's: two operators on one cluster would both act on every job
EMBEDDED = os.environ.get("CLUSTER", "embedded") == "embedded"
OPERATOR_IMAGE = os.environ.get("TLT_OPERATOR_IMAGE", "localhost/tlt-operator:dev")
WORKLOADS_IMAGE = os.environ.get("TLT_WORKLOADS_IMAGE", "localhost/tlt-workloads:dev")


def devcluster(*arguments: str, check: bool = True) -> str:
    """One verb of the embedded cluster; its messages become the failure's."""
    answer = subprocess.run(
        [sys.executable, "-m", "devcluster", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert not check or answer.returncode == 0, f"devcluster {' '.join(arguments)}:\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout.strip()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster. The embedded one is stopped afterwards, unless it was running before."""
    ours = False
    if EMBEDDED:
        ours = (
            subprocess.run([sys.executable, "-m", "devcluster", "status"], cwd=ROOT, capture_output=True).returncode
            != 0
        )
        devcluster("up")
        devcluster("load", OPERATOR_IMAGE, WORKLOADS_IMAGE)
        kubeconfig = Path(devcluster("kubeconfig"))
    else:
        devcluster("guard")
        kubeconfig = Path(os.environ.get("KUBECONFIG", "~/.kube/config")).expanduser()
    commands = Path(devcluster("path"))
    yield Cluster(kubeconfig, commands / "kubectl", commands / "helm")
    if ours and not os.environ.get("TLT_KEEP"):
        devcluster("down")


@pytest.fixture(scope="session")
def operator(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with the operator installed from the chart."""
    repository, _, tag = OPERATOR_IMAGE.rpartition(":")
    cluster.helm(
        *("upgrade", "--install", RELEASE, str(ROOT / "charts" / "tlt-operator"), "--wait", "--timeout", "3m"),
        *("--namespace", OPERATOR_NAMESPACE, "--create-namespace"),
        *("--set", f"image.repository={repository}", "--set", f"image.tag={tag}"),
        *("--set", f"operator.workloadsImage={WORKLOADS_IMAGE}"),
    )
    yield cluster
    if not os.environ.get("TLT_KEEP"):
        cluster.helm("uninstall", RELEASE, "--namespace", OPERATOR_NAMESPACE, "--wait")


@pytest.fixture(scope="module")
def namespace(operator: Cluster) -> Iterator[str]:
    """A namespace of the module's own, gone afterwards with everything in it."""
    name = f"tlt-test-{uuid.uuid4().hex[:6]}"
    operator.kubectl("create", "namespace", name)
    yield name
    if not os.environ.get("TLT_KEEP"):
        operator.delete_namespace(name)


def operator_pod(cluster: Cluster) -> str:
    """Name of the operator's ready pod."""
    labels = "app.kubernetes.io/name=tlt-operator"
    pods = eventually(
        lambda: cluster.pods_ready(OPERATOR_NAMESPACE, labels, 1),
        deadline=60,
        every=0.5,
        reason="a ready operator pod",
    )
    name: str = pods[0]["metadata"]["name"]
    return name


def kill_operator(cluster: Cluster) -> None:
    """Ends the operator without a chance to say goodbye."""
    cluster.kubectl(
        *("delete", "pod", operator_pod(cluster), "-n", OPERATOR_NAMESPACE, "--grace-period=0", "--force"),
    )
