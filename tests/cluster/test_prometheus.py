"""A real Prometheus scrapes operator and gateway pods of the cluster; its alert follows the harvesting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.rig import COPIES
from tests.cluster.conftest import OPERATOR_NAMESPACE, WORKLOADS_IMAGE
from tests.support.cluster import Cluster
from tests.support.eventually import eventually
from tests.support.prometheus import alert_rules, prometheus
from tests.support.rollouts import LABELS, MODEL, complete, in_namespace, rollout_set, state_of, store_claim

JOB = "watched"
ALERT = "TLTGpusNotHarvested"
QUICK = {ALERT: {"window": "5s", "for": "2s"}}
OPERATOR = "app.kubernetes.io/name=tlt-operator"
GATEWAY = f"tlt.dev/job={JOB},tlt.dev/component=gateway"
TOKENS = 200
ENOUGH_COPIES = 40  # of what was recorded, so that a window does not end for want of data


def objects() -> list[dict[str, Any]]:
    """One rollout pod whose device is lent whenever it is idle."""
    job = {
        "apiVersion": "tlt.dev/v1alpha1",
        "kind": "TLTJob",
        "metadata": {"name": JOB},
        "spec": {
            "target": {"model": MODEL, "servedName": "policy"},
            "rollout": {"selector": {"matchLabels": LABELS}},
            "idle": {"after": "300ms", "minWindow": "3s", "scope": "AnyIdle"},
            "training": {"trigger": {"minNewTokens": TOKENS}},
            "store": {"url": "file:///tlt", "volumeClaim": "store"},
        },
    }
    pods = rollout_set(JOB, image=WORKLOADS_IMAGE, device_class="gpu.example.com", replicas=1)
    return [dict(store_claim()), job, *(dict(item) for item in pods)]


def address(cluster: Cluster, namespace: str, labels: str) -> str:
    """The address of the one ready pod with these labels."""
    [pod] = eventually(
        lambda: cluster.pods_ready(namespace, labels, 1), deadline=240, every=0.5, reason=f"a ready pod {labels}"
    )
    return str(pod["status"]["podIP"])


def suspend(cluster: Cluster, namespace: str, value: str) -> None:
    patch = f'{{"spec": {{"suspend": {value}}}}}'
    cluster.kubectl("patch", "tltjob", JOB, "-n", namespace, "--type=merge", "-p", patch)


def test_the_alert_fires_while_harvesting_is_suspended_and_resolves_when_it_goes_on(
    operator: Cluster, namespace: str, tmp_path: Path
) -> None:
    operator.apply(*(in_namespace(item, namespace) for item in objects()))
    rollout = address(operator, namespace, "app=rollout")
    gateway = address(operator, namespace, GATEWAY)
    token = operator.secret(f"{JOB}-tlt-control", namespace, "token")
    eventually(lambda: state_of(rollout, token).config_digest, deadline=60, every=0.5, reason="the configuration")
    complete(rollout, tokens=TOKENS, count=4)
    eventually(lambda: state_of(rollout, token).capture.shards, deadline=30, every=0.2, reason="recorded tokens")
    arguments = ("exec", "-i", "rollout-0", "-n", namespace, "--", "python", "-")
    operator.kubectl(*arguments, f"{namespace}/{JOB}", str(ENOUGH_COPIES), text=COPIES)

    target = f"{address(operator, OPERATOR_NAMESPACE, OPERATOR)}:9090"
    others = {"gateway": f"{gateway}:8000"}
    lent = f'sum(tlt_gpus{{job="{namespace}/{JOB}",state="Lent"}})'
    with prometheus(tmp_path, target=target, rules=alert_rules(QUICK), others=others) as server:

        def lent_in_peace() -> bool:
            assert server.value(lent) == 1
            assert server.value('up{job="gateway"}') == 1
            assert server.value("tlt_gateway_queued") == 0
            assert not server.firing()
            return True

        eventually(lent_in_peace, deadline=120, every=0.5, reason="a scraped lease and no alert")

        suspend(operator, namespace, "true")
        fired = eventually(lambda: server.firing().get(ALERT), deadline=60, every=0.2, reason=f"{ALERT} firing")
        assert fired["labels"]["job"] == f"{namespace}/{JOB}"

        suspend(operator, namespace, "false")
        eventually(lent_in_peace, deadline=60, every=0.2, reason="the alert resolved")
