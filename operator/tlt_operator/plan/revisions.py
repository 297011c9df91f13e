"""Drafter revisions: which candidate becomes the next one, which pods must load it, and what becomes of the last one.

A revision goes to all pods at once: `Candidate -> Active -> Superseded`, or `RolledBack` when every pod refused it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tlt_operator.api.job import Job
from tlt_operator.api.names import RevisionPhase
from tlt_operator.api.revision import Revision, revision_number
from tlt_operator.plan.actions import Action, CreateRevision, LiveEvidence, LoadDrafter, MarkRevision, PodCounts
from tlt_operator.plan.snapshot import RolloutView, Snapshot
from tlt_operator.plan.worker import WorkerState
from tlt_workloads.contract import REVISION_FOLDER, DrafterLoad, RevisionManifest

_DIGEST = re.compile(r"[0-9a-f]{64}")
_IN_USE = (RevisionPhase.CANDIDATE, RevisionPhase.CANARY, RevisionPhase.ACTIVE)


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Where the job's revisions stand.  `wanted` is the one that every pod should have."""

    actions: tuple[Action, ...]
    active: Revision | None
    wanted: Revision | None
    counts: PodCounts
    refusals: Mapping[str, str]  # pod name -> why it refused the wanted revision
    accept_length: float | None  # of the wanted revision, in the pods
    baseline: float | None  # of the revision before


def revision_url(job: Job, revision: str) -> str:
    """Folder of a revision in the store.  Made here and not taken from the trainer, which is trusted less."""
    return f"{job.folder_url}/{REVISION_FOLDER}/{revision}"


def decide_revisions(snapshot: Snapshot, workers: Mapping[str, WorkerState]) -> Rollout:
    """Revisions to make, to load and to mark."""
    revisions = sorted(snapshot.revisions, key=lambda item: item.number)
    actions: list[Action] = [CreateRevision(manifest=item) for item in _new_candidates(snapshot, revisions)]
    in_use = [item for item in revisions if item.phase is None or item.phase in _IN_USE]
    active = next((item for item in reversed(revisions) if item.phase is RevisionPhase.ACTIVE), None)
    wanted = next((item for item in reversed(in_use)), None)
    if wanted is None:
        return Rollout(
            actions=tuple(actions),
            active=None,
            wanted=None,
            counts=PodCounts(),
            refusals={},
            accept_length=None,
            baseline=None,
        )
    reachable = [view for view in snapshot.rollouts if _takes_drafters(view, workers[view.pod.uid])]
    loaded = [view for view in reachable if _has(view, wanted)]
    refusals = {
        view.pod.name: view.refusals[wanted.name]
        for view in reachable
        if wanted.name in view.refusals and not _has(view, wanted)
    }
    counts = PodCounts(total=len(reachable), loaded=len(loaded), failed=len(refusals))
    evidence = _measure(loaded)
    actions += [
        LoadDrafter(
            rollout_uid=view.pod.uid, load=DrafterLoad(revision=wanted.name, url=wanted.url, sha256=wanted.digest)
        )
        for view in reachable
        if not _has(view, wanted) and wanted.name not in view.refusals and not _updating(view)
    ]
    actions += _marks(revisions, wanted, active, counts=counts, refusals=refusals, evidence=evidence, views=reachable)
    return Rollout(
        actions=tuple(actions),
        active=active,
        wanted=wanted,
        counts=counts,
        refusals=refusals,
        accept_length=evidence.accept_length,
        baseline=_baseline(revisions, wanted),
    )


def beats_parent(manifest: RevisionManifest) -> bool:
    """Whether held-out quality justifies the swap; a first revision has nothing to beat."""
    parent = manifest.evaluation.parent_accept_length
    return parent is None or manifest.evaluation.accept_length > parent


def _new_candidates(snapshot: Snapshot, revisions: list[Revision]) -> list[RevisionManifest]:
    """The newest unknown candidate that is well-formed and better than its parent; older ones are of no use."""
    newest_known = max((item.number for item in revisions), default=-1)
    found: dict[str, RevisionManifest] = {}
    for view in snapshot.trainers:
        for manifest in view.state.candidates if view.state is not None else ():
            if _well_formed(manifest, snapshot.job) and beats_parent(manifest):
                found[manifest.revision] = manifest
    unknown = [item for item in found.values() if revision_number(item.revision) > newest_known]
    return sorted(unknown, key=lambda item: revision_number(item.revision))[-1:]


def _well_formed(manifest: RevisionManifest, job: Job) -> bool:
    name = re.escape(job.name)
    return (
        re.fullmatch(rf"{name}-r[0-9]{{1,9}}", manifest.revision) is not None
        and _DIGEST.fullmatch(manifest.sha256) is not None
    )


def _marks(
    revisions: list[Revision],
    wanted: Revision,
    active: Revision | None,
    *,
    counts: PodCounts,
    refusals: Mapping[str, str],
    evidence: LiveEvidence,
    views: list[RolloutView],
) -> list[Action]:
    marks: list[Action] = []
    if counts.total and counts.failed == counts.total:
        pod, why = next(iter(refusals.items()))
        message = f"Every rollout pod refused it; {pod}: {why}"
        marks.append(MarkRevision(revision=wanted, phase=RevisionPhase.ROLLED_BACK, message=message, pods=counts))
        return marks
    complete = counts.total > 0 and counts.loaded + counts.failed == counts.total
    if complete or wanted.phase is RevisionPhase.ACTIVE:
        message = f"{counts.loaded} of {counts.total} rollout pods have it"
        marks.append(
            MarkRevision(revision=wanted, phase=RevisionPhase.ACTIVE, message=message, pods=counts, evidence=evidence)
        )
    else:
        message = f"Loading: {counts.loaded} of {counts.total} rollout pods have it"
        marks.append(MarkRevision(revision=wanted, phase=RevisionPhase.CANDIDATE, message=message, pods=counts))
    if wanted.phase is RevisionPhase.ACTIVE:
        marks += [
            MarkRevision(revision=item, phase=RevisionPhase.SUPERSEDED, message=f"Replaced by {wanted.name}")
            for item in revisions
            if item.number < wanted.number and (item.phase is None or item.phase in _IN_USE)
        ]
    elif active is not None:
        # The last look at the one that leaves: its accept length is what the new one is compared with.
        leaving = [view for view in views if _has(view, active)]
        if leaving:
            marks.append(
                MarkRevision(
                    revision=active,
                    phase=RevisionPhase.ACTIVE,
                    message=f"Will be replaced by {wanted.name}",
                    evidence=_measure(leaving),
                )
            )
    return marks


def _takes_drafters(view: RolloutView, worker: WorkerState) -> bool:
    if worker in (WorkerState.UNKNOWN, WorkerState.UNAVAILABLE) or view.state is None:
        return False
    return view.state.drafter_method is not None


def _has(view: RolloutView, revision: Revision) -> bool:
    return view.has(revision)


def _updating(view: RolloutView) -> bool:
    return view.state is not None and view.state.updating


def _measure(views: list[RolloutView]) -> LiveEvidence:
    states = [view.state for view in views if view.state is not None]
    drafts = sum(state.acceptance.drafts for state in states)
    accepted = sum(state.acceptance.accepted_tokens for state in states)
    stalls = [state.swap_stall for state in states if state.swap_stall is not None]
    return LiveEvidence(
        drafts=drafts,
        accept_length=1 + accepted / drafts if drafts else None,
        swap_stall=max(stalls) if stalls else None,
    )


def _baseline(revisions: list[Revision], wanted: Revision) -> float | None:
    before = [item for item in revisions if item.number < wanted.number and item.accept_length is not None]
    return before[-1].accept_length if before else None
