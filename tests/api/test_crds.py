"""A wrong TLTJob is refused when it is applied, with the field and the way out in the message."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster.binaries import command_path
from devcluster.settings import node_settings

ROOT = Path(__file__).parents[2]
Body = dict[str, Any]
Submit = Callable[..., str]

JOB: Body = {
    "apiVersion": "tlt.dev/v1alpha1",
    "kind": "TLTJob",
    "metadata": {"name": "demo", "namespace": "default"},
    "spec": {
        "target": {"model": "/models/policy"},
        "rollout": {"selector": {"matchLabels": {"app": "rollout"}}},
        "store": {"url": "file:///tlt", "volumeClaim": "tlt"},
    },
}
REVISION: Body = {
    "apiVersion": "tlt.dev/v1alpha1",
    "kind": "DrafterRevision",
    "metadata": {"name": "demo-r1", "namespace": "default"},
    "spec": {
        "job": "demo",
        "digest": "0" * 64,
        "url": "file:///tlt/default/demo/revisions/demo-r1",
        "method": "Eagle3",
        "policyVersions": {"first": 0, "last": 3},
        "trainedTokens": 1000,
        "evaluation": {"acceptLength": 1.5, "standardError": 0.1, "sequences": 10, "tokens": 1000},
    },
}


@pytest.fixture(scope="module")
def submit(kubeconfig: Path) -> Submit:
    """Sends an object to the API server; answers its refusal, empty when there is none."""
    kubectl = command_path(node_settings().binaries, "kubectl")

    def send(body: Body, *, keep: bool = False) -> str:
        dry = () if keep else ("--dry-run=server",)
        answer = subprocess.run(
            [str(kubectl), "apply", "--server-side", "--validate=strict", *dry, "-f", "-"],
            input=json.dumps(body),
            env={**os.environ, "KUBECONFIG": str(kubeconfig)},
            capture_output=True,
            text=True,
            check=False,
        )
        return answer.stderr if answer.returncode else ""

    return send


def changed(body: Body, path: str, value: Any) -> Body:
    """A copy with one field replaced, or removed when the value is `...`."""
    result = copy.deepcopy(body)
    *parents, last = path.split(".")
    place = result
    for name in parents:
        place = place.setdefault(name, {})
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return result


POOL = {"replicas": 2, "template": {"image": "vllm"}, "claim": {"deviceClassName": "gpu.example.com"}}
TWO_SOURCES = {"selector": {"matchLabels": {"app": "rollout"}}, "pool": POOL}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("spec.rollout", ..., "spec.rollout: Required value"),
        ("spec.rollout", {}, "exactly one of spec.rollout.selector"),
        ("spec.rollout", TWO_SOURCES, "exactly one of spec.rollout.selector"),
        ("spec.rollout", {"selector": {}}, "spec.rollout.selector must name at least one label"),
        ("spec.rollout", {"pool": {"replicas": 0, **{k: v for k, v in POOL.items() if k != "replicas"}}}, "replicas"),
        ("spec.target.model", ..., "spec.target.model: Required value"),
        ("spec.target.model", "", "spec.target.model"),
        ("spec.store.url", "ftp://host/tlt", "must begin with file:///, s3://, gs:// or abfs://"),
        ("spec.store.url", "file://tlt", "must begin with file:///"),
        ("spec.store.url", "file:///tlt/../etc", "without '..'"),
        ("spec.store", {"url": "s3://key:secret@bucket/tlt"}, "hold no credentials"),
        ("spec.store", {"url": "abfs://key:secret@account/tlt"}, "hold no credentials"),
        ("spec.store", {"url": "s3://bucket/tlt::file:///etc"}, "must name one place"),
        ("spec.store.volumeClaim", ..., "spec.store.volumeClaim is required"),
        ("spec.store", {"url": "s3://bucket/tlt", "volumeClaim": "tlt"}, "spec.store.volumeClaim has no use"),
        ("spec.idle.after", "1ms", "spec.idle.after must lie between 10ms and 1h"),
        ("spec.idle.after", "soon", "spec.idle.after"),
        ("spec.idle.minWindow", "1s", "spec.idle.minWindow must be longer than spec.reclaim.grace"),
        ("spec.reclaim.grace", "6m", "spec.reclaim.grace must lie between 0s and 5m"),
        ("spec.training.keepWarm", "25h", "spec.training.keepWarm must lie between 0s and 24h"),
        ("spec.training.learningRate", 0, "spec.training.learningRate"),
        ("spec.training.template.env", [{"name": "TLT_JOB", "value": "x"}], "must not set TLT_ variables"),
        ("spec.training.template.hostNetwork", True, "field not declared in schema"),
        ("spec.capture.maxBytes", "5k", "spec.capture.maxBytes must be at least 1Mi"),
        ("spec.capture.maxBytesPerStep", "5k", "spec.capture.maxBytesPerStep must be at least 1Mi"),
        ("spec.capture.sampleRate", 1.5, "spec.capture.sampleRate"),
        ("spec.capture.promptRows", -1, "spec.capture.promptRows"),
        ("spec.capture.elementType", "Int4", "spec.capture.elementType"),
        ("spec.drafter.initialRevision", "http://host/x", "spec.drafter.initialRevision must be a file:///"),
        ("spec.drafter.method", "Medusa", "spec.drafter.method must be Eagle3"),
        ("spec.drafter.method", "PEagle", "PEagle cannot be drafted with in varying lengths"),
        ("spec.speculation.mode", "Fast", "spec.speculation.mode"),
        ("spec.placement.strategy", "Anywhere", "spec.placement.strategy"),
        (
            "spec.placement",
            {"strategy": "VisibleDevices", "requests": ["gpu-0"]},
            "spec.placement.requests has a meaning",
        ),
        ("spec.placement", {"runtimeClassName": "nvidia"}, "spec.placement.runtimeClassName has a meaning"),
        ("spec.placement.requests", ["gpu_0"], "spec.placement.requests[0]"),
        ("spec.placement.requests", ["gpu-0", "gpu-0"], "spec.placement.requests: duplicate"),
        (
            "spec.training.template.env",
            [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}],
            "brings devices to trainers",
        ),
        ("spec.training.template.resources", {"limits": {"nvidia.com/gpu": 1}}, "must not ask for devices"),
        ("spec.training.template.resources", {"requests": {"nvidia.com/gpu": 1}}, "must not ask for devices"),
        ("spec.training.template.labels", {"kueue.x-k8s.io/queue-name": "gpus"}, "field not declared in schema"),
        ("spec.port", 0, "spec.port"),
        ("spec.suspended", True, "field not declared in schema"),
        ("metadata.name", "a" * 41, "metadata.name must have at most 40 characters"),
        ("metadata.name", "4demo", "metadata.name must be a DNS label"),
    ],
)
def test_a_wrong_job_is_refused_by_field(submit: Submit, path: str, value: Any, message: str) -> None:
    assert submit(JOB) == ""
    assert message in submit(changed(JOB, path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.rollout", {"pool": POOL}),
        ("spec.store", {"url": "s3://bucket/tlt", "secretRef": {"name": "credentials"}}),
        ("spec.idle", {"after": "1m30s", "minWindow": "2.5h", "scope": "AnyIdle", "memory": "Sleep"}),
        ("spec.capture.maxBytes", 1 << 30),
        ("spec.capture", {"maxBytesPerStep": "512Mi", "promptRows": 0, "elementType": "Float8"}),
        ("spec.training.keepWarm", "0s"),
        ("spec.training.template.resources", {"limits": {"memory": "4Gi"}}),
        ("spec.placement", {"requests": ["gpu-0", "gpu-7"]}),
        ("spec.placement", {"strategy": "VisibleDevices", "runtimeClassName": "nvidia"}),
    ],
)
def test_what_is_right_is_taken(submit: Submit, path: str, value: Any) -> None:
    assert submit(changed(JOB, path, value)) == ""


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("spec.digest", "sha256:00", "spec.digest"),
        ("spec.url", "/tlt/revisions/1", "spec.url must be a file:///"),
        ("spec.policyVersions", {"first": 4, "last": 3}, "first must not be above"),
        ("spec.evaluation.sequences", ..., "spec.evaluation.sequences: Required value"),
        ("spec.weights", "x", "field not declared in schema"),
    ],
)
def test_a_wrong_revision_is_refused_by_field(submit: Submit, path: str, value: Any, message: str) -> None:
    assert submit(REVISION) == ""
    assert message in submit(changed(REVISION, path, value))


@pytest.mark.parametrize(
    ("body", "path", "value", "message"),
    [
        (JOB, "spec.target.model", "/models/other", "spec.target.model cannot be changed"),
        (JOB, "spec.store.url", "file:///elsewhere", "spec.store.url cannot be changed"),
        (REVISION, "spec.trainedTokens", 2000, "spec of a DrafterRevision cannot be changed"),
        (REVISION, "spec.digest", "1" * 64, "spec of a DrafterRevision cannot be changed"),
    ],
)
def test_what_must_not_change_is_kept(
    submit: Submit, namespace: str, body: Body, path: str, value: Any, message: str
) -> None:
    kept = changed(body, "metadata.namespace", namespace)
    assert submit(kept, keep=True) == ""
    assert message in submit(changed(kept, path, value))


def test_the_examples_are_taken(submit: Submit) -> None:
    for path in sorted((ROOT / "examples").rglob("*.yaml")):
        for body in yaml.safe_load_all(path.read_text()):
            if body and body.get("kind") == "TLTJob":
                assert submit(changed(body, "metadata.namespace", "default")) == "", path
