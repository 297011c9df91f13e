"""What the operator reads of the StatefulSet of a pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tlt_operator.api.names import TEMPLATE_ANNOTATION


@dataclass(frozen=True, kw_only=True)
class PoolSet:
    """How many pods the StatefulSet keeps, and from which template it makes the next one."""

    uid: str
    replicas: int
    template: str | None  # digest of the pod template
    generation: int = 0
    settled: bool = True  # its controller works by this very version already


def parse_pool_set(body: Mapping[str, Any]) -> PoolSet:
    """Reads a StatefulSet as the API server returns it."""
    metadata, spec, status = body["metadata"], body["spec"], body.get("status") or {}
    template = spec["template"].get("metadata") or {}
    generation = metadata.get("generation", 0)
    return PoolSet(
        uid=metadata["uid"],
        replicas=spec.get("replicas", 1),
        template=(template.get("annotations") or {}).get(TEMPLATE_ANNOTATION),
        generation=generation,
        settled=status.get("observedGeneration", 0) >= generation,
    )
