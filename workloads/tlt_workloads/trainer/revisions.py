"""Revisions in the store: what was published, under which names."""

from __future__ import annotations

import json
import re

from tlt_workloads.contract import REVISION_FOLDER, REVISION_MANIFEST, ContractError, RevisionManifest, decode
from tlt_workloads.store import Store

_NUMBER = re.compile(r"-r(\d+)$")


def revision_name(job: str, number: int) -> str:
    """`<job>-r<number>`; a Kubernetes object name because the job's name is one and leaves room.

    Args:
        job: "<namespace>/<name>".
        number: from 1.
    """
    return f"{job.rpartition('/')[2]}-r{number}"


def revision_number(name: str) -> int:
    """The number in a revision's name; 0 when the name is not one of ours."""
    match = _NUMBER.search(name)
    return int(match[1]) if match else 0


def published_revisions(store: Store) -> tuple[RevisionManifest, ...]:
    """Every whole revision, oldest first.  A folder without manifest is unfinished and left out."""
    manifests = []
    for name in sorted(store.folders(REVISION_FOLDER), key=revision_number):
        try:
            manifests.append(
                decode(RevisionManifest, json.loads(store.read(f"{revision_folder(name)}/{REVISION_MANIFEST}")))
            )
        except (OSError, ValueError, ContractError):
            continue
    return tuple(manifests)


def next_number(store: Store) -> int:
    """One more than the highest number that is taken, finished or not."""
    return 1 + max((revision_number(name) for name in store.folders(REVISION_FOLDER)), default=0)


def revision_folder(name: str) -> str:
    """Where a revision lies."""
    return f"{REVISION_FOLDER}/{name}"
