"""Bad input: refused by the API server, or told by a False condition that names the field, the object and the fix."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cluster.conftest import OPERATOR_IMAGE
from tests.support.cluster import Cluster
from tests.support.eventually import eventually


def job(name: str, namespace: str, **changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "target": {"model": "/opt/models/none"},
        "rollout": {"selector": {"matchLabels": {"app": name}}},
        "store": {"url": "s3://bucket/tlt"},
    }
    return {
        "apiVersion": "tlt.dev/v1alpha1",
        "kind": "TLTJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {**spec, **changes},
    }


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"rollout": {}}, ("spec.rollout.selector", "spec.rollout.pool")),
        (
            {
                "rollout": {
                    "selector": {"matchLabels": {"app": "a"}},
                    "pool": {
                        "replicas": 1,
                        "template": {"image": "rollout:1"},
                        "claim": {"deviceClassName": "gpu.example.com"},
                    },
                }
            },
            ("spec.rollout.selector", "spec.rollout.pool"),
        ),
        ({"rollout": {"selector": {"matchLabels": {}}}}, ("spec.rollout.selector",)),
        ({"store": {"url": "ftp://host/tlt"}}, ("spec.store.url", "file:///")),
        ({"store": {"url": "file:///tlt"}}, ("spec.store.volumeClaim",)),
        ({"idle": {"after": "soon"}}, ("spec.idle.after",)),
    ],
    ids=["no rollout", "two rollouts", "empty selector", "unknown scheme", "no volume claim", "no duration"],
)
def test_the_api_server_refuses_what_cannot_work(
    operator: Cluster, namespace: str, changes: dict[str, Any], names: tuple[str, ...]
) -> None:
    message = operator.refusal(job("refused", namespace, **changes))
    assert all(name in message for name in names), message


def test_a_selector_that_matches_nothing_is_named(operator: Cluster, namespace: str) -> None:
    operator.apply(job("nothing", namespace))
    condition = eventually(
        lambda: (
            found
            if (found := operator.condition("nothing", namespace, "RolloutReady")).get("reason") == "NoPodsMatch"
            else None
        ),
        deadline=60,
        every=0.5,
        reason="RolloutReady False with reason NoPodsMatch",
    )
    assert condition["status"] == "False"
    assert "spec.rollout.selector" in condition["message"]


def plain_server(name: str, namespace: str) -> dict[str, Any]:
    """A pod that answers on the rollout port and knows nothing of us, without a claim."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "server",
                    "image": OPERATOR_IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python", "-m", "http.server", "8000"],
                    "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
                }
            ],
        },
    }


def test_pods_without_plugin_and_without_claim_are_named_and_left_alone(operator: Cluster, namespace: str) -> None:
    operator.apply(plain_server("plain", namespace), job("plain", namespace))

    def condition(kind: str, reason: str) -> dict[str, Any] | None:
        found = operator.condition("plain", namespace, kind)
        return found if found.get("reason") == reason else None

    without_plugin = eventually(
        lambda: condition("RolloutReady", "PluginMissing"), deadline=120, every=0.5, reason="the missing plugin"
    )
    assert without_plugin is not None
    assert without_plugin["status"] == "False"
    assert "Pod plain" in without_plugin["message"]
    assert "tlt-operator[rollout]" in without_plugin["message"]
    without_claim = eventually(
        lambda: condition("Degraded", "NoResourceClaim"), deadline=60, every=0.5, reason="the missing claim"
    )
    assert without_claim is not None
    assert "spec.resourceClaims" in without_claim["message"]
    assert len(operator.pods_ready(namespace, "app=plain", 1)) == 1
    assert not operator.list("pods", namespace, labels="tlt.dev/component=trainer")
