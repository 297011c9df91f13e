"""The lighthouse: where trainers of one job learn of each other.

One per job, in the job's namespace and deleted with it: what it knows concerns one job, and NetworkPolicies can say
so.  It has no token, no volume and no right to anything, keeps nothing, and may be gone at any time; a trainer that
hears nothing of it trains alone.
"""

from __future__ import annotations

from tlt_operator.api.job import Job
from tlt_operator.api.names import COMPONENT_LABEL, JOB_LABEL, Component, lighthouse_name
from tlt_operator.config import Settings
from tlt_operator.manifests.common import CONTAINER_SECURITY, POD_SECURITY, Manifest, metadata
from tlt_workloads.contract import LIGHTHOUSE_PORT


def may_form_teams(job: Job, *, settings: Settings) -> bool:
    """Whether two trainers of the job can ever run at once."""
    pool = job.spec.rollout.pool
    return settings.teams and job.spec.training.max_trainers > 1 and (pool is None or pool.replicas > 1)


def lighthouse_url(job: Job) -> str:
    """URL for the job's trainers."""
    return f"http://{lighthouse_name(job.name)}.{job.namespace}.svc:{LIGHTHOUSE_PORT}"


def lighthouse_objects(job: Job, *, settings: Settings) -> tuple[Manifest, ...]:
    """Everything that the lighthouse of a job needs, in the order of creation."""
    return (_service(job), _deployment(job, settings=settings))


def _service(job: Job) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(job, lighthouse_name(job.name), component=Component.LIGHTHOUSE),
        "spec": {
            "selector": _selector(job),
            "ports": [{"name": "grpc", "port": LIGHTHOUSE_PORT, "targetPort": "grpc"}],
        },
    }


def _deployment(job: Job, *, settings: Settings) -> Manifest:
    template = job.spec.training.template
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(job, lighthouse_name(job.name), component=Component.LIGHTHOUSE),
        "spec": {
            "replicas": 1,  # two would introduce half of the trainers each
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
                            "name": "lighthouse",
                            "image": template.image or settings.workloads_image,
                            "imagePullPolicy": template.image_pull_policy or settings.image_pull_policy,
                            "command": ["python", "-m", "tlt_workloads.trainer.team.lighthouse"],
                            "ports": [{"name": "grpc", "containerPort": LIGHTHOUSE_PORT}],
                            "readinessProbe": {"tcpSocket": {"port": "grpc"}, "periodSeconds": 2},
                            "resources": {"requests": {"cpu": "10m", "memory": "48Mi"}, "limits": {"memory": "256Mi"}},
                            "securityContext": dict(CONTAINER_SECURITY),
                        }
                    ],
                },
            },
        },
    }


def _selector(job: Job) -> dict[str, str]:
    return {JOB_LABEL: job.name, COMPONENT_LABEL: Component.LIGHTHOUSE.value}
