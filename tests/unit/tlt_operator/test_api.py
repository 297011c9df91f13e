"""Custom resources and pods as they come from the API server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.snapshots import SPEC
from tlt_operator.api import names
from tlt_operator.api.job import JobSpec, Scope, parse_job, parse_spec
from tlt_operator.api.pod import DeviceClaim, parse_pod
from tlt_operator.api.quantities import parse_duration, parse_size
from tlt_operator.api.revision import parse_revision
from tlt_operator.errors import InvalidSpecError

CRDS = Path(__file__).parents[3] / "crds"


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("5s", 5), ("10m", 600), ("1h30m", 5400), ("1.5s", 1.5), ("0s", 0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text, field="f") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["soon", "5", "5 s", "", "1d", "-1s", 5, None])
def test_what_is_no_duration_is_refused_by_field(text: object) -> None:
    with pytest.raises(InvalidSpecError, match=r"spec\.idle\.after"):
        parse_duration(text, field="spec.idle.after")


@pytest.mark.parametrize(("text", "size"), [("8Gi", 8 << 30), ("1.5k", 1500), (4096, 4096), ("512Mi", 512 << 20)])
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text, field="f") == size


def body(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "team", "name": "demo", "uid": "u", "generation": 3},
        "spec": {**SPEC, **spec},
    }


def test_job_with_its_defaults() -> None:
    job = parse_job(body())
    assert job.key == "team/demo"
    assert job.folder_url == "file:///tlt/team/demo"
    assert job.spec.idle.scope is Scope.TAIL
    assert job.spec.store.mount_path == "/tlt"
    assert not job.deleting


def test_defaults_are_those_of_the_schema() -> None:
    """The API server fills defaults in; ours must be the same, or a test without it would test something else."""
    crd = yaml.safe_load((CRDS / "tltjobs.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]

    def defaults(schema: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name, item in schema.get("properties", {}).items():
            if "default" in item and item["default"] != {}:
                found[name] = item["default"]
            elif item.get("type") == "object" and item.get("default") == {}:
                found[name] = defaults(item)
        return found

    filled = {**defaults(schema), **SPEC}
    filled["training"] = defaults(schema)["training"]
    bare = {**SPEC}
    del bare["training"]
    from_schema, own = parse_spec(filled), parse_spec(bare)
    assert from_schema.training.template.image_pull_policy == "IfNotPresent"
    assert own.training.template.image_pull_policy is None  # the operator's setting
    for name in JobSpec.__dataclass_fields__:
        if name != "training":
            assert getattr(from_schema, name) == getattr(own, name), name
    assert from_schema.training.trigger == own.training.trigger
    assert from_schema.training.keep_warm == own.training.keep_warm
    assert from_schema.training.learning_rate == own.training.learning_rate


POOL = {"replicas": 1, "template": {"image": "vllm"}, "claim": {"deviceClassName": "gpu.example.com"}}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rollout": {}}, "spec.rollout"),
        ({"rollout": {"selector": {"matchLabels": {"a": "b"}}, "pool": POOL}}, "spec.rollout"),
        ({"rollout": {"pool": {**POOL, "claim": {}}}}, "spec.rollout.pool.claim.deviceClassName"),
        ({"rollout": {"pool": {**POOL, "replicas": "two"}}}, "spec.rollout.pool.replicas"),
        ({"rollout": {"selector": {}}}, "spec.rollout.selector"),
        ({"store": {"url": "ftp://x"}}, "spec.store.url"),
        ({"store": {"url": "s3://key:secret@bucket/x"}}, "spec.store.url"),
        ({"store": {"url": "s3://bucket/x::file:///etc"}}, "spec.store.url"),
        ({"store": {"url": "file:///x"}}, "spec.store.volumeClaim"),
        ({"idle": {"after": "soon"}}, "spec.idle.after"),
        ({"idle": {"scope": "Never"}}, "spec.idle.scope"),
        ({"capture": {"maxBytes": "lots"}}, "spec.capture.maxBytes"),
        ({"port": "http"}, "spec.port"),
        ({"target": {}}, "spec.target.model"),
        ({"placement": {"strategy": "VisibleDevices", "requests": ["gpu-0"]}}, "spec.placement.requests"),
        ({"placement": {"runtimeClassName": "nvidia"}}, "spec.placement.runtimeClassName"),
        (
            {"training": {"template": {"env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]}}},
            "spec.training.template.env",
        ),
        (
            {"training": {"template": {"resources": {"limits": {"nvidia.com/gpu": 1}}}}},
            "spec.training.template.resources",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidSpecError) as refused:
        parse_job(body(**changes))
    assert refused.value.field == field


def test_selector_becomes_a_query() -> None:
    expressions = [
        {"key": "tier", "operator": "In", "values": ["a", "b"]},
        {"key": "old", "operator": "DoesNotExist"},
        {"key": "new", "operator": "Exists"},
        {"key": "zone", "operator": "NotIn", "values": ["z"]},
    ]
    selector = {"matchLabels": {"app": "x"}, "matchExpressions": expressions}
    found = parse_job(body(rollout={"selector": selector})).spec.rollout.selector
    assert found is not None
    assert found.query() == "app=x,tier in (a,b),!old,new,zone notin (z)"


def pod_body(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "x"}},
        "spec": {"containers": [{"name": "c"}], **spec},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
    }


def test_pod_with_its_claims_by_name_and_by_template() -> None:
    item = pod_body(
        resourceClaims=[
            {"name": "gpu", "resourceClaimTemplateName": "t"},
            {"name": "nic", "resourceClaimName": "own"},
            {"name": "unused", "resourceClaimName": "other"},
        ],
        containers=[
            {
                "name": "a",
                "resources": {"claims": [{"name": "gpu", "request": "g0"}, {"name": "gpu", "request": "g1"}]},
            },
            {"name": "b", "resources": {"claims": [{"name": "nic"}]}},
        ],
    )
    item["status"]["resourceClaimStatuses"] = [{"name": "gpu", "resourceClaimName": "p-gpu-abc"}]
    pod = parse_pod(item)
    assert pod.ready
    assert pod.claims == (
        DeviceClaim(name="gpu", claim="p-gpu-abc", requests=("g0", "g1")),
        DeviceClaim(name="nic", claim="own", requests=()),
    )


def test_claim_of_a_template_that_was_not_made_yet_has_no_name() -> None:
    item = pod_body(
        resourceClaims=[{"name": "gpu", "resourceClaimTemplateName": "t"}],
        containers=[{"name": "a", "resources": {"claims": [{"name": "gpu"}]}}],
    )
    assert parse_pod(item).claims == (DeviceClaim(name="gpu", claim=None),)


@pytest.mark.parametrize(
    ("status", "trouble"),
    [
        ({"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}, None),
        (
            {"containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}]},
            "ErrImagePull: no such image",
        ),
        (
            {"containerStatuses": [{"state": {"terminated": {"exitCode": 2, "reason": "Error"}}}]},
            "exit code 2: Error",
        ),
        (
            {
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no device"}
                ]
            },
            "Unschedulable: no device",
        ),
    ],
)
def test_why_a_pod_does_not_start(status: dict[str, Any], trouble: str | None) -> None:
    item = pod_body()
    item["status"] = {"phase": "Pending", **status}
    assert parse_pod(item).trouble == trouble


def test_revision() -> None:
    revision = parse_revision(
        {
            "metadata": {"name": "demo-r12"},
            "spec": {"digest": "d", "url": "file:///x", "policyVersions": {"first": 1, "last": 4}},
            "status": {"phase": "Superseded", "evidence": {"acceptLength": 1.7}},
        }
    )
    assert revision.number == 12
    assert revision.phase is names.RevisionPhase.SUPERSEDED
    assert revision.accept_length == 1.7
    assert revision.last_policy_version == 4


def test_names_are_short_enough_and_words_fit_the_schema() -> None:
    job = "j" * 40
    made = (
        names.gateway_name(job),
        names.rollout_service_name(job),
        names.token_secret_name(job),
        names.trainer_name(job, rollout_uid="x"),
    )
    assert all(len(name) <= 63 for name in made)
    crd = yaml.safe_load((CRDS / "tltjobs.yaml").read_text())
    status = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    assert set(status["phase"]["enum"]) == {item.value for item in names.Phase}
    revision = yaml.safe_load((CRDS / "drafterrevisions.yaml").read_text())
    status = revision["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    assert set(status["phase"]["enum"]) == {item.value for item in names.RevisionPhase}
