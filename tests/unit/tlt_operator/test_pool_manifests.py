"""The objects of a pool."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.snapshots import make_job
from tlt_operator.api.job import Job, Pool
from tlt_operator.api.pod import parse_pod
from tlt_operator.config import Settings
from tlt_operator.manifests.gateway import rollout_service
from tlt_operator.manifests.pool import (
    claim_template,
    disruption_budget,
    pool_digest,
    pool_selector,
    pool_set,
)
from tlt_workloads.rollout.serve import parse

SETTINGS = Settings(workloads_image="workloads:1", operator_image="operator:1")
TEMPLATE: dict[str, Any] = {"image": "vllm:1"}
CLAIM: dict[str, Any] = {"deviceClassName": "gpu.example.com"}


def job(*, template: dict[str, Any] = TEMPLATE, claim: dict[str, Any] = CLAIM, **fields: Any) -> Job:
    return make_job(rollout={"pool": {"replicas": 3, "template": template, "claim": claim}}, **fields)


def pool_of(item: Job) -> Pool:
    assert item.spec.rollout.pool is not None
    return item.spec.rollout.pool


def stateful(item: Job | None = None) -> dict[str, Any]:
    found = item or job()
    return pool_set(found, pool_of(found), replicas=2, settings=SETTINGS)


def pod_spec(item: Job | None = None) -> dict[str, Any]:
    spec: dict[str, Any] = stateful(item)["spec"]["template"]["spec"]
    return spec


def container(item: Job | None = None) -> dict[str, Any]:
    [found] = pod_spec(item)["containers"]
    return dict(found)


def environment(item: Job | None = None) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container(item)["env"]}


def digest_of(item: Job) -> str:
    return pool_digest(item, pool_of(item), settings=SETTINGS)


def test_the_set_starts_all_pods_at_once_and_leaves_replacing_them_to_the_operator() -> None:
    spec = stateful()["spec"]
    assert spec["replicas"] == 2
    assert spec["podManagementPolicy"] == "Parallel"
    assert spec["updateStrategy"] == {"type": "OnDelete"}
    assert spec["serviceName"] == "demo-rollout"
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    assert stateful()["metadata"]["ownerReferences"][0]["uid"] == "job-uid"


def test_service_and_budget_find_the_pods_that_the_set_makes() -> None:
    labels = stateful()["spec"]["template"]["metadata"]["labels"]
    assert rollout_service(job())["metadata"]["name"] == stateful()["spec"]["serviceName"]
    assert rollout_service(job())["spec"]["selector"].items() <= labels.items()
    assert disruption_budget(job())["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert disruption_budget(job())["spec"]["maxUnavailable"] == 1
    assert all(
        f"{name}={value}" in pool_selector(job()) for name, value in rollout_service(job())["spec"]["selector"].items()
    )


def test_pods_have_no_rights_and_what_the_server_needs() -> None:
    spec, server = pod_spec(), container()
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert server["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {item["mountPath"]: item["name"] for item in server["volumeMounts"]}
    volumes = {item["name"]: item for item in spec["volumes"]}
    assert mounts.keys() == {"/tmp", "/dev/shm", "/var/run/secrets/tlt", "/tlt"}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert volumes[mounts["/var/run/secrets/tlt"]]["secret"]["secretName"] == "demo-tlt-control"
    assert volumes[mounts["/tlt"]] == {"name": "store", "persistentVolumeClaim": {"claimName": "tlt"}}
    assert spec["terminationGracePeriodSeconds"] > server["lifecycle"]["preStop"]["sleep"]["seconds"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["httpGet"] == {"path": "/health", "port": "http"}


def test_an_object_store_brings_its_credentials_instead_of_a_volume() -> None:
    item = job(store={"url": "s3://bucket/x", "secretRef": {"name": "keys"}})
    assert container(item)["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert all(volume["name"] != "store" for volume in pod_spec(item)["volumes"])


def test_the_server_is_told_the_jobs_facts_and_the_users_arguments_come_last() -> None:
    item = job(
        template={**TEMPLATE, "args": ["--max-model-len=1024", "--speculative-tokens=1"]},
        target={"model": "/models/policy", "servedName": "policy"},
        drafter={"speculativeTokens": 5, "draftVocabSize": 4096},
        idle={"memory": "Sleep"},
        port=9000,
    )
    arguments = container(item)["args"]
    assert arguments[-2:] == ["--max-model-len=1024", "--speculative-tokens=1"]
    assert {"--served-model-name=policy", "--port=9000", "--enable-sleep-mode"} <= set(arguments)
    settings = parse(arguments)  # by the server's own reader
    assert (settings.model, settings.speculative_tokens, settings.draft_vocab_size) == ("/models/policy", 1, 4096)
    assert container(item)["ports"] == [{"name": "http", "containerPort": 9000}]


def test_the_environment_names_job_pod_and_store() -> None:
    found = environment(
        job(template={**TEMPLATE, "env": [{"name": "HOME", "value": "/tlt"}, {"name": "A", "value": "b"}]})
    )
    assert found["TLT_JOB"] == "default/demo"
    assert found["TLT_POD_NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert found["TLT_STORE_URL"] == "file:///tlt"
    assert found["TLT_TOKEN_FILE"] == "/var/run/secrets/tlt/token"
    assert (found["HOME"], found["A"]) == ("/tlt", "b")


def test_each_device_is_a_request_of_its_own_and_the_pod_has_the_whole_claim() -> None:
    selectors = [{"cel": {"expression": "device.attributes['x'].y == 1"}}]
    item = job(claim={**CLAIM, "count": 2, "selectors": selectors})
    template = claim_template(item, pool_of(item))
    requests = template["spec"]["spec"]["devices"]["requests"]
    assert [request["name"] for request in requests] == ["gpu-0", "gpu-1"]
    for request in requests:
        assert request["exactly"] == {
            "deviceClassName": "gpu.example.com",
            "allocationMode": "ExactCount",
            "count": 1,
            "selectors": selectors,
        }
    spec = pod_spec(item)
    assert spec["resourceClaims"] == [{"name": "gpu", "resourceClaimTemplateName": template["metadata"]["name"]}]
    assert container(item)["resources"]["claims"] == [{"name": "gpu"}]
    body = {"metadata": {"name": "demo-rollout-0", "namespace": "default", "uid": "u"}, "spec": spec}
    [claim] = parse_pod(body).claims
    assert (claim.name, claim.requests) == ("gpu", ()), "a trainer may share all of it"


@pytest.mark.parametrize(
    "change",
    [
        {"template": {**TEMPLATE, "image": "vllm:2"}},
        {"template": {**TEMPLATE, "args": ["--enforce-eager"]}},
        {"template": {**TEMPLATE, "resources": {"requests": {"memory": "3Gi"}}}},
        {"template": {**TEMPLATE, "nodeSelector": {"a": "b"}}},
        {"template": {**TEMPLATE, "tolerations": [{"operator": "Exists"}]}},
        {"template": {**TEMPLATE, "priorityClassName": "high"}},
        {"claim": {**CLAIM, "count": 2}},
        {"claim": {"deviceClassName": "other"}},
        {"drafter": {"speculativeTokens": 7}},
    ],
)
def test_what_changes_the_pods_changes_the_digest(change: dict[str, Any]) -> None:
    assert digest_of(job(**change)) != digest_of(job())
    annotations = stateful(job(**change))["spec"]["template"]["metadata"]["annotations"]
    assert annotations["tlt.dev/template"] == digest_of(job(**change))


def test_what_does_not_concern_the_pods_leaves_the_digest() -> None:
    assert digest_of(job(training={"maxTrainers": 3}, suspend=True)) == digest_of(job())
    two = job(claim={**CLAIM, "count": 2})
    assert (
        claim_template(two, pool_of(two))["metadata"]["name"]
        != claim_template(job(), pool_of(job()))["metadata"]["name"]
    )
