"""The job's objects: token, NetworkPolicies, Services, gateway, lighthouse, and what a pool needs."""

from __future__ import annotations

import secrets

from tlt_operator.api.job import Job
from tlt_operator.api.names import (
    gateway_name,
    gateway_policy_name,
    lighthouse_name,
    rollout_service_name,
    token_secret_name,
)
from tlt_operator.api.token import Tokens, parse_tokens
from tlt_operator.clients.kube import DEPLOYMENT, NETWORK_POLICY, SECRET, SERVICE, Kind, Kubernetes, Object, kind_of
from tlt_operator.config import Settings
from tlt_operator.errors import ConflictError, InvalidSettingsError, InvalidSpecError, RefusedError
from tlt_operator.manifests.gateway import gateway_objects, rollout_service
from tlt_operator.manifests.lighthouse import lighthouse_objects, may_form_teams
from tlt_operator.manifests.network_policy import gateway_policy, lighthouse_policy, trainer_policy
from tlt_operator.manifests.pool import disruption_budget
from tlt_operator.manifests.token_secret import token_secret, with_tokens
from tlt_operator.plan.rotation import RotationRule, next_tokens


async def ensure_token(kube: Kubernetes, job: Job, *, now: float) -> Object:
    """The Secret with the token of the job's control routes; made when there is none."""
    found = await kube.find(SECRET, namespace=job.namespace, name=token_secret_name(job.name))
    if found is not None:
        return found
    first = Tokens(current=secrets.token_hex(32), changed_at=now, request=job.token_request)
    try:
        return await kube.create(token_secret(job, first))
    except ConflictError:  # another operator was faster
        return await kube.get(SECRET, namespace=job.namespace, name=token_secret_name(job.name))


async def rotate_token(kube: Kubernetes, job: Job, secret: Object, *, now: float, rule: RotationRule) -> Tokens:
    """Takes the step of a rotation that is due, if any.

    Raises:
        InvalidSpecError: the Secret cannot be used.
        ConflictError: somebody else wrote to it since it was read.
    """
    before = parse_tokens(secret)
    after = next_tokens(before, request=job.token_request, now=now, rule=rule, fresh=secrets.token_hex(32))
    if after != before:
        await kube.replace({"apiVersion": SECRET.api_version, "kind": SECRET.kind, **with_tokens(secret, after)})
    return after


async def ensure_gateway(kube: Kubernetes, job: Job, *, settings: Settings) -> dict[str, str]:
    """Applies the gateway and its Services, or takes them away when the job wants none.

    Answers what somebody else had changed and is set back now: object -> who and which field.

    Raises:
        InvalidSettingsError: the operator does not know its own image.
        InvalidSpecError: the selector cannot become a Service.
        RefusedError: an object of that name exists and is not of this job.
    """
    if not job.spec.gateway.enabled:
        await _remove(kube, DEPLOYMENT, job, gateway_name(job.name))
        await _remove(kube, SERVICE, job, gateway_name(job.name))
        if job.spec.rollout.pool is None:
            await _remove(kube, SERVICE, job, rollout_service_name(job.name))
        return {}
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
    changed = [await _apply(kube, job, body) for body in gateway_objects(job, settings=settings)]
    return {name: conflict for name, conflict in changed if conflict}


async def ensure_lighthouse(kube: Kubernetes, job: Job, *, rollout_pods: int, settings: Settings) -> dict[str, str]:
    """Applies the lighthouse where two trainers can run now, or takes it away; as `ensure_gateway`.

    Args:
        kube: the API server.
        job: whose it is.
        rollout_pods: that there are, each of which can have a trainer.
        settings: of the operator.
    """
    image = job.spec.training.template.image or settings.workloads_image
    if not may_form_teams(job, settings=settings) or job.spec.suspend or rollout_pods < 2 or not image:
        await _remove(kube, DEPLOYMENT, job, lighthouse_name(job.name))
        await _remove(kube, SERVICE, job, lighthouse_name(job.name))
        return {}
    changed = [await _apply(kube, job, body) for body in lighthouse_objects(job, settings=settings)]
    return {name: conflict for name, conflict in changed if conflict}


async def _apply(kube: Kubernetes, job: Job, body: Object) -> tuple[str, str]:
    """Applies one object: its name, and what stood in the way (empty when nothing did)."""
    _, conflict = await apply_own(kube, job, body)
    return f"{body['kind']} {body['metadata']['name']}", conflict


async def apply_own(kube: Kubernetes, job: Job, body: Object) -> tuple[Object, str]:
    """Applies an object of the job: as it is now, and what stood in the way (empty when nothing did).

    Raises:
        RefusedError: an object of that name exists and is not of this job.
    """
    kind, name = kind_of(body), body["metadata"]["name"]
    try:
        return await kube.apply(body, force=False), ""
    except ConflictError as conflict:
        found = await kube.find(kind, namespace=job.namespace, name=name)
        if found is not None and not is_of(job, found):
            raise RefusedError(f"{kind.kind} {name} exists and is not of this job; {_way_out(job)}") from conflict
        return await kube.apply(body), str(conflict)


def _way_out(job: Job) -> str:
    if job.spec.rollout.pool is not None:
        return "rename it, or make the job by another name"
    return "rename it, or set spec.gateway.enabled to false"


async def ensure_pool(kube: Kubernetes, job: Job) -> dict[str, str]:
    """Applies what stands around the StatefulSet of a pool, its Service and its disruption budget; as `ensure_gateway`.

    Raises:
        RefusedError: an object of that name exists and is not of this job.
    """
    if job.spec.rollout.pool is None:
        return {}
    changed = [await _apply(kube, job, body) for body in (rollout_service(job), disruption_budget(job))]
    return {name: conflict for name, conflict in changed if conflict}


async def ensure_network_policies(kube: Kubernetes, job: Job, *, settings: Settings) -> dict[str, str]:
    """Applies the policies of trainers, lighthouse and gateway where the settings ask for them; as `ensure_gateway`."""
    if not settings.network_policies:
        return {}
    wanted = [trainer_policy(job, settings=settings)]
    if job.spec.gateway.enabled:
        wanted.append(gateway_policy(job, settings=settings))
    else:
        await _remove(kube, NETWORK_POLICY, job, gateway_policy_name(job.name))
    if may_form_teams(job, settings=settings):
        wanted.append(lighthouse_policy(job))
    else:
        await _remove(kube, NETWORK_POLICY, job, lighthouse_name(job.name))
    changed = [await _apply(kube, job, body) for body in wanted]
    return {name: conflict for name, conflict in changed if conflict}


async def _remove(kube: Kubernetes, kind: Kind, job: Job, name: str) -> None:
    found = await kube.find(kind, namespace=job.namespace, name=name)
    if found is not None and is_of(job, found):
        await kube.delete(kind, namespace=job.namespace, name=name, uid=found["metadata"]["uid"])


def is_of(job: Job, found: Object) -> bool:
    """Whether an object belongs to the job and is deleted with it."""
    return any(owner["uid"] == job.uid for owner in found["metadata"].get("ownerReferences") or ())
