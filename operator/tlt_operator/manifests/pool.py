"""The pool: rollout pods of the operator's own, as a StatefulSet with one device claim for each pod.

Why the claims come from a template, and why pods are replaced by the operator instead of the StatefulSet's controller:
docs/adr/0013-pool.md.
"""

from __future__ import annotations

from typing import Any

from tlt_operator.api.job import Job, Pool
from tlt_operator.api.names import (
    COMPONENT_LABEL,
    FIELD_MANAGER,
    JOB_LABEL,
    MANAGED_BY,
    TEMPLATE_ANNOTATION,
    Component,
    pool_name,
    rollout_service_name,
)
from tlt_operator.config import Settings
from tlt_operator.manifests.common import (
    CONTAINER_SECURITY,
    POD_SECURITY,
    Manifest,
    digest,
    metadata,
    store_volume,
    token_volume,
)
from tlt_workloads.contract import JOB_VARIABLE, POD_NAME_VARIABLE, STORE_URL_VARIABLE, MemoryMode

CONTAINER = "vllm"
CLAIM = "gpu"  # the claim's name within the pod; its requests are gpu-0, gpu-1, ...
LEAVE = 5  # seconds between a pod's end of service in DNS and the stop of its server
STOP = 25  # seconds that the server then gets
SHARED_MEMORY = "1Gi"  # vLLM's message queue takes 160 MiB of it


def pool_labels(job: Job) -> dict[str, str]:
    """The labels of the pool's pods, by which StatefulSet, Service, budget and operator find them."""
    return {JOB_LABEL: job.name, COMPONENT_LABEL: Component.ROLLOUT.value}


def pool_selector(job: Job) -> str:
    """The same as a label selector in text."""
    return ",".join(f"{name}={value}" for name, value in pool_labels(job).items())


def claim_template(job: Job, pool: Pool) -> Manifest:
    """The ResourceClaimTemplate, one request for each device, so that a trainer can share a part of them.

    A template cannot be changed, so its name says what is in it, and other devices come by another template.
    """
    spec = _claim_spec(pool)
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": metadata(job, claim_template_name(job, pool), component=Component.ROLLOUT),
        "spec": {"spec": spec},
    }


def claim_template_name(job: Job, pool: Pool) -> str:
    """Name of the ResourceClaimTemplate."""
    return f"{pool_name(job.name)}-{digest(_claim_spec(pool))[:8]}"


def pool_set(job: Job, pool: Pool, *, replicas: int, settings: Settings) -> Manifest:
    """The StatefulSet.  `replicas` is what it is to keep now, which lags behind the job's wish on the way down."""
    spec = _pod_spec(job, pool, settings=settings)
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata(job, pool_name(job.name), component=Component.ROLLOUT),
        "spec": {
            "serviceName": rollout_service_name(job.name),
            "replicas": replicas,
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            "selector": {"matchLabels": pool_labels(job)},
            "template": {
                "metadata": {
                    "labels": {MANAGED_BY: FIELD_MANAGER, **pool_labels(job)},
                    "annotations": {
                        TEMPLATE_ANNOTATION: digest(spec),
                        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",  # it may generate
                    },
                },
                "spec": spec,
            },
        },
    }


def pool_digest(job: Job, pool: Pool, *, settings: Settings) -> str:
    """What `pool_set` writes into the template annotation."""
    return digest(_pod_spec(job, pool, settings=settings))


def disruption_budget(job: Job) -> Manifest:
    """At most one pod at a time is evicted by drains and the like, and one that is not ready does not hold them up."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(job, pool_name(job.name), component=Component.ROLLOUT),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": pool_labels(job)},
        },
    }


def _claim_spec(pool: Pool) -> Manifest:
    exactly: Manifest = {
        "deviceClassName": pool.claim.device_class_name,
        "allocationMode": "ExactCount",
        "count": 1,
    }
    if pool.claim.selectors:
        exactly["selectors"] = [{"cel": dict(item.cel)} for item in pool.claim.selectors]
    requests = [{"name": f"{CLAIM}-{index}", "exactly": exactly} for index in range(pool.claim.count)]
    return {"devices": {"requests": requests}}


def _pod_spec(job: Job, pool: Pool, *, settings: Settings) -> Manifest:
    template = pool.template
    token, token_mount, token_variable = token_volume(job)
    volumes: list[Manifest] = [
        token,
        {"name": "tmp", "emptyDir": {}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY}},
    ]
    mounts: list[Manifest] = [
        token_mount,
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - in the container
        {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 - in the container
    ]
    store = store_volume(job)
    if store is not None:
        volumes.append(store[0])
        mounts.append(store[1])
    container: Manifest = {
        "name": CONTAINER,
        "image": template.image,
        "imagePullPolicy": template.image_pull_policy or settings.image_pull_policy,
        "command": ["python", "-m", "tlt_workloads.rollout.serve"],
        "args": _arguments(job, pool),
        "env": _environment(job, pool, token_variable),
        "ports": [{"name": "http", "containerPort": job.spec.port}],
        **_probes(),
        "lifecycle": {"preStop": {"sleep": {"seconds": LEAVE}}},
        "resources": _resources(pool),
        "securityContext": dict(CONTAINER_SECURITY),
        "terminationMessagePolicy": "FallbackToLogsOnError",  # what it died of shows in the job's condition
        "volumeMounts": mounts,
    }
    if job.spec.store.secret_ref is not None:
        container["envFrom"] = [{"secretRef": {"name": job.spec.store.secret_ref.name}}]
    spec: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": LEAVE + STOP,
        "securityContext": dict(POD_SECURITY),
        "resourceClaims": [{"name": CLAIM, "resourceClaimTemplateName": claim_template_name(job, pool)}],
        "containers": [container],
        "volumes": volumes,
    }
    if template.tolerations:
        spec["tolerations"] = [dict(item) for item in template.tolerations]
    if template.node_selector:
        spec["nodeSelector"] = dict(template.node_selector)
    if template.priority_class_name:
        spec["priorityClassName"] = template.priority_class_name
    return spec


def _arguments(job: Job, pool: Pool) -> list[str]:
    """The job's own facts first: of an argument given twice the server takes the last."""
    spec = job.spec
    found = [
        f"--model={spec.target.model}",
        f"--port={spec.port}",
        f"--speculative-tokens={spec.drafter.speculative_tokens}",
        f"--draft-vocab-size={spec.drafter.draft_vocab_size}",
    ]
    if spec.target.served_name is not None:
        found.append(f"--served-model-name={spec.target.served_name}")
    if spec.idle.memory is MemoryMode.SLEEP:
        found.append("--enable-sleep-mode")
    return [*found, *pool.template.args]


def _environment(job: Job, pool: Pool, token_variable: Manifest) -> list[Manifest]:
    own: list[Manifest] = [
        {"name": POD_NAME_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": JOB_VARIABLE, "value": job.key},
        {"name": STORE_URL_VARIABLE, "value": job.spec.store.url},
        token_variable,
        {"name": "HOME", "value": "/tmp"},  # noqa: S108 - in the container; libraries cache below it
    ]
    chosen = {item["name"]: dict(item) for item in pool.template.env}
    return [*chosen.values(), *(item for item in own if item["name"] not in chosen)]


def _probes() -> Manifest:
    """A model may take most of an hour to load; after that, minutes without an answer are the engine's end."""
    health = {"httpGet": {"path": "/health", "port": "http"}}
    return {
        "startupProbe": {**health, "periodSeconds": 2, "timeoutSeconds": 10, "failureThreshold": 1800},
        "readinessProbe": {**health, "periodSeconds": 2, "timeoutSeconds": 10, "failureThreshold": 6},
        "livenessProbe": {**health, "periodSeconds": 15, "timeoutSeconds": 30, "failureThreshold": 8},
    }


def _resources(pool: Pool) -> Manifest:
    """The container uses the whole claim.  Naming each request would say the same, and server-side apply cannot:
    it keeps the list of claims by their names alone (ResourceRequirements.claims, listMapKey name)."""
    chosen: dict[str, Any] = {key: dict(value) for key, value in pool.template.resources.items()}
    return {**chosen, "claims": [{"name": CLAIM}]}
