"""Solving for the drafter: before the first gradient, and again when there is far more to solve from.

What regression finds from ten times the rows is better than what gradients make of a small solution in the same time,
and it costs a fraction of a pass.  So whenever the recorded rows have doubled, and a usual window has room for it, the
drafter is solved for anew, compared with the trained one on held-out sequences, and taken if it is better.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from tlt_workloads.drafter import DrafterConfig
from tlt_workloads.shards import CapturedSequence
from tlt_workloads.trainer.fit import fit_drafter, fitted_rows
from tlt_workloads.trainer.model import FrozenTarget
from tlt_workloads.trainer.progress import TrainingProgress
from tlt_workloads.trainer.start import Start

FEWEST_ROWS = 500  # fewer would not determine a regression
GROWTH = 2.0  # rows of a further solution against those of the one before
WINDOW_SHARE = 0.25  # of a usual window's training, at most
TEAM_SECONDS = 20.0  # that others may have to wait for it
_ROW_SECONDS = 1e-3  # until it was measured


@dataclass(frozen=True, eq=False)
class Solution:
    """A drafter that regression has found, and from what."""

    tensors: Mapping[str, torch.Tensor]
    rows: int
    policy_versions: tuple[int, int]  # oldest and newest
    seconds: float


def solve(
    shape: DrafterConfig,
    tensors: Mapping[str, torch.Tensor],
    frozen: FrozenTarget,
    sequences: Iterable[CapturedSequence],
    *,
    device: torch.device,
    check: Callable[[], None],
) -> Solution | None:
    """The drafter that linear regression finds; None when there are too few rows.

    Raises:
        StepAbandonedError: `check` was asked to stop; nothing was done.
    """
    begin, rows, versions = time.monotonic(), 0, set[int]()
    for sequence in sequences:
        rows += len(fitted_rows(sequence))
        versions.add(sequence.policy_version)
    if rows < FEWEST_ROWS:
        return None
    found = fit_drafter(shape, tensors, frozen, sequences, device=device, check=check)
    return Solution(found, rows, (min(versions), max(versions)), time.monotonic() - begin)


def solve_start(
    start: Start,
    *,
    shape: DrafterConfig,
    frozen: FrozenTarget,
    sequences: Iterable[CapturedSequence],
    device: torch.device,
    check: Callable[[], None],
) -> Start:
    """A solved drafter in the place of an untrained one, where there is enough to solve from.

    Raises:
        StepAbandonedError: `check` was asked to stop; nothing was done.
    """
    solution = solve(shape, start.tensors, frozen, sequences, device=device, check=check)
    if solution is None:
        return start
    oldest, newest = solution.policy_versions
    progress = replace(
        start.progress,
        trained_tokens=solution.rows,
        solved_rows=solution.rows,
        solve_seconds=solution.seconds,
        first_policy_version=oldest,
        last_policy_version=newest,
    )
    return replace(start, tensors=solution.tensors, progress=progress)


def rows_due(progress: TrainingProgress, *, known: int, most: int, others_wait: bool = False) -> int:
    """From how many rows the drafter should be solved again now; 0 for not yet.

    Args:
        progress: of the training.
        known: rows that can be learnt from.
        most: rows that are worth it.
        others_wait: whether it takes the time of other replicas as well.
    """
    per_row = progress.solve_seconds / progress.solved_rows if progress.solved_rows else _ROW_SECONDS
    usual = progress.trained_seconds / max(1, progress.windows)
    limit = min(WINDOW_SHARE * usual, TEAM_SECONDS) if others_wait else WINDOW_SHARE * usual
    rows = min(known, most, int(limit / max(per_row, 1e-9)))
    return rows if rows >= max(FEWEST_ROWS, GROWTH * progress.solved_rows) else 0


def after_solution(progress: TrainingProgress, solution: Solution, *, seconds: float) -> TrainingProgress:
    """The progress once a solution has been compared, all of which took so long."""
    return replace(progress, solved_rows=solution.rows, solve_seconds=seconds)


def on_solution(progress: TrainingProgress, solution: Solution, *, steps: int) -> TrainingProgress:
    """The progress of training that goes on from a solution, which counts as one optimiser step of its own."""
    oldest, newest = solution.policy_versions
    known = [item for item in (progress.first_policy_version, oldest) if item is not None]
    return replace(
        progress,
        trained_tokens=max(progress.trained_tokens + 1, solution.rows),
        steps=steps + 1,
        solved_steps=steps + 1,
        evaluation_seconds=0.0,  # so that it is tried for a revision at once
        first_policy_version=min(known),
        last_policy_version=max(newest, progress.last_policy_version or 0),
    )
