"""DrafterRevision: the custom resource as frozen dataclasses.  The schema itself is `crds/drafterrevisions.yaml`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tlt_operator.api.names import RevisionPhase

_NUMBER = re.compile(r"-r([0-9]+)$")


@dataclass(frozen=True, kw_only=True)
class Revision:
    """What the operator needs of a DrafterRevision; `phase` is None until its status was first written."""

    name: str
    digest: str
    url: str
    parent: str | None
    last_policy_version: int
    phase: RevisionPhase | None
    accept_length: float | None = None  # as measured in the pods and kept in status.evidence

    @property
    def number(self) -> int:
        """Position in the job's history."""
        return revision_number(self.name)


def revision_number(name: str) -> int:
    """The number in `<job>-r<number>`; -1 for a name that is none."""
    found = _NUMBER.search(name)
    return int(found.group(1)) if found else -1


def parse_revision(body: Mapping[str, Any]) -> Revision:
    """Reads a DrafterRevision that the API server has checked against the schema."""
    spec, status = body["spec"], body.get("status") or {}
    return Revision(
        name=body["metadata"]["name"],
        digest=spec["digest"],
        url=spec["url"],
        parent=spec.get("parent"),
        last_policy_version=spec["policyVersions"]["last"],
        phase=RevisionPhase(status["phase"]) if status.get("phase") else None,
        accept_length=(status.get("evidence") or {}).get("acceptLength"),
    )
