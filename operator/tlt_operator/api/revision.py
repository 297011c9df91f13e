"""DrafterRevision: the custom resource as frozen dataclasses.  The schema itself is `crds/drafterrevisions.yaml`."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tlt_operator.api.names import PROMOTE_ANNOTATION, ROLL_BACK_ANNOTATION, RevisionCondition, RevisionPhase

_NUMBER = re.compile(r"-r([0-9]+)$")


class Wish(enum.StrEnum):
    """What a person asks for by an annotation with the value "true"."""

    PROMOTE = PROMOTE_ANNOTATION
    ROLL_BACK = ROLL_BACK_ANNOTATION


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
    promoted: bool = False  # it was the active one at some time
    trial: Mapping[str, Any] | None = None  # the record of its trial, as `plan.trial` has written it
    wish: Wish | None = None  # to roll back outweighs to promote
    odd_wishes: tuple[str, ...] = ()  # annotations with a value that says nothing

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
    annotations = body["metadata"].get("annotations") or {}
    wishes = [wish for wish in (Wish.ROLL_BACK, Wish.PROMOTE) if annotations.get(wish.value) == "true"]
    return Revision(
        name=body["metadata"]["name"],
        digest=spec["digest"],
        url=spec["url"],
        parent=spec.get("parent"),
        last_policy_version=spec["policyVersions"]["last"],
        phase=RevisionPhase(status["phase"]) if status.get("phase") else None,
        accept_length=(status.get("evidence") or {}).get("acceptLength"),
        promoted=any(
            item["type"] == RevisionCondition.PROMOTED.value and item["status"] == "True"
            for item in status.get("conditions") or ()
        ),
        trial=status.get("trial"),
        wish=next(iter(wishes), None),
        odd_wishes=tuple(wish.value for wish in Wish if annotations.get(wish.value, "true") not in ("true", "false")),
    )
