"""What the decisions about a job's revisions come to, in the words that tests of them use."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tests.support.snapshots import NOW, busy, holds, make_job, make_snapshot
from tlt_operator.api.job import Job
from tlt_operator.api.names import RevisionPhase, RevisionReason
from tlt_operator.api.revision import Revision
from tlt_operator.plan.actions import CreateRevision, LoadDrafter, MarkRevision, UnloadDrafter
from tlt_operator.plan.revisions import ReleaseMemory, Rollout, decide_revisions
from tlt_operator.plan.snapshot import RolloutView, Snapshot
from tlt_operator.plan.worker import classify_all
from tlt_workloads.contract import AcceptanceCounters


def decide(snapshot: Snapshot, before: ReleaseMemory | None = None) -> Rollout:
    """What is decided in one pass."""
    return decide_revisions(snapshot, classify_all(snapshot), before)


def created(rollout: Rollout) -> list[str]:
    """Revisions that are made."""
    return [item.manifest.revision for item in rollout.actions if isinstance(item, CreateRevision)]


def loads(rollout: Rollout) -> dict[str, str]:
    """Which revision each pod is told to load, by the pod's uid."""
    return {item.rollout_uid: item.load.revision for item in rollout.actions if isinstance(item, LoadDrafter)}


def marks(rollout: Rollout) -> dict[str, RevisionPhase]:
    """The phase that each revision is given, by name."""
    return {item.revision.name: item.phase for item in rollout.actions if isinstance(item, MarkRevision)}


def reason(rollout: Rollout, name: str) -> RevisionReason | None:
    """Why a revision is marked as it is."""
    found = [item for item in rollout.actions if isinstance(item, MarkRevision) and item.revision.name == name]
    return found[-1].ruling.reason if found and found[-1].ruling is not None else None


def unloads(rollout: Rollout) -> set[str]:
    """Uids of the pods that are told to go back to their own drafter."""
    return {item.rollout_uid for item in rollout.actions if isinstance(item, UnloadDrafter)}


def drafting(name: str, revision: int | None, drafts: int, accepted: int, **fields: Any) -> RolloutView:
    """A busy pod with a revision, or its own drafter, that has drafted so much: three tokens each."""
    counters = AcceptanceCounters(drafts=drafts, draft_tokens=3 * drafts, accepted_tokens=accepted)
    return busy(name, **(holds(revision) if revision else {}), acceptance=counters, **fields)


def trial(
    *revisions: Revision,
    job: Job | None = None,
    canary: tuple[int, float],
    control: tuple[int, float],
    seconds: float = 10.0,
    tokens: int = 0,
    pods: Sequence[str] = ("a", "b"),
    own: int | None = 2,
    last: int | None = 1,
) -> Rollout:
    """A trial of revision `own` against `last`, after so many drafts with these accept lengths on the two sides.

    `tokens`: that each pod has generated meanwhile.
    """
    rollout = decide(
        make_snapshot(*(drafting(name, last, 0, 0) for name in pods), revisions=revisions, job=job or make_job())
    )
    assert rollout.trial is not None
    canaries = {arm.pod for arm in rollout.trial.canaries}
    for step in range(2):
        views = []
        for name in pods:
            drafts, length = canary if name in canaries else control
            accepted = round(step * drafts * (length - 1))
            revision = own if name in canaries else last
            views.append(drafting(name, revision, step * drafts, accepted, generated_tokens=step * tokens))
        at = NOW + step * 1.0
        memory = rollout.memory
        if step and memory.trial is not None:
            memory = dataclasses.replace(memory, trial=dataclasses.replace(memory.trial, seconds=seconds))
        rollout = decide(make_snapshot(*views, revisions=revisions, now=at, job=job or make_job()), memory)
    return rollout
