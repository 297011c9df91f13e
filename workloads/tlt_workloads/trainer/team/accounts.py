"""What a step of a team means for the progress of training: from batches to what is told, and from that to progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from tlt_workloads.trainer.data import TrainingBatch
from tlt_workloads.trainer.progress import TrainingProgress
from tlt_workloads.trainer.revisions import revision_name, revision_number
from tlt_workloads.trainer.team.exchange import Contribution, Sum, Tried
from tlt_workloads.trainer.team.split import sequence_key


def contribution_of(batches: Sequence[TrainingBatch], progress: TrainingProgress) -> Contribution:
    """What this replica brings to a step."""
    used: Counter[int] = Counter()
    for batch in batches:
        for (shard, index), rows in batch.used.items():
            used[sequence_key(shard, index)] += rows
    return Contribution(
        positions=sum(batch.packed.trained_tokens for batch in batches),
        policy_versions=(
            min(batch.policy_versions[0] for batch in batches),
            max(batch.policy_versions[1] for batch in batches),
        ),
        used=used,
        tried=Tried(
            tokens=progress.attempted_tokens,
            seconds=progress.evaluation_seconds,
            revision=revision_number(progress.parent or ""),
        ),
    )


def after_step(progress: TrainingProgress, found: Sum, *, job: str) -> TrainingProgress:
    """The progress after a step; `job` is "<namespace>/<name>"."""
    first, last = found.policy_versions
    if progress.first_policy_version is not None:
        first = min(first, progress.first_policy_version)
    if progress.last_policy_version is not None:
        last = max(last, progress.last_policy_version)
    counted = replace(
        progress,
        trained_tokens=progress.trained_tokens + found.positions,
        first_policy_version=first,
        last_policy_version=last,
    )
    if found.tried is None or found.tried.tokens == progress.attempted_tokens:
        return counted
    return replace(
        counted,
        attempted_tokens=found.tried.tokens,
        attempted_seconds=counted.trained_seconds,
        evaluation_seconds=found.tried.seconds,
        parent=revision_name(job, found.tried.revision) if found.tried.revision else None,
    )
