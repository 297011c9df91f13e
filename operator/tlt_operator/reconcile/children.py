"""The job's objects: the token, the Services, the gateway, and what a pool needs."""

from __future__ import annotations

import base64
import secrets

from tlt_operator.api.job import Job
from tlt_operator.api.names import TOKEN_KEY, gateway_name, rollout_service_name, token_secret_name
from tlt_operator.clients.kube import CLAIM_TEMPLATE, DEPLOYMENT, SECRET, SERVICE, Kind, Kubernetes, Object
from tlt_operator.config import Settings
from tlt_operator.errors import ConflictError, InvalidSettingsError, InvalidSpecError
from tlt_operator.manifests.gateway import gateway_objects, rollout_service
from tlt_operator.manifests.pool import (
    claim_template,
    claim_template_name,
    disruption_budget,
    pool_selector,
    pool_set,
)
from tlt_operator.manifests.token_secret import token_secret


async def ensure_token(kube: Kubernetes, job: Job) -> str:
    """The token of the job's control routes; made when there is none, and never replaced.

    Raises:
        InvalidSpecError: a Secret of that name exists without the key.
    """
    name = token_secret_name(job.name)
    found = await kube.find(SECRET, namespace=job.namespace, name=name)
    if found is None:
        token = secrets.token_hex(32)
        try:
            await kube.create(token_secret(job, token=token))
            return token
        except ConflictError:  # another operator was faster
            found = await kube.get(SECRET, namespace=job.namespace, name=name)
    encoded = (found.get("data") or {}).get(TOKEN_KEY)
    if not encoded:
        raise InvalidSpecError(f"Secret {name}", f"it has no key {TOKEN_KEY!r}; delete it, and it is made anew")
    return base64.b64decode(encoded).decode().strip()


async def ensure_gateway(kube: Kubernetes, job: Job, *, settings: Settings) -> None:
    """Applies the gateway and its Service, or takes them away when the job wants none.

    Raises:
        InvalidSettingsError: the operator does not know its own image.
        InvalidSpecError: the selector cannot become a Service.
    """
    if not job.spec.gateway.enabled:
        await _remove(kube, DEPLOYMENT, job, gateway_name(job.name))
        await _remove(kube, SERVICE, job, gateway_name(job.name))
        if job.spec.rollout.pool is None:
            await _remove(kube, SERVICE, job, rollout_service_name(job.name))
        return
    if not settings.operator_image:
        raise InvalidSettingsError(
            "TLT_OPERATOR_IMAGE: the operator needs it to start gateways; set it, or spec.gateway.enabled to false"
        )
    selector = job.spec.rollout.selector
    if selector is not None and not selector.match_labels:
        raise InvalidSpecError(
            "spec.rollout.selector.matchLabels",
            "the gateway finds the pods by a Service, which needs labels here; or set spec.gateway.enabled to false",
        )
    for body in gateway_objects(job, settings=settings):
        await kube.apply(body)


async def ensure_pool(kube: Kubernetes, job: Job) -> None:
    """Applies what stands around the StatefulSet of a pool: its Service and its disruption budget."""
    if job.spec.rollout.pool is None:
        return
    await kube.apply(rollout_service(job))
    await kube.apply(disruption_budget(job))


async def apply_pool_set(kube: Kubernetes, job: Job, *, replicas: int, settings: Settings) -> Object:
    """Applies the StatefulSet and the template of its claims, and deletes templates that it no longer names.

    Returns:
        the StatefulSet as it is now.

    Raises:
        InvalidSpecError: the job has no pool.
    """
    pool = job.spec.rollout.pool
    if pool is None:
        raise InvalidSpecError("spec.rollout.pool", "it is not set")
    await kube.apply(claim_template(job, pool))
    applied = await kube.apply(pool_set(job, pool, replicas=replicas, settings=settings))
    wanted = claim_template_name(job, pool)
    for found in await kube.list_all(CLAIM_TEMPLATE, namespace=job.namespace, labels=pool_selector(job)):
        if found["metadata"]["name"] != wanted and _is_owned(found, job):
            metadata = found["metadata"]
            await kube.delete(CLAIM_TEMPLATE, namespace=job.namespace, name=metadata["name"], uid=metadata["uid"])
    return applied


def _is_owned(body: Object, job: Job) -> bool:
    return any(owner["uid"] == job.uid for owner in body["metadata"].get("ownerReferences") or ())


async def _remove(kube: Kubernetes, kind: Kind, job: Job, name: str) -> None:
    found = await kube.find(kind, namespace=job.namespace, name=name)
    if found is not None and _is_owned(found, job):
        await kube.delete(kind, namespace=job.namespace, name=name, uid=found["metadata"]["uid"])
