"""What the operator reads of a ResourceClaim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """A pod that the claim is reserved for; it may be gone from the API server while its devices are still prepared."""

    name: str
    uid: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim's requests, and who may use its devices now."""

    name: str
    uid: str
    requests: tuple[str, ...] = ()
    consumers: tuple[Consumer, ...] = ()
    deleting: bool = False


def parse_claim(body: Mapping[str, Any]) -> Claim:
    """Reads a ResourceClaim of resource.k8s.io/v1 as the API server returns it."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    return Claim(
        name=metadata["name"],
        uid=metadata["uid"],
        requests=tuple(item["name"] for item in (spec.get("devices") or {}).get("requests") or ()),
        consumers=tuple(
            Consumer(name=item["name"], uid=item["uid"])
            for item in status.get("reservedFor") or ()
            if item.get("resource") == "pods" and not item.get("apiGroup")
        ),
        deleting="deletionTimestamp" in metadata,
    )
