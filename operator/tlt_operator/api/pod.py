"""What the operator reads of a Pod."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tlt_operator.api.names import (
    DEVICES_ANNOTATION,
    JOB_LABEL,
    ORDINAL_LABEL,
    QUEUE_GATE,
    QUEUE_LABEL,
    ROLLOUT_UID_LABEL,
    TEMPLATE_ANNOTATION,
)


@dataclass(frozen=True, kw_only=True)
class DeviceClaim:
    """A ResourceClaim of a pod: the name within the pod, the object's name, and the requests its containers use.

    `claim` is None while the claim of a template has not been made yet.  No request names means all of them.
    """

    name: str
    claim: str | None
    requests: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pod:
    """A pod's identity, address and readiness."""

    name: str
    namespace: str
    uid: str
    ip: str | None = None
    node: str | None = None
    phase: str = "Pending"
    ready: bool = False
    started: bool = False  # a container has passed its start-up probe and has not ended since
    restarts: int = 0  # of all its containers
    deleting: bool = False
    created: str = ""  # RFC 3339, by the API server's clock
    claims: tuple[DeviceClaim, ...] = ()
    extended_claim: str | None = None  # the claim that the scheduler made for an extended resource
    plugin_devices: int = 0  # devices asked of device plugins, such as nvidia.com/gpu
    visible_devices: tuple[str, ...] | None = None  # ids of devices that it has without a claim; None = not known yet
    tolerations: tuple[Mapping[str, Any], ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    controller: str | None = None  # uid of the object that makes and replaces it
    queued: bool = False  # Kueue decides when it may start
    template: str | None = None  # pods that the operator makes: digest of the manifest
    trouble: str | None = None  # why it does not start, in the kubelet's or scheduler's words

    @property
    def holder(self) -> str:
        """The pod's name as a holder of leases; unique for ever."""
        return f"{self.name}/{self.uid}"

    @property
    def claim_names(self) -> frozenset[str]:
        """The ResourceClaims that exist for it; pods that have one in common share its devices."""
        return frozenset(item.claim for item in self.claims if item.claim is not None)

    @property
    def holdings(self) -> frozenset[str]:
        """What two pods must not both use: claims by name, and devices without a claim by node and id."""
        if not self.visible_devices:
            return self.claim_names
        return self.claim_names | {f"{self.node}/{device}" for device in self.visible_devices}

    @property
    def job(self) -> str | None:
        """Trainer pods: the job's name."""
        return self.labels.get(JOB_LABEL)

    @property
    def rollout_uid(self) -> str | None:
        """Trainer pods: the rollout pod whose device it shares."""
        return self.labels.get(ROLLOUT_UID_LABEL)

    @property
    def ordinal(self) -> int | None:
        """Pods of a StatefulSet: the number at the end of the name."""
        text = self.labels.get(ORDINAL_LABEL) or self.name.rpartition("-")[2]
        return int(text) if text.isdecimal() else None

    @property
    def finished(self) -> bool:
        """The containers have ended for good."""
        return self.phase in ("Succeeded", "Failed")


def parse_pod(body: Mapping[str, Any]) -> Pod:
    """Reads a Pod as the API server returns it."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    annotations, labels = metadata.get("annotations") or {}, metadata.get("labels") or {}
    ready = any(item["type"] == "Ready" and item["status"] == "True" for item in status.get("conditions") or ())
    return Pod(
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        ip=status.get("podIP"),
        node=spec.get("nodeName"),
        phase=status.get("phase", "Pending"),
        ready=ready,
        started=ready or any(item.get("started") for item in status.get("containerStatuses") or ()),
        restarts=sum(item.get("restartCount", 0) for item in status.get("containerStatuses") or ()),
        deleting="deletionTimestamp" in metadata,
        created=metadata.get("creationTimestamp", ""),
        claims=_claims(spec, status),
        extended_claim=(status.get("extendedResourceClaimStatus") or {}).get("resourceClaimName"),
        plugin_devices=_plugin_devices(spec),
        visible_devices=device_ids(annotations[DEVICES_ANNOTATION]) if DEVICES_ANNOTATION in annotations else None,
        tolerations=tuple(spec.get("tolerations") or ()),
        labels=labels,
        controller=_controller(metadata),
        queued=QUEUE_LABEL in labels or any(gate["name"] == QUEUE_GATE for gate in spec.get("schedulingGates") or ()),
        template=annotations.get(TEMPLATE_ANNOTATION),
        trouble=_trouble(status),
    )


def _controller(metadata: Mapping[str, Any]) -> str | None:
    owners = metadata.get("ownerReferences") or ()
    return next((item["uid"] for item in owners if item.get("controller")), None)


def device_ids(text: str) -> tuple[str, ...]:
    """The parts of a list such as `GPU-1b2c,GPU-3d4e` or `0,1`, as they are written; each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _plugin_devices(spec: Mapping[str, Any]) -> int:
    """Extended resources are whole numbers, and have a domain that is not Kubernetes' own."""
    return sum(
        int(quantity)
        for container in spec.get("containers") or ()
        for name, quantity in ((container.get("resources") or {}).get("limits") or {}).items()
        if "/" in name and not name.split("/")[0].endswith("kubernetes.io") and str(quantity).isdecimal()
    )


def _claims(spec: Mapping[str, Any], status: Mapping[str, Any]) -> tuple[DeviceClaim, ...]:
    made = {item["name"]: item.get("resourceClaimName") for item in status.get("resourceClaimStatuses") or ()}
    found = []
    for entry in spec.get("resourceClaims") or ():
        uses = [
            use
            for container in spec.get("containers") or ()
            for use in (container.get("resources") or {}).get("claims") or ()
            if use["name"] == entry["name"]
        ]
        if not uses:
            continue
        whole = any("request" not in use for use in uses)
        requests = () if whole else tuple(dict.fromkeys(use["request"] for use in uses))
        claim = entry.get("resourceClaimName") or made.get(entry["name"])
        found.append(DeviceClaim(name=entry["name"], claim=claim, requests=requests))
    return tuple(found)


def _trouble(status: Mapping[str, Any]) -> str | None:
    for container in status.get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"{waiting['reason']}: {waiting.get('message', '')}".strip(": ")
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended and ended.get("exitCode", 0) != 0:
            return f"exit code {ended['exitCode']}: {ended.get('message') or ended.get('reason', '')}".strip(": ")
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{condition.get('reason', 'Unschedulable')}: {condition.get('message', '')}"
    return status.get("message")
