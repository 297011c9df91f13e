"""The gateway and the Services: one URL for the learner, one name that resolves to all rollout pods."""

from __future__ import annotations

from tlt_operator.api.job import Job
from tlt_operator.api.names import COMPONENT_LABEL, JOB_LABEL, Component, gateway_name, rollout_service_name
from tlt_operator.config import Settings
from tlt_operator.manifests.common import CONTAINER_SECURITY, POD_SECURITY, Manifest, metadata, token_volume
from tlt_operator.manifests.pool import pool_labels
from tlt_workloads.contract import (
    GATEWAY_BACKEND_VARIABLE,
    GATEWAY_CONCURRENCY_VARIABLE,
    GATEWAY_PORT,
    JOB_VARIABLE,
)


def gateway_url(job: Job) -> str:
    """URL for the learner, inside the cluster."""
    return f"http://{gateway_name(job.name)}.{job.namespace}.svc:{GATEWAY_PORT}"


def gateway_objects(job: Job, *, settings: Settings) -> tuple[Manifest, ...]:
    """Everything that the gateway of a job needs, in the order of creation."""
    return (rollout_service(job), _gateway_service(job), _deployment(job, settings=settings))


def rollout_service(job: Job) -> Manifest:
    """The headless Service over the rollout pods, adopted ones or those of the job's pool."""
    selector = job.spec.rollout.selector
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(job, rollout_service_name(job.name), component=Component.ROLLOUT),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": False,
            "selector": dict(selector.match_labels) if selector is not None else pool_labels(job),
            "ports": [{"name": "http", "port": job.spec.port, "targetPort": job.spec.port}],
        },
    }


def _gateway_service(job: Job) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(job, gateway_name(job.name), component=Component.GATEWAY),
        "spec": {
            "selector": _selector(job),
            "ports": [{"name": "http", "port": GATEWAY_PORT, "targetPort": "http"}],
        },
    }


def _deployment(job: Job, *, settings: Settings) -> Manifest:
    token, token_mount, token_variable = token_volume(job)
    backend = f"{rollout_service_name(job.name)}.{job.namespace}.svc:{job.spec.port}"
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(job, gateway_name(job.name), component=Component.GATEWAY),
        "spec": {
            "replicas": 1,  # the gateway knows what is left of a batch, so there is one
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": _selector(job)},
            "template": {
                "metadata": {"labels": _selector(job)},
                "spec": {
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "securityContext": dict(POD_SECURITY),
                    "containers": [
                        {
                            "name": "gateway",
                            "image": settings.operator_image,
                            "imagePullPolicy": settings.image_pull_policy,
                            "command": ["python", "-m", "tlt_workloads.gateway"],
                            "env": [
                                {"name": GATEWAY_BACKEND_VARIABLE, "value": backend},
                                {
                                    "name": GATEWAY_CONCURRENCY_VARIABLE,
                                    "value": str(job.spec.gateway.max_concurrency_per_pod),
                                },
                                {"name": JOB_VARIABLE, "value": job.key},
                                token_variable,
                            ],
                            "ports": [{"name": "http", "containerPort": GATEWAY_PORT}],
                            "readinessProbe": {
                                "httpGet": {"path": "/healthz", "port": "http"},
                                "periodSeconds": 2,
                                "timeoutSeconds": 5,
                            },
                            "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
                            "securityContext": dict(CONTAINER_SECURITY),
                            "volumeMounts": [token_mount, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
                        }
                    ],
                    "volumes": [token, {"name": "tmp", "emptyDir": {}}],
                },
            },
        },
    }


def _selector(job: Job) -> dict[str, str]:
    return {JOB_LABEL: job.name, COMPONENT_LABEL: Component.GATEWAY.value}
