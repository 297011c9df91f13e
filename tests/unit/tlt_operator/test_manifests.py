"""The objects that the operator makes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.support.fake_rollout import manifest
from tests.support.snapshots import make_job, make_pod
from tlt_operator.api.job import Job
from tlt_operator.api.pod import DeviceClaim
from tlt_operator.api.token import Tokens
from tlt_operator.config import Settings
from tlt_operator.manifests.gateway import gateway_objects, gateway_url
from tlt_operator.manifests.lighthouse import lighthouse_objects, lighthouse_url, may_form_teams
from tlt_operator.manifests.revision import drafter_revision
from tlt_operator.manifests.token_secret import token_secret
from tlt_operator.manifests.trainer_pod import trainer_pod
from tlt_operator.placement.strategy import Site
from tlt_workloads.contract import TrainerConfig, decode
from tlt_workloads.gateway.settings import read_settings
from tlt_workloads.trainer.settings import settings_from_environment

SETTINGS = Settings(workloads_image="workloads:1", operator_image="operator:1", teams=True)


def trainer(job: Job | None = None, *, settings: Settings = SETTINGS, **pod: Any) -> dict[str, Any]:
    return trainer_pod(job or make_job(), make_pod("rollout-0", **pod), settings=settings, site=Site())


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container["env"]}


def test_trainer_shares_every_device_of_the_rollout_pod_by_the_claims_own_name() -> None:
    claims = (
        DeviceClaim(name="gpu", claim="rollout-0-gpu-x7", requests=("g0", "g1")),
        DeviceClaim(name="nic", claim="nic-1"),
    )
    spec = trainer(claims=claims)["spec"]
    assert spec["resourceClaims"] == [
        {"name": "gpu", "resourceClaimName": "rollout-0-gpu-x7"},
        {"name": "nic", "resourceClaimName": "nic-1"},
    ]
    assert spec["containers"][0]["resources"]["claims"] == [
        {"name": "gpu", "request": "g0"},
        {"name": "gpu", "request": "g1"},
        {"name": "nic"},
    ]
    assert "nodeName" not in spec


def test_trainer_has_no_rights_and_few_needs() -> None:
    spec = trainer()["spec"]
    container = spec["containers"][0]
    assert spec["automountServiceAccountToken"] is False
    assert spec["restartPolicy"] == "Never"
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["requests"]["cpu"] == "10m"
    assert "limits" not in container["resources"]
    assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]


@pytest.mark.parametrize(("grace", "seconds"), [("0s", 3), ("2s", 5), ("2500ms", 5)])
def test_trainer_always_gets_time_to_end(grace: str, seconds: int) -> None:
    assert trainer(make_job(reclaim={"grace": grace}))["spec"]["terminationGracePeriodSeconds"] == seconds


def test_trainer_is_told_everything_by_the_contract() -> None:
    job = make_job(drafter={"draftVocabSize": 4096, "speculativeTokens": 5}, training={"keepWarm": "1m"})
    container = trainer(job)["spec"]["containers"][0]
    found = environment(container)
    assert container["command"] == ["python", "-m", "tlt_workloads.trainer"]
    assert container["image"] == "workloads:1"
    assert found["TLT_JOB"] == "default/demo"
    assert found["TLT_ROLLOUT_URL"] == "http://10.0.0.1:8000"
    assert found["TLT_STORE_URL"] == "file:///tlt"
    assert found["TLT_TOKEN_FILE"] == "/var/run/secrets/tlt/token"
    config = decode(TrainerConfig, json.loads(found["TLT_TRAINER_CONFIG"]))
    assert config.target_model == "/models/policy"
    assert (config.draft_vocab_size, config.draft_length, config.keep_warm) == (4096, 5, 60.0)
    order = [item["name"] for item in container["env"]]
    assert order.index("TLT_POD_NAME") < order.index("TLT_HOLDER")
    assert order.index("TLT_POD_UID") < order.index("TLT_HOLDER")
    assert found["TLT_HOLDER"] == "$(TLT_POD_NAME)/$(TLT_POD_UID)"


def test_store_is_mounted_where_its_url_points() -> None:
    spec = trainer()["spec"]
    assert {"name": "store", "persistentVolumeClaim": {"claimName": "tlt"}} in spec["volumes"]
    assert {"name": "store", "mountPath": "/tlt"} in spec["containers"][0]["volumeMounts"]
    remote = trainer(make_job(store={"url": "s3://bucket/x", "secretRef": {"name": "keys"}}))["spec"]
    assert all(volume["name"] != "store" for volume in remote["volumes"])
    assert remote["containers"][0]["envFrom"] == [{"secretRef": {"name": "keys"}}]


def test_template_and_settings_shape_the_trainer() -> None:
    template = {
        "image": "mine:2",
        "imagePullPolicy": "Never",
        "env": [{"name": "A", "value": "b"}],
        "resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "4Gi"}},
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "x", "operator": "Exists"}],
    }
    settings = Settings(workloads_image="workloads:1", trainer_priority_class="low")
    tolerations = ({"key": "gpu", "operator": "Exists"}, {"key": "node.kubernetes.io/not-ready", "operator": "Exists"})
    spec = trainer(make_job(training={"template": template}), settings=settings, tolerations=tolerations)["spec"]
    container = spec["containers"][0]
    assert (container["image"], container["imagePullPolicy"]) == ("mine:2", "Never")
    assert environment(container)["A"] == "b"
    assert container["resources"]["requests"] == {"cpu": "10m", "memory": "2Gi"}
    assert container["resources"]["limits"] == {"memory": "4Gi"}
    assert spec["nodeSelector"] == {"pool": "gpu"}
    assert [item["key"] for item in spec["tolerations"]] == ["gpu", "x"]
    assert spec["priorityClassName"] == "low"


def test_trainer_belongs_to_the_job_and_tells_whose_device_it_shares() -> None:
    metadata = trainer()["metadata"]
    assert metadata["ownerReferences"][0]["uid"] == "job-uid"
    assert metadata["labels"]["tlt.dev/job"] == "demo"
    assert metadata["labels"]["tlt.dev/rollout-uid"] == "rollout-0-uid"
    assert metadata["annotations"]["tlt.dev/rollout-pod"] == "rollout-0"
    assert metadata["name"] == trainer()["metadata"]["name"]
    assert metadata["name"] != trainer(uid="reborn")["metadata"]["name"]


def test_template_digest_changes_with_the_pod_and_not_without() -> None:
    def digest(item: dict[str, Any]) -> str:
        return str(item["metadata"]["annotations"]["tlt.dev/template"])

    assert digest(trainer()) == digest(trainer(ready=False))
    assert digest(trainer()) != digest(trainer(make_job(training={"learningRate": 0.1})))


def test_ipv6_address_is_bracketed() -> None:
    assert environment(trainer(ip="fd00::1")["spec"]["containers"][0])["TLT_ROLLOUT_URL"] == "http://[fd00::1]:8000"


def test_gateway_resolves_the_pods_of_the_job() -> None:
    rollout, service, deployment = gateway_objects(make_job(port=9000), settings=SETTINGS)
    assert rollout["spec"]["clusterIP"] == "None"
    assert rollout["spec"]["publishNotReadyAddresses"] is False
    assert rollout["spec"]["selector"] == {"app": "rollout"}
    template = deployment["spec"]["template"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    container = template["spec"]["containers"][0]
    assert container["image"] == "operator:1"
    assert environment(container)["TLT_GATEWAY_BACKEND"] == "demo-rollout.default.svc:9000"
    assert template["spec"]["automountServiceAccountToken"] is False
    assert gateway_url(make_job()) == "http://demo-gateway.default.svc:8000"


def test_gateways_pods_are_never_taken_for_rollout_pods() -> None:
    deployment = gateway_objects(make_job(), settings=SETTINGS)[2]
    assert "app" not in deployment["spec"]["template"]["metadata"]["labels"]


def test_token_secret() -> None:
    secret = token_secret(make_job(), Tokens(current="abc", changed_at=0.0))
    assert secret["metadata"]["name"] == "demo-tlt-control"
    assert secret["data"] == {"token": "YWJj"}
    assert secret["metadata"]["annotations"] == {"tlt.dev/token-changed-at": "1970-01-01T00:00:00Z"}


def test_drafter_revision_carries_the_manifest() -> None:
    made = drafter_revision(make_job(), manifest("demo", 2, parent=1.4), url="file:///x")
    assert made["metadata"]["name"] == "demo-r2"
    assert made["spec"]["parent"] == "demo-r1"
    assert made["spec"]["policyVersions"] == {"first": 0, "last": 2}
    assert made["spec"]["evaluation"]["parentAcceptLength"] == 1.4
    first = drafter_revision(make_job(), manifest("demo", 1), url="file:///x")
    assert "parent" not in first["spec"]
    assert "parentAcceptLength" not in first["spec"]["evaluation"]


def resolved(manifest: dict[str, Any]) -> dict[str, str]:
    """The environment of a pod's container as the kubelet would fill it in."""
    found: dict[str, str] = {}
    for item in manifest["spec"]["containers"][0]["env"]:
        value = item.get("value")
        if value is None:
            fields = {"metadata.name": "trainer-1", "metadata.uid": "uid-1", "status.podIP": "10.0.0.9"}
            value = fields[item["valueFrom"]["fieldRef"]["fieldPath"]]
        for name, known in found.items():
            value = value.replace(f"$({name})", known)
        found[item["name"]] = value
    return found


def test_trainer_understands_its_environment() -> None:
    settings = settings_from_environment(resolved(trainer()))
    assert settings.holder == "trainer-1/uid-1"
    assert settings.rollout_url == "http://10.0.0.1:8000"
    assert settings.config.target_model == "/models/policy"


def test_trainers_are_told_of_the_lighthouse_where_there_can_be_two() -> None:
    settings = settings_from_environment(resolved(trainer()))
    assert settings.lighthouse_url == lighthouse_url(make_job()) == "http://demo-lighthouse.default.svc:8003"
    assert settings.address == "10.0.0.9"
    alone = settings_from_environment(resolved(trainer(make_job(training={"maxTrainers": 1}))))
    assert alone.lighthouse_url is None


def test_a_lighthouse_can_do_nothing_but_answer() -> None:
    service, deployment = lighthouse_objects(make_job(), settings=SETTINGS)
    template = deployment["spec"]["template"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert "app" not in template["metadata"]["labels"]
    assert template["spec"]["automountServiceAccountToken"] is False
    assert "volumes" not in template["spec"], "it holds no token"
    (container,) = template["spec"]["containers"]
    assert "env" not in container
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert service["spec"]["ports"][0]["port"] == container["ports"][0]["containerPort"] == 8003


@pytest.mark.parametrize(("options", "possible"), [({}, True), ({"maxTrainers": 1}, False), ({"maxTrainers": 2}, True)])
def test_a_job_of_one_trainer_needs_no_lighthouse(options: dict[str, int], possible: bool) -> None:
    assert may_form_teams(make_job(training=options), settings=SETTINGS) is possible
    assert not may_form_teams(make_job(training=options), settings=replace(SETTINGS, teams=False))


def test_gateway_understands_its_environment() -> None:
    deployment = gateway_objects(make_job(gateway={"maxConcurrencyPerPod": 8}), settings=SETTINGS)[2]
    settings = read_settings(resolved(deployment["spec"]["template"]))
    assert settings.backend == "demo-rollout.default.svc:8000"
    assert settings.concurrency == 8
