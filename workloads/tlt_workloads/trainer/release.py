"""When what was learnt is worth a revision: judged on held-out sequences against the parent, published if better.

Judging costs time that the device was lent for, and a hand-back must never wait for it.  So it happens inside a
window, between micro-steps, it can be left half-way, and what a window learns last is judged by the next one.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from speculators.models.eagle3 import Eagle3DraftModel

from tlt_workloads.contract import Evaluation, RevisionManifest
from tlt_workloads.drafter import DrafterConfig
from tlt_workloads.shards import CapturedSequence
from tlt_workloads.store import Store
from tlt_workloads.trainer.evaluate import gain, score_sequences, summarise
from tlt_workloads.trainer.progress import TrainingProgress
from tlt_workloads.trainer.publish import drafter_file, publish_revision

EVALUATION_SHARE = 0.2  # of the training time, at most


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What comparing with the parent showed."""

    evaluation: Evaluation
    is_better: bool  # by more than one standard error of the difference


def release_due(progress: TrainingProgress, *, publish_tokens: int) -> bool:
    """Whether enough was learnt since the last try, and judging stays a small share of the work."""
    learnt = progress.trained_tokens - progress.attempted_tokens
    spent = progress.trained_seconds - progress.attempted_seconds
    return learnt >= publish_tokens and spent * EVALUATION_SHARE >= progress.evaluation_seconds


def judge(
    model: Eagle3DraftModel,
    parent: Eagle3DraftModel,
    sequences: Sequence[CapturedSequence],
    *,
    draft_length: int,
    check: Callable[[], None],
) -> Judgement | None:
    """Compares two drafters on the same sequences; None when these hold nothing to compare by.

    Raises:
        StepAbandonedError: `check` was asked to stop.
    """
    ours = score_sequences(model, sequences, draft_length=draft_length, check=check)
    theirs = score_sequences(parent, sequences, draft_length=draft_length, check=check)
    if not ours:
        return None
    score, difference = summarise(ours), gain(ours, theirs)
    evaluation = Evaluation(
        accept_length=score.accept_length,
        standard_error=score.standard_error if math.isfinite(score.standard_error) else 0.0,
        parent_accept_length=summarise(theirs).accept_length,
        sequences=len(ours),
        tokens=round(sum(item.tokens for item in ours)),
    )
    return Judgement(evaluation=evaluation, is_better=_is_better(difference.accept_length, difference.standard_error))


def release(
    store: Store,
    model: Eagle3DraftModel,
    *,
    job: str,
    shape: DrafterConfig,
    progress: TrainingProgress,
    evaluation: Evaluation,
) -> RevisionManifest:
    """Publishes the drafter as the next revision."""
    return publish_revision(
        store,
        job=job,
        tensors=drafter_file(model, shape),
        config=shape,
        parent=progress.parent,
        policy_versions=(progress.first_policy_version or 0, progress.last_policy_version or 0),
        trained_tokens=progress.trained_tokens,
        evaluation=evaluation,
        now=datetime.datetime.fromtimestamp(time.time(), datetime.UTC),
    )


def attempted(progress: TrainingProgress, *, seconds: float, manifest: RevisionManifest | None) -> TrainingProgress:
    """The progress after a try that took so long and published this, or nothing."""
    return replace(
        progress,
        attempted_tokens=progress.trained_tokens,
        attempted_seconds=progress.trained_seconds,
        evaluation_seconds=seconds,
        parent=manifest.revision if manifest else progress.parent,
    )


def _is_better(difference: float, standard_error: float) -> bool:
    """A single sequence has no standard error; then any gain counts, and the canary decides."""
    return difference > (standard_error if math.isfinite(standard_error) else 0.0)
