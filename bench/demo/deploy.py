"""Brings operator and example into a cluster and takes them out again."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.demo.cluster import ROOT, Cluster, is_ready, wait_until
from bench.demo.console import StageError, tail
from bench.demo.follow import JOB, LEARNER, OPERATOR_LABELS, OPERATOR_NAMESPACE, ROLLOUT, Run

RELEASE = "tlt"
CHART = ROOT / "charts" / "tlt-operator"
EXAMPLE = ROOT / "examples" / "trl-grpo" / "overlays"
STORAGE_CLASS, DEVICE_CLASS = "devcluster", "gpu.example.com"  # as the example has them
HOPELESS = ("CrashLoopBackOff", "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "CreateContainerConfigError")
READY_SECONDS = 900.0  # a busy machine is slow


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What differs from cluster to cluster; the embedded one needs none of it said."""

    operator_image: str = "localhost/tlt-operator:dev"
    workloads_image: str = "localhost/tlt-workloads:dev"
    storage_class: str = STORAGE_CLASS
    device_class: str = DEVICE_CLASS

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Choices:
        """From `TLT_OPERATOR_IMAGE`, `TLT_WORKLOADS_IMAGE`, `TLT_STORAGE_CLASS` and `TLT_DEVICE_CLASS`."""
        names = ("operator_image", "workloads_image", "storage_class", "device_class")
        given = {name: environment.get(f"TLT_{name.upper()}") for name in names}
        return cls(**{name: value for name, value in given.items() if value})


def install_operator(cluster: Cluster, choices: Choices) -> None:
    """Installs or upgrades the chart, and restarts the operator so that a rebuilt image is used."""
    repository, tag = split_image(choices.operator_image)
    values = (
        f"image.repository={repository}",
        f"image.tag={tag}",
        f"operator.workloadsImage={choices.workloads_image}",
    )
    answer = cluster.run(
        cluster.helm_command, "upgrade", "--install", RELEASE, str(CHART), "--namespace", OPERATOR_NAMESPACE,
        "--create-namespace", "--wait", "--timeout", "3m", *(word for value in values for word in ("--set", value)),
    )  # fmt: skip
    if answer.returncode != 0:
        raise StageError(
            f"helm: {tail(answer.stderr, lines=4)}",
            advice=f"`kubectl get pods -n {OPERATOR_NAMESPACE}`; `helm list -A` shows whether another release is there",
            evidence=cluster.trouble(namespace=OPERATOR_NAMESPACE),
        )
    cluster.kubectl("rollout", "restart", "deployment", "-n", OPERATOR_NAMESPACE, "-l", OPERATOR_LABELS)
    cluster.kubectl(
        "rollout", "status", "deployment", "-n", OPERATOR_NAMESPACE, "-l", OPERATOR_LABELS, "--timeout=120s"
    )


def check_classes(cluster: Cluster, choices: Choices) -> None:
    """Refuses early what would leave pods pending for ever."""
    for kind, name, variable in (
        ("storageclass", choices.storage_class, "TLT_STORAGE_CLASS"),
        ("deviceclass", choices.device_class, "TLT_DEVICE_CLASS"),
    ):
        if cluster.find(kind, name, namespace="default") is None:
            raise StageError(
                f"the cluster has no {kind} {name!r}",
                advice=f"set {variable} to one of `kubectl get {kind}` (storage: ReadWriteMany; devices: by DRA)",
            )


def overlay(run: Run, choices: Choices, *, steps: int) -> dict[str, Any]:
    """A kustomization on top of the example's, with this cluster's names and the number of steps."""
    repository, tag = split_image(choices.workloads_image)
    steps_variable = {"name": "GRPO_STEPS", "value": str(steps)}
    patches = [
        _patch("Job", LEARNER, "add", "/spec/template/spec/containers/0/env/-", steps_variable),
        _patch("TLTJob", JOB, "replace", "/spec/training/template/image", choices.workloads_image),
        _patch("PersistentVolumeClaim", f"{JOB}-store", "replace", "/spec/storageClassName", choices.storage_class),
        _patch(
            "ResourceClaimTemplate", ROLLOUT, "replace", "/spec/spec/devices/requests/0/exactly/deviceClassName",
            choices.device_class,
        ),
    ]  # fmt: skip
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(EXAMPLE / run.name, overlay_folder(run))],
        "images": [{"name": "localhost/tlt-workloads", "newName": repository, "newTag": tag}],
        "patches": patches,
    }


def overlay_folder(run: Run) -> Path:
    """Where the run's kustomization is written."""
    return ROOT / "build" / "demo" / "overlays" / run.name


def apply_example(cluster: Cluster, run: Run, choices: Choices, *, steps: int) -> None:
    """Applies the run's overlay in a fresh namespace."""
    cluster.delete_namespaces(run.namespace)
    folder = overlay_folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kustomization.yaml").write_text(json.dumps(overlay(run, choices, steps=steps), indent=2))
    cluster.kubectl("apply", "-k", str(folder))


def wait_for_pods(cluster: Cluster, run: Run) -> None:
    """Returns when all rollout pods are ready.

    Raises:
        StageError: one cannot start, or it takes too long.
    """

    def settled() -> bool:
        pods = cluster.list("pods", namespace=run.namespace, labels=f"app={ROLLOUT}")
        stuck = [pod for pod in pods if any(reason in HOPELESS for reason in _waiting_reasons(pod))]
        if stuck:
            name = stuck[0]["metadata"]["name"]
            raise _not_ready(cluster, run, f"pod {name} cannot start: {', '.join(_waiting_reasons(stuck[0]))}")
        return sum(map(is_ready, pods)) == run.pods

    if not wait_until(settled, seconds=READY_SECONDS, every=2.0):
        raise _not_ready(cluster, run, f"the rollout pods were not ready after {READY_SECONDS / 60:.0f} minutes")


def free_devices(cluster: Cluster, run: Run) -> None:
    """Ends the run's rollout pods, and with them its trainers; the TLTJob and its revisions stay to be looked at."""
    cluster.kubectl("delete", "statefulset", ROLLOUT, "-n", run.namespace, "--ignore-not-found", "--wait=true")
    cluster.kubectl("delete", "job", LEARNER, "-n", run.namespace, "--ignore-not-found", "--wait=true")
    labels = f"app={ROLLOUT}"
    if not wait_until(lambda: not cluster.list("pods", namespace=run.namespace, labels=labels), seconds=120):
        raise StageError(
            "the rollout pods of the first run do not end", advice=f"`kubectl get pods -n {run.namespace}` shows why"
        )


def remove(cluster: Cluster, *runs: Run) -> None:
    """Takes example and operator out of a cluster that stays."""
    cluster.delete_namespaces(*(run.namespace for run in runs))
    cluster.run(cluster.helm_command, "uninstall", RELEASE, "--namespace", OPERATOR_NAMESPACE, "--wait")


def split_image(image: str) -> tuple[str, str]:
    """Repository and tag of an image's name.

    >>> split_image("registry:5000/a/b:dev")
    ('registry:5000/a/b', 'dev')
    >>> split_image("registry:5000/a/b")
    ('registry:5000/a/b', 'latest')
    """
    repository, colon, tag = image.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (image, "latest")


def _patch(kind: str, name: str, operation: str, path: str, value: Any) -> dict[str, Any]:
    return {
        "target": {"kind": kind, "name": name},
        "patch": json.dumps([{"op": operation, "path": path, "value": value}]),
    }


def _waiting_reasons(pod: Mapping[str, Any]) -> list[str]:
    statuses = pod.get("status", {}).get("containerStatuses", ())
    return [item["state"]["waiting"].get("reason", "") for item in statuses if "waiting" in item.get("state", {})]


def _not_ready(cluster: Cluster, run: Run, message: str) -> StageError:
    return StageError(
        message,
        advice=f"`kubectl describe pods -n {run.namespace}` shows the events; `make demo` again goes on from here",
        evidence=cluster.trouble(namespace=run.namespace),
    )


@contextlib.contextmanager
def without_operator(cluster: Cluster) -> Iterator[None]:
    """Leases are then the benchmark's own.  What runs goes on without the operator."""
    scale = ("scale", "deployment", "-n", OPERATOR_NAMESPACE, "-l", OPERATOR_LABELS)
    cluster.kubectl(*scale, "--replicas=0")
    wait_until(lambda: not cluster.list("pods", namespace=OPERATOR_NAMESPACE, labels=OPERATOR_LABELS), seconds=60)
    try:
        yield
    finally:
        cluster.kubectl(*scale, "--replicas=1")
