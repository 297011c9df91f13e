"""Conditions as Kubernetes wants them: with the moment of the last change of their status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tlt_operator.plan.conditions import Status


def stamped(
    kind: str, status: Status, reason: str, message: str, generation: int, *, previous: Mapping[str, Any], now: str
) -> dict[str, Any]:
    """One condition, given the status that holds the last one; `now` is RFC 3339."""
    before = next((item for item in previous.get("conditions") or () if item["type"] == kind), None)
    same = before is not None and before["status"] == status.value
    return {
        "type": kind,
        "status": status.value,
        "reason": reason,
        "message": message[:1024],
        "observedGeneration": generation,
        "lastTransitionTime": before["lastTransitionTime"] if before is not None and same else now,
    }
