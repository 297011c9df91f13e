"""Who may speak with a job's trainers, lighthouse and gateway, and with whom these may speak.

Rollout pods speak with a learner that we do not know, so no policy of ours selects them.  A kubelet's probes need no
rule: the node that a pod runs on always reaches it
(https://kubernetes.io/docs/concepts/services-networking/network-policies/).
"""

from __future__ import annotations

from collections.abc import Sequence

from tlt_operator.api.job import Job, Selector
from tlt_operator.api.names import (
    COMPONENT_LABEL,
    JOB_LABEL,
    Component,
    gateway_policy_name,
    lighthouse_name,
    trainer_policy_name,
)
from tlt_operator.config import Settings
from tlt_operator.manifests.common import Manifest, metadata
from tlt_operator.manifests.lighthouse import may_form_teams
from tlt_operator.manifests.pool import pool_labels
from tlt_workloads.contract import GATEWAY_PORT, LIGHTHOUSE_PORT, TEAM_PORT, TRAINER_PORT

DNS: Manifest = {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}
OBJECT_STORE_PORT = 443


def trainer_policy(job: Job, *, settings: Settings) -> Manifest:
    """Trainers are asked by the operator and ask their rollout pods, the resolver and the store.

    Where there can be two of them they also speak with each other, and with the lighthouse.
    """
    operator = [dict(peer) for peer in settings.operator_peers.items]
    trainers, lighthouse = _own_pods(job, Component.TRAINER), _own_pods(job, Component.LIGHTHOUSE)
    team = may_form_teams(job, settings=settings)
    return _policy(
        job,
        trainer_policy_name(job.name),
        component=Component.TRAINER,
        ingress=[
            # A rule without peers would admit everybody; without a rule nobody gets in.
            *([_rule("from", operator, port=TRAINER_PORT)] if operator else []),
            *([_rule("from", trainers, port=TEAM_PORT)] if team else []),
        ],
        egress=[
            *_rollout_pods(job),
            DNS,
            *_store(job, settings=settings),
            *([_rule("to", trainers, port=TEAM_PORT), _rule("to", lighthouse, port=LIGHTHOUSE_PORT)] if team else []),
        ],
    )


def lighthouse_policy(job: Job) -> Manifest:
    """The lighthouse is asked by the job's trainers and asks nobody."""
    return _policy(
        job,
        lighthouse_name(job.name),
        component=Component.LIGHTHOUSE,
        ingress=[_rule("from", _own_pods(job, Component.TRAINER), port=LIGHTHOUSE_PORT)],
        egress=[],
    )


def gateway_policy(job: Job, *, settings: Settings) -> Manifest:
    """The gateway is asked by its namespace, where the learner is, and asks rollout pods and the resolver."""
    others = [dict(peer) for peer in (*settings.operator_peers.items, *settings.metrics_peers.items)]
    return _policy(
        job,
        gateway_policy_name(job.name),
        component=Component.GATEWAY,
        ingress=[_rule("from", [{"podSelector": {}}, *others], port=GATEWAY_PORT)],
        egress=[*_rollout_pods(job), DNS],
    )


def _policy(
    job: Job, name: str, *, component: Component, ingress: Sequence[Manifest], egress: Sequence[Manifest]
) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(job, name),
        "spec": {
            "podSelector": {"matchLabels": {JOB_LABEL: job.name, COMPONENT_LABEL: component.value}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": list(ingress),
            "egress": list(egress),
        },
    }


def _own_pods(job: Job, component: Component) -> list[Manifest]:
    return [{"podSelector": {"matchLabels": {JOB_LABEL: job.name, COMPONENT_LABEL: component.value}}}]


def _rollout_pods(job: Job) -> list[Manifest]:
    selector = job.spec.rollout.selector
    pods = {"matchLabels": pool_labels(job)} if selector is None else _label_selector(selector)
    return [_rule("to", [{"podSelector": pods}], port=job.spec.port)]


def _store(job: Job, *, settings: Settings) -> list[Manifest]:
    """A volume needs no network.  An object store is where the settings say, else at any address by TLS."""
    if job.spec.store.url.startswith("file:"):
        return []
    peers = [dict(peer) for peer in settings.store_peers.items]
    return [{"to": peers}] if peers else [{"ports": [{"protocol": "TCP", "port": OBJECT_STORE_PORT}]}]


def _label_selector(selector: Selector) -> Manifest:
    found: Manifest = {}
    if selector.match_labels:
        found["matchLabels"] = dict(selector.match_labels)
    if selector.match_expressions:
        found["matchExpressions"] = [
            {"key": item.key, "operator": item.operator, **({"values": list(item.values)} if item.values else {})}
            for item in selector.match_expressions
        ]
    return found


def _rule(direction: str, peers: Sequence[Manifest], *, port: int) -> Manifest:
    return {direction: list(peers), "ports": [{"protocol": "TCP", "port": port}]}
