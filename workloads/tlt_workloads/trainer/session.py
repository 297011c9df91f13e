"""All that a worker holds while it has the device: drafter, optimiser, data, and how far it has come."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from speculators.models.eagle3 import Eagle3DraftModel

from tlt_workloads.contract import RevisionManifest
from tlt_workloads.drafter import DrafterConfig, DraftVocabulary, TargetFiles
from tlt_workloads.store import Store
from tlt_workloads.trainer.checkpoint import CheckpointWriter
from tlt_workloads.trainer.data import Feed, TrainingBatch
from tlt_workloads.trainer.learner import Learner, OptimiserSettings
from tlt_workloads.trainer.model import (
    SOFTNESS,
    FrozenTarget,
    Objective,
    build_drafter,
    on_every_operation,
    read_frozen_target,
)
from tlt_workloads.trainer.progress import TrainingProgress
from tlt_workloads.trainer.release import attempted, judge, release, release_due
from tlt_workloads.trainer.settings import TrainerSettings
from tlt_workloads.trainer.solve import after_solution, on_solution, rows_due, solve
from tlt_workloads.trainer.start import (
    Start,
    parent_tensors,
    start_from,
)
from tlt_workloads.trainer.team.accounts import after_step, contribution_of
from tlt_workloads.trainer.team.exchange import Sum
from tlt_workloads.trainer.team.team import Team
from tlt_workloads.trainer.team.trainee import StateReplacedError

REFRESH_INTERVAL = 2.0  # s between looks for new shards
MICRO_STEP_SECONDS = 0.2
LOOK_INTERVAL = 0.005  # s between looks whether a checkpoint is written
SMALLEST_BATCH, LARGEST_BATCH = 64, 8192  # rows


class Session:
    """Made by `opening.open_session`, one per window."""

    def __init__(
        self,
        settings: TrainerSettings,
        *,
        store: Store,
        target: TargetFiles,
        shape: DrafterConfig,
        frozen: FrozenTarget,
        start: Start,
        feed: Feed,
        device: torch.device,
        check: Callable[[], None],
        team: Team | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._target = target
        self._shape = shape
        self._feed = feed
        self._device = device
        self._frozen = frozen
        self._check = check
        self._team = team
        self._progress = replace(start.progress, windows=start.progress.windows + 1)
        self._saved_at = (0, 0) if start.is_new else _landmarks(start.progress)
        self._refreshed = time.monotonic()
        self._is_released = False
        self._learner = self._learner_from(start)
        self._checkpoints = CheckpointWriter(store, writer=settings.holder.rpartition("/")[2][:8])

    @property
    def checkpoint_interval(self) -> float:
        """Seconds between checkpoints."""
        return self._settings.config.checkpoint_interval

    @property
    def is_kept(self) -> bool:
        """Whether the store holds all that was learnt, or will by another replica."""
        return _landmarks(self._progress) == self._saved_at and not self._checkpoints.busy

    @property
    def trained_tokens(self) -> int:
        """Positions in the weights; those of a micro-step count with the optimiser step that applies its gradients."""
        return self._progress.trained_tokens

    @property
    def skipped_shards(self) -> frozenset[str]:
        """Paths of the shards that could not be read."""
        return self._feed.skipped_shards

    @property
    def replicas(self) -> int:
        """How many train together now."""
        return 1 if self._team is None else self._team.share.size

    @property
    def release_due(self) -> bool:
        """Whether it is time to try for a revision."""
        return self._leads and release_due(self._progress, publish_tokens=self._settings.publish_tokens)

    @property
    def solve_due(self) -> bool:
        """Whether it is time to solve for the drafter again; never for one that the job brought."""
        return bool(self._leads and self._learner.is_between_steps and self._rows_due())

    def meet_others(self) -> None:
        """Between two steps: becomes part of a team, or another part of it.

        Raises:
            StepAbandonedError: asked to stop.
            TeamLostError: others may be training on without us.
        """
        if self._team is not None:
            self._team.meet(self)
            self._feed.share = self._team.share

    def next_batch(self) -> TrainingBatch | None:
        """The next batch; looks for new shards now and then, and always before saying that there is nothing."""
        if time.monotonic() - self._refreshed < REFRESH_INTERVAL and (batch := self._feed.next_batch(self._rows())):
            return batch
        self._feed.refresh()
        self._refreshed = time.monotonic()
        return self._feed.next_batch(self._rows())

    def train(self, batch: TrainingBatch) -> float:
        """One micro-step, and an optimiser step when one is due; returns the loss.

        Raises:
            StepAbandonedError: asked to stop half-way.
            TeamLostError: others may be training on without us.
        """
        start = time.monotonic()
        loss = self._learner.micro_step(batch)
        gathered: list[tuple[Sum, float]] = []

        def gather(parameters: Sequence[torch.nn.Parameter], batches: Sequence[TrainingBatch]) -> int:
            own, begin = contribution_of(batches, self._progress), time.monotonic()
            found = Sum.of_one(own) if self._team is None else self._team.gather(parameters, own, self)
            gathered.append((found, time.monotonic() - begin))
            return found.positions

        try:
            applied = self._learner.step_if_due(gather)
        except StateReplacedError:
            return loss
        seconds = time.monotonic() - start
        self._progress = replace(self._progress, trained_seconds=self._progress.trained_seconds + seconds)
        self._measure(batch.packed.tokens, seconds - sum(waited for _, waited in gathered))
        for found, _ in gathered:
            self._feed.mark_trained(applied)
            self._feed.mark_elsewhere(found.others_used)
            self._progress = after_step(self._progress, found, job=self._settings.job)
        return loss

    def standing(self) -> tuple[int, int]:
        """Optimiser steps and trained tokens."""
        return self._learner.steps, self._progress.trained_tokens

    def state(self) -> tuple[TrainingProgress, Mapping[str, torch.Tensor]]:
        """All that another replica needs to go on as this one would."""
        return self._whole_progress(), self._learner.tensors()

    def adopt(self, progress: TrainingProgress, tensors: Mapping[str, torch.Tensor]) -> None:
        """Goes on as another replica would."""
        start = start_from(progress, tensors)
        own = self._learner.model.t2d
        if own is not None and not torch.equal(own.cpu(), start.tensors["t2d"]):
            self._frozen = read_frozen_target(self._target, start.tensors["t2d"])
        self._learner.forget()
        self._learner = self._learner_from(start)
        self._feed.adopt(progress.shards)
        own_size = self._progress.micro_batch_tokens  # as measured on this device
        self._progress = replace(progress, micro_batch_tokens=own_size or progress.micro_batch_tokens)
        self._saved_at = _landmarks(progress)

    def try_solution(self, check: Callable[[], None]) -> bool:
        """Solves for a drafter and goes on from it when it is better than this one.

        Raises:
            StepAbandonedError: asked to stop half-way; nothing has changed.
        """
        begin = time.monotonic()
        sequences = self._feed.freshest(tokens=self._rows_due())
        tensors = self._learner.tensors()
        own = {name[len("model.") :]: item.clone() for name, item in tensors.items() if name.startswith("model.")}
        solution = solve(self._shape, own, self._frozen, sequences, device=self._device, check=check)
        if solution is None:
            return False
        solved = self._build(solution.tensors)
        on_every_operation(solved, check)
        held_out = self._feed.held_out(tokens=self._settings.held_out_tokens)
        judgement = judge(
            solved, self._judged(check), held_out, draft_length=self._settings.config.draft_length, check=check
        )
        self._progress = after_solution(self._progress, solution, seconds=time.monotonic() - begin)
        if judgement is None or not judgement.is_better:
            return False
        self._progress = on_solution(self._progress, solution, steps=self._learner.steps)
        self._learner.forget()
        self._learner = self._learner_from(Start(solution.tensors, self._progress))
        return True

    def hand_on(self) -> None:
        """Makes a solution that was taken everybody's.

        Raises:
            StepAbandonedError: asked to stop.
            TeamLostError: others may be training on without us.
        """
        if self._team is not None:
            self._team.hand_on(self)

    def try_release(self, check: Callable[[], None]) -> RevisionManifest | None:
        """Judges the drafter against its parent and publishes it when it is better.

        The process may end anywhere in here: a revision counts when it is whole, and the next window tries again.

        Raises:
            StepAbandonedError: asked to stop half-way; nothing was published.
        """
        start, manifest = time.monotonic(), None
        model, parent = self._judged(check), self._parent()
        on_every_operation(parent, check)
        sequences = self._feed.held_out(tokens=self._settings.held_out_tokens)
        judgement = judge(model, parent, sequences, draft_length=self._settings.config.draft_length, check=check)
        if judgement and judgement.is_better:
            manifest = release(
                self._store,
                model,
                job=self._settings.job,
                shape=self._shape,
                progress=self._progress,
                evaluation=judgement.evaluation,
            )
        self._progress = attempted(self._progress, seconds=time.monotonic() - start, manifest=manifest)
        return manifest

    def checkpoint(self) -> None:
        """Starts writing a checkpoint when there is anything new to keep."""
        self._keep_with(self._checkpoints.write)

    def keep(self, check: Callable[[], None]) -> None:
        """Returns when all that was learnt is durable.

        Raises:
            StepAbandonedError: asked to stop meanwhile; it is being written.
        """
        self.checkpoint()
        while self._checkpoints.busy:
            check()
            time.sleep(LOOK_INTERVAL)
        self._checkpoints.flush()

    def release_device(self) -> None:
        """Takes what is not yet kept to the host and frees the device; no step can follow.

        So the device is back long before a checkpoint is durable, however slow the store is.
        """
        if self._team is not None:
            self._team.leave()
        self._keep_with(self._checkpoints.write_last)
        self._learner.forget()
        self._is_released = True
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Writes what is not yet kept and waits until it is durable."""
        if self._team is not None:
            self._team.leave()
        if not self._is_released:
            self.checkpoint()
        self._checkpoints.close()

    def _keep_with(self, write: Callable[[TrainingProgress, Mapping[str, torch.Tensor]], None]) -> None:
        progress = self._whole_progress()
        if self._leads and _landmarks(progress) != self._saved_at:
            write(progress, self._learner.tensors())
            self._saved_at = _landmarks(progress)

    @property
    def _leads(self) -> bool:
        return self._team is None or self._team.leads

    def _whole_progress(self) -> TrainingProgress:
        return replace(self._progress, steps=self._learner.steps, shards=self._feed.progress())

    def _learner_from(self, start: Start) -> Learner:
        model = self._build(start.tensors, softness=SOFTNESS)
        on_every_operation(model, self._check)
        learner = Learner(
            model,
            objective=Objective(draft_length=self._settings.config.draft_length),
            settings=OptimiserSettings(learning_rate=self._settings.config.learning_rate),
            check=self._check,
        )
        learner.restore(start.moments, steps=start.progress.steps, first_step=start.progress.solved_steps)
        return learner

    def _rows_due(self) -> int:
        if self._settings.config.initial_revision is not None:
            return 0
        return rows_due(
            self._progress,
            known=self._feed.known_rows,
            most=self._settings.most_solved_tokens,
            others_wait=self.replicas > 1,
        )

    def _rows(self) -> int:
        return self._settings.config.micro_batch_tokens or self._progress.micro_batch_tokens or SMALLEST_BATCH

    def _measure(self, rows: int, seconds: float) -> None:
        """Sizes the micro-step after the second one; the first also pays for what is only done once."""
        if self._progress.micro_batch_tokens == 0 and self._learner.steps > 0:
            fitting = int(rows * MICRO_STEP_SECONDS / seconds) // SMALLEST_BATCH * SMALLEST_BATCH
            size = min(LARGEST_BATCH, max(SMALLEST_BATCH, fitting))
            self._progress = replace(self._progress, micro_batch_tokens=size)

    def _judged(self, check: Callable[[], None]) -> Eagle3DraftModel:
        """The drafter as it is judged and published: with the mean of its weights."""
        model = self._build(self._learner.mean_tensors())
        on_every_operation(model, check)
        return model

    def _parent(self) -> Eagle3DraftModel:
        model = self._learner.model
        tensors = parent_tensors(
            self._store,
            self._progress,
            config=self._settings.config,
            target=self._target,
            shape=self._shape,
            vocabulary=DraftVocabulary(model.d2t, model.t2d),
        )
        return self._build(tensors)

    def _build(self, tensors: Mapping[str, torch.Tensor], *, softness: float = 1.0) -> Eagle3DraftModel:
        return build_drafter(
            self._shape,
            tensors,
            self._frozen,
            draft_length=self._settings.config.draft_length,
            device=self._device,
            softness=softness,
        )


def _landmarks(progress: TrainingProgress) -> tuple[int, int]:
    """Changes whenever there is something new to keep."""
    return progress.trained_tokens, progress.attempted_tokens
