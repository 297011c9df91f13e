"""Who may speak with trainers and gateways."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.support.snapshots import make_job, make_pod
from tlt_operator.api.job import Job, Requirement, Selector
from tlt_operator.config import Peers, Settings
from tlt_operator.errors import InvalidSettingsError
from tlt_operator.manifests.gateway import gateway_objects
from tlt_operator.manifests.lighthouse import lighthouse_objects
from tlt_operator.manifests.network_policy import gateway_policy, lighthouse_policy, trainer_policy
from tlt_operator.manifests.trainer_pod import trainer_pod
from tlt_operator.placement.strategy import Site

OPERATOR = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "tlt-system"}}}
STORE = {"ipBlock": {"cidr": "10.1.0.0/16"}}
SETTINGS = Settings(
    network_policies=True,
    operator_peers=Peers((OPERATOR,)),
    operator_image="operator",
    workloads_image="workloads",
    teams=True,
)


def ports(rule: dict[str, Any]) -> list[int]:
    return [item["port"] for item in rule["ports"]]


def on_object_store(job: Job) -> Job:
    store = dataclasses.replace(job.spec.store, url="s3://bucket/x", volume_claim=None)
    return dataclasses.replace(job, spec=dataclasses.replace(job.spec, store=store))


def test_each_policy_selects_its_pods_and_is_deleted_with_the_job() -> None:
    job = make_job()
    trainer = trainer_pod(job, make_pod("rollout-0"), settings=SETTINGS, site=Site())
    deployment = gateway_objects(job, settings=SETTINGS)[-1]
    lighthouse = lighthouse_objects(job, settings=SETTINGS)[-1]
    pods = {
        "trainer": trainer["metadata"]["labels"],
        "gateway": deployment["spec"]["template"]["metadata"]["labels"],
        "lighthouse": lighthouse["spec"]["template"]["metadata"]["labels"],
    }
    policies = {
        "trainer": trainer_policy(job, settings=SETTINGS),
        "gateway": gateway_policy(job, settings=SETTINGS),
        "lighthouse": lighthouse_policy(job),
    }
    for part, body in policies.items():
        assert body["metadata"]["ownerReferences"][0]["uid"] == job.uid
        assert body["spec"]["policyTypes"] == ["Ingress", "Egress"]
        wanted = body["spec"]["podSelector"]["matchLabels"].items()
        assert [name for name, labels in pods.items() if wanted <= labels.items()] == [part]


ALONE = {"maxTrainers": 1}


def test_a_trainer_on_a_volume_reaches_its_rollout_pods_and_the_resolver_only() -> None:
    job = make_job(training=ALONE)
    spec = trainer_policy(job, settings=SETTINGS)["spec"]
    (rule,) = spec["ingress"]
    assert (rule["from"], ports(rule)) == ([OPERATOR], [8001])
    pods, names = spec["egress"]
    assert job.spec.rollout.selector is not None
    assert pods["to"] == [{"podSelector": {"matchLabels": dict(job.spec.rollout.selector.match_labels)}}]
    assert ports(pods) == [job.spec.port]
    assert ports(names) == [53, 53]


def test_an_object_store_is_reached_where_it_is_said_to_be() -> None:
    job = on_object_store(make_job(training=ALONE))
    assert trainer_policy(job, settings=SETTINGS)["spec"]["egress"][2:] == [
        {"ports": [{"protocol": "TCP", "port": 443}]}
    ]
    known = dataclasses.replace(SETTINGS, store_peers=Peers((STORE,)))
    assert trainer_policy(job, settings=known)["spec"]["egress"][2:] == [{"to": [STORE]}]


def test_an_operator_that_does_not_know_where_it_is_lets_nobody_in_rather_than_everybody() -> None:
    assert trainer_policy(make_job(training=ALONE), settings=Settings(network_policies=True))["spec"]["ingress"] == []


def test_trainers_speak_with_each_other_and_the_lighthouse_and_it_with_nobody_else() -> None:
    job = make_job()
    trainers = {"podSelector": {"matchLabels": {"tlt.dev/job": "demo", "tlt.dev/component": "trainer"}}}
    lighthouse = {"podSelector": {"matchLabels": {"tlt.dev/job": "demo", "tlt.dev/component": "lighthouse"}}}
    spec = trainer_policy(job, settings=SETTINGS)["spec"]
    assert (spec["ingress"][1]["from"], ports(spec["ingress"][1])) == ([trainers], [8002])
    assert [(rule["to"], ports(rule)) for rule in spec["egress"][-2:]] == [([trainers], [8002]), ([lighthouse], [8003])]
    asked = lighthouse_policy(job)["spec"]
    assert [(rule["from"], ports(rule)) for rule in asked["ingress"]] == [([trainers], [8003])]
    assert asked["egress"] == []


def test_a_gateway_is_asked_by_its_namespace_operator_and_prometheus() -> None:
    prometheus = {"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}
    settings = dataclasses.replace(SETTINGS, metrics_peers=Peers((prometheus,)))
    spec = gateway_policy(make_job(), settings=settings)["spec"]
    (rule,) = spec["ingress"]
    assert rule["from"] == [{"podSelector": {}}, OPERATOR, prometheus]
    assert ports(rule) == [8000]
    assert len(spec["egress"]) == 2


def test_a_selector_keeps_its_expressions() -> None:
    job = make_job()
    selector = Selector(
        match_expressions=(
            Requirement(key="app", operator="In", values=("a", "b")),
            Requirement(key="x", operator="Exists"),
        )
    )
    rollout = dataclasses.replace(job.spec.rollout, selector=selector)
    job = dataclasses.replace(job, spec=dataclasses.replace(job.spec, rollout=rollout))
    (peer,) = trainer_policy(job, settings=SETTINGS)["spec"]["egress"][0]["to"]
    assert peer["podSelector"] == {
        "matchExpressions": [
            {"key": "app", "operator": "In", "values": ["a", "b"]},
            {"key": "x", "operator": "Exists"},
        ]
    }


@pytest.mark.parametrize("text", ["{", "{}", '["10.0.0.0/8"]', "[{}]", "7"])
def test_peers_that_are_none_are_named(text: str) -> None:
    with pytest.raises(InvalidSettingsError, match="TLT_STORE_PEERS"):
        Settings.from_environment({"TLT_STORE_PEERS": text})


def test_settings_from_the_environment() -> None:
    found = Settings.from_environment({"TLT_STORE_PEERS": "[]", "TLT_NETWORK_POLICIES": "true"})
    assert (found.store_peers, found.network_policies) == (Peers(), True)
    with pytest.raises(InvalidSettingsError, match="TLT_NETWORK_POLICIES: expected true or false"):
        Settings.from_environment({"TLT_NETWORK_POLICIES": "yes please"})
