"""What all manifests share: identity, ownership and the restricted security context."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from tlt_operator.api.job import Job
from tlt_operator.api.names import (
    API_VERSION,
    COMPONENT_LABEL,
    FIELD_MANAGER,
    JOB_KIND,
    JOB_LABEL,
    MANAGED_BY,
    Component,
    token_secret_name,
)
from tlt_workloads.contract import TOKEN_FILE_DEFAULT, TOKEN_FILE_VARIABLE

Manifest = dict[str, Any]

USER = 65532  # the unprivileged user of the images

# Restricted profile of the Pod Security Standards.
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def metadata(
    job: Job,
    name: str,
    *,
    component: Component | None = None,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Manifest:
    """Metadata of a child: in the job's namespace, selectable by job and component, deleted with the job."""
    own = {MANAGED_BY: FIELD_MANAGER, JOB_LABEL: job.name, **(labels or {})}
    if component is not None:
        own[COMPONENT_LABEL] = component.value
    found: Manifest = {"name": name, "namespace": job.namespace, "labels": own, "ownerReferences": [owner(job)]}
    if annotations:
        found["annotations"] = dict(annotations)
    return found


def owner(job: Job) -> Manifest:
    """The owner reference by which a child is deleted with its job."""
    return {
        "apiVersion": API_VERSION,
        "kind": JOB_KIND,
        "name": job.name,
        "uid": job.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def token_volume(job: Job) -> tuple[Manifest, Manifest, Manifest]:
    """Volume, mount and environment variable that bring the control token to a container.

    The whole Secret and no `subPath`: a rotation adds and removes keys, and the kubelet replaces whole mounts only.
    """
    volume = {"name": "token", "secret": {"secretName": token_secret_name(job.name), "defaultMode": 0o440}}
    mount = {"name": "token", "mountPath": str(PurePosixPath(TOKEN_FILE_DEFAULT).parent), "readOnly": True}
    return volume, mount, {"name": TOKEN_FILE_VARIABLE, "value": TOKEN_FILE_DEFAULT}


def digest(manifest: Manifest) -> str:
    """A short digest of a manifest, to see whether it changed."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]


def store_volume(job: Job) -> tuple[Manifest, Manifest] | None:
    """The volume of a `file:///` store and its mount; None for an object store."""
    store = job.spec.store
    if store.mount_path is None or store.volume_claim is None:
        return None
    volume = {"name": "store", "persistentVolumeClaim": {"claimName": store.volume_claim}}
    return volume, {"name": "store", "mountPath": store.mount_path}
