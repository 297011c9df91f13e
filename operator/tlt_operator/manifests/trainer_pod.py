"""The trainer pod: a bare Pod on the devices of one rollout pod."""

from __future__ import annotations

import json
from typing import Any

from tlt_operator.api.job import Job
from tlt_operator.api.names import (
    DEVICES_ANNOTATION,
    ROLLOUT_POD_ANNOTATION,
    ROLLOUT_UID_LABEL,
    TEMPLATE_ANNOTATION,
    Component,
    trainer_name,
)
from tlt_operator.api.pod import Pod
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
from tlt_operator.manifests.lighthouse import lighthouse_url, may_form_teams
from tlt_operator.placement.choice import choose
from tlt_operator.placement.strategy import Share, Site
from tlt_workloads.contract import (
    HOLDER_VARIABLE,
    JOB_VARIABLE,
    LIGHTHOUSE_URL_VARIABLE,
    POD_ADDRESS_VARIABLE,
    POD_NAME_VARIABLE,
    ROLLOUT_URL_VARIABLE,
    STORE_URL_VARIABLE,
    TEAM_PORT,
    TRAINER_CONFIG_VARIABLE,
    TRAINER_PORT,
    TrainerConfig,
    encode,
)

CONTAINER = "trainer"
STOP_MARGIN = 3  # seconds beyond the grace period: the supervisor itself kills its worker first


def trainer_config(job: Job) -> TrainerConfig:
    """How the job's trainers learn."""
    spec = job.spec
    return TrainerConfig(
        target_model=spec.target.model,
        method=spec.drafter.method,
        draft_vocab_size=spec.drafter.draft_vocab_size,
        draft_length=spec.drafter.speculative_tokens,
        learning_rate=spec.training.learning_rate,
        max_policy_lag=spec.training.trigger.max_policy_lag,
        min_new_tokens=spec.training.trigger.least_tokens,  # the operator decides whether a window is worth it
        initial_revision=spec.drafter.initial_revision,
        keep_warm=spec.training.keep_warm,
        grace=spec.reclaim.grace,
    )


def trainer_pod(job: Job, rollout: Pod, *, settings: Settings, site: Site) -> Manifest:
    """The trainer pod for the devices of `rollout`, for which the job's placement must be ready.

    It never has a `nodeName`: that would go past the scheduler, and the pod would never be reserved on its claim.
    It asks for little CPU and has no CPU limit, so that the kernel gives contended cores to the rollout.
    """
    share = choose(job.spec.placement).share(rollout, site)
    spec = _pod_spec(job, rollout, share, settings=settings)
    annotations = {
        ROLLOUT_POD_ANNOTATION: rollout.name,
        TEMPLATE_ANNOTATION: digest(spec),
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "true",
    }
    if not share.claims and rollout.visible_devices:
        annotations[DEVICES_ANNOTATION] = ",".join(rollout.visible_devices)  # no two trainers on one device
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata(
            job,
            trainer_name(job.name, rollout_uid=rollout.uid),
            component=Component.TRAINER,
            labels={ROLLOUT_UID_LABEL: rollout.uid},
            annotations=annotations,
        ),
        "spec": spec,
    }


def _pod_spec(job: Job, rollout: Pod, share: Share, *, settings: Settings) -> Manifest:
    template = job.spec.training.template
    token, token_mount, token_variable = token_volume(job)
    volumes: list[Manifest] = [token, {"name": "tmp", "emptyDir": {}}]
    mounts: list[Manifest] = [token_mount, {"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 - in the container
    store = store_volume(job)
    if store is not None:
        volumes.append(store[0])
        mounts.append(store[1])
    container: Manifest = {
        "name": CONTAINER,
        "image": template.image or settings.workloads_image,
        "imagePullPolicy": template.image_pull_policy or settings.image_pull_policy,
        "command": ["python", "-m", "tlt_workloads.trainer"],
        "env": _environment(job, rollout, share, token_variable, settings=settings),
        "ports": [
            {"name": "control", "containerPort": TRAINER_PORT},
            *([{"name": "team", "containerPort": TEAM_PORT}] if may_form_teams(job, settings=settings) else []),
        ],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": "control"}, "periodSeconds": 2, "timeoutSeconds": 5},
        "resources": _resources(job, share, settings=settings),
        "securityContext": dict(CONTAINER_SECURITY),
        "terminationMessagePolicy": "FallbackToLogsOnError",  # what it died of shows in the job's condition
        "volumeMounts": mounts,
    }
    if job.spec.store.secret_ref is not None:
        container["envFrom"] = [{"secretRef": {"name": job.spec.store.secret_ref.name}}]
    spec: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": int(job.spec.reclaim.grace) + STOP_MARGIN,
        "securityContext": dict(POD_SECURITY),
        "containers": [container],
        "volumes": volumes,
        **share.pod,
    }
    tolerations = [*rollout_tolerations(rollout), *template.tolerations]
    if tolerations:
        spec["tolerations"] = [dict(item) for item in tolerations]
    if template.node_selector:
        spec["nodeSelector"] = dict(template.node_selector)
    priority = template.priority_class_name or settings.trainer_priority_class
    if priority:
        spec["priorityClassName"] = priority
    return spec


def rollout_tolerations(rollout: Pod) -> list[dict[str, Any]]:
    """The rollout pod's own tolerations, because the trainer must land on the same node; defaults left out."""
    defaults = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
    return [dict(item) for item in rollout.tolerations if item.get("key") not in defaults]


def _environment(
    job: Job, rollout: Pod, share: Share, token_variable: Manifest, *, settings: Settings
) -> list[Manifest]:
    config = json.dumps(encode(trainer_config(job)), sort_keys=True)
    own: list[Manifest] = [
        {"name": POD_NAME_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "TLT_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
        {"name": HOLDER_VARIABLE, "value": f"$({POD_NAME_VARIABLE})/$(TLT_POD_UID)"},
        {"name": JOB_VARIABLE, "value": job.key},
        {"name": ROLLOUT_URL_VARIABLE, "value": f"http://{_host(rollout)}:{job.spec.port}"},
        {"name": STORE_URL_VARIABLE, "value": job.spec.store.url},
        {"name": TRAINER_CONFIG_VARIABLE, "value": config},
        token_variable,
        *_team(job, settings=settings),
        {"name": "HOME", "value": "/tmp"},  # noqa: S108 - in the container; libraries cache below it
        *({"name": name, "value": value} for name, value in share.environment.items()),
    ]
    chosen = [dict(item) for item in job.spec.training.template.env]
    return [*chosen, *own]


def _team(job: Job, *, settings: Settings) -> list[Manifest]:
    """By what a trainer finds others of its job, where there can be any."""
    if not may_form_teams(job, settings=settings):
        return []
    return [
        {"name": LIGHTHOUSE_URL_VARIABLE, "value": lighthouse_url(job)},
        {"name": POD_ADDRESS_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]


def _host(rollout: Pod) -> str:
    ip = rollout.ip or ""
    return f"[{ip}]" if ":" in ip else ip


def _resources(job: Job, share: Share, *, settings: Settings) -> Manifest:
    chosen = job.spec.training.template.resources
    requests = {"cpu": settings.trainer_cpu_request, "memory": settings.trainer_memory_request}
    requests.update(chosen.get("requests") or {})
    resources: Manifest = {"requests": requests}
    if chosen.get("limits"):
        resources["limits"] = dict(chosen["limits"])
    if share.claims:
        resources["claims"] = [dict(item) for item in share.claims]
    return resources
