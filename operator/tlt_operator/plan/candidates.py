"""Which of the revisions that trainers have written to the store become DrafterRevisions."""

from __future__ import annotations

import re

from tlt_operator.api.job import Job
from tlt_operator.api.revision import revision_number
from tlt_operator.plan.actions import CreateRevision
from tlt_operator.plan.snapshot import Snapshot
from tlt_workloads.contract import REVISION_FOLDER, RevisionManifest

_DIGEST = re.compile(r"[0-9a-f]{64}")


def revision_url(job: Job, revision: str) -> str:
    """Folder of a revision in the store.  Made here and not taken from the trainer, which is trusted less."""
    return f"{job.folder_url}/{REVISION_FOLDER}/{revision}"


def find_candidates(snapshot: Snapshot) -> tuple[CreateRevision, ...]:
    """The newest unknown candidate that is well-formed and better than its parent; older ones are of no use."""
    newest_known = max((item.number for item in snapshot.revisions), default=-1)
    found: dict[str, RevisionManifest] = {}
    for view in snapshot.trainers:
        for manifest in view.state.candidates if view.state is not None else ():
            if _well_formed(manifest, snapshot.job) and beats_parent(manifest):
                found[manifest.revision] = manifest
    unknown = [item for item in found.values() if revision_number(item.revision) > newest_known]
    newest = sorted(unknown, key=lambda item: revision_number(item.revision))[-1:]
    return tuple(CreateRevision(manifest=item) for item in newest)


def beats_parent(manifest: RevisionManifest) -> bool:
    """Whether held-out quality justifies the swap; a first revision has nothing to beat."""
    parent = manifest.evaluation.parent_accept_length
    return parent is None or manifest.evaluation.accept_length > parent


def _well_formed(manifest: RevisionManifest, job: Job) -> bool:
    name = re.escape(job.name)
    return (
        re.fullmatch(rf"{name}-r[0-9]{{1,9}}", manifest.revision) is not None
        and _DIGEST.fullmatch(manifest.sha256) is not None
    )
