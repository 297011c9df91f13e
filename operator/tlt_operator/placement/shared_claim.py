"""SharedClaim: the trainer pod names the ResourceClaim of the rollout pod, and so gets the same devices.

The scheduler follows the claim's allocation to its node, and the kubelet prepares a claim once for all its pods
(https://github.com/kubernetes/enhancements/tree/master/keps/sig-node/4381-dra-structured-parameters).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tlt_operator.api.job import DEVICES_VARIABLE
from tlt_operator.api.names import Reason
from tlt_operator.api.pod import DeviceClaim, Pod
from tlt_operator.api.reasons import Obstacle
from tlt_operator.placement.strategy import Share, Site

NO_OTHER_DEVICES = "void"  # to NVIDIA's container runtime; images built on CUDA's say "all"


@dataclass(frozen=True, kw_only=True)
class SharedClaim:
    """Lends the named requests of the pod's claims, or with no names every request that the pod uses."""

    requests: tuple[str, ...] = ()

    def obstacle(self, pod: Pod, site: Site) -> Obstacle | None:
        """See `Strategy`.  It is asked for every pod in every pass, and mostly there is nothing in the way."""
        if not site.claims_served or site.claims_hidden is not None:
            return _without_claims(site)
        if not pod.claims:
            return _without_claim(pod)
        missing = self._missing_request(pod, site) if self.requests else None
        return missing or self._gone(pod, site)

    def ready(self, pod: Pod, site: Site) -> bool:
        """See `Strategy`: the claim of a template is made after the pod."""
        return all(claim.claim is not None for claim in self._lent(pod, site))

    def share(self, pod: Pod, site: Site) -> Share:
        """See `Strategy`."""
        lent = self._lent(pod, site)
        return Share(
            pod={"resourceClaims": [{"name": item.name, "resourceClaimName": item.claim} for item in lent]},
            environment={DEVICES_VARIABLE: NO_OTHER_DEVICES},
            claims=tuple(
                {"name": item.name, "request": request} if request else {"name": item.name}
                for item in lent
                for request in (item.requests or (None,))
            ),
        )

    def _lent(self, pod: Pod, site: Site) -> tuple[DeviceClaim, ...]:
        """The pod's claims, with the requests that a trainer may use."""
        if not self.requests:
            return pod.claims
        chosen = (
            replace(item, requests=tuple(name for name in self.requests if name in _used(item, site)))
            for item in pod.claims
        )
        return tuple(item for item in chosen if item.requests)

    def _missing_request(self, pod: Pod, site: Site) -> Obstacle | None:
        if any(item.claim is None for item in pod.claims):
            return None  # what a claim that is still to be made will have, nobody knows
        used = tuple(dict.fromkeys(name for item in pod.claims for name in _used(item, site)))
        missing = [name for name in self.requests if name not in used]
        if not missing:
            return None
        return Obstacle(
            reason=Reason.NO_SUCH_REQUEST,
            message=f"spec.placement.requests names {', '.join(missing)}, but the claims of pod {pod.name} have "
            f"{', '.join(used) or 'no requests'}; name these, or leave spec.placement.requests out to lend all of them",
        )

    def _gone(self, pod: Pod, site: Site) -> Obstacle | None:
        """A claim that is being deleted takes no further pods, and stays allocated for as long as a pod uses it."""
        for item in self._lent(pod, site):
            claim = site.claims.get(item.claim or "")
            if claim is not None and claim.deleting:
                return Obstacle(
                    reason=Reason.CLAIM_DELETED,
                    message=f"ResourceClaim {claim.name} of pod {pod.name} is being deleted and takes no further pods; "
                    f"`kubectl delete pod {pod.name}`, so that a new pod gets a new claim",
                )
        return None


def _without_claims(site: Site) -> Obstacle:
    if not site.claims_served:
        return Obstacle(
            reason=Reason.NO_DRA,
            message="The cluster has no resource.k8s.io/v1 API, so devices cannot be shared by claim; use Kubernetes "
            "1.34 or later with a DRA driver, or with a device plugin spec.placement.strategy VisibleDevices",
        )
    return Obstacle(
        reason=Reason.CLAIMS_HIDDEN,
        message="The operator may not see ResourceClaims; grant its service account list and watch on "
        f"resourceclaims of resource.k8s.io, as the chart does: {site.claims_hidden}",
    )


def _without_claim(pod: Pod) -> Obstacle:
    if pod.extended_claim is not None:
        return Obstacle(
            reason=Reason.EXTENDED_RESOURCE,
            message=f"Pod {pod.name} has its device from claim {pod.extended_claim}, which the scheduler made for an "
            "extended resource and which is not for other pods; in its template, replace the extended resource by "
            "spec.resourceClaims and resources.claims",
        )
    if pod.plugin_devices:
        return Obstacle(
            reason=Reason.NO_CLAIM,
            message=f"Pod {pod.name} has its device from a device plugin, which cannot share it; add "
            "spec.resourceClaims and resources.claims to its template, or set spec.placement.strategy to "
            "VisibleDevices (docs/how-to/choose-a-placement.md)",
        )
    return Obstacle(
        reason=Reason.NO_CLAIM,
        message=f"No container of pod {pod.name} uses a ResourceClaim; add spec.resourceClaims and "
        "resources.claims to its template",
    )


def _used(item: DeviceClaim, site: Site) -> Iterator[str]:
    """The requests that the pod uses of a claim; one that names none uses all that there are."""
    claim = site.claims.get(item.claim or "")
    yield from item.requests or (claim.requests if claim is not None else ())
