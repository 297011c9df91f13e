"""Tokens per second: ours over a whole pass, and packed against padded batches."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from bench.lesson import CAPTURE_BATCH
from bench.trainer.data import HELD_OUT_TOKENS, Material, held_out_loss
from bench.trainer.job import DRAFT_LENGTH, LOSS
from tlt_workloads.shards import CapturedSequence
from tlt_workloads.trainer.data import TrainingBatch
from tlt_workloads.trainer.learner import Learner, OptimiserSettings
from tlt_workloads.trainer.model import Objective
from tlt_workloads.trainer.packing import PackedBatch, Piece, pack, usable_rows

LEARNING_RATE = 3e-4
WARM_STEPS = 2  # not timed: they pay for what is done once
SAMPLES = CAPTURE_BATCH  # answers of a padded batch: as many as were generated at once
PIECE_ROWS = 128
# What speculators' trainer does, so that only the speed differs.
OPTIMISER = OptimiserSettings(learning_rate=LEARNING_RATE, warmup_steps=1, betas=(0.9, 0.999), weight_decay=0.01)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What a trainer did in how long."""

    tokens: int  # that carried loss
    seconds: float
    steps: int
    held_out_loss: float | None = None

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def our_pace(material: Material, *, step_tokens: int, micro_rows: int, limit: int = 0) -> Pace:
    """One pass over the answers.

    Args:
        material: what to train on.
        step_tokens: trained positions of an optimiser step.
        micro_rows: rows of a micro-step.
        limit: steps after which to end; 0 takes all, and tells the loss.
    """
    feed, model = material.feed(), material.start()
    learner = Learner(
        model,
        objective=Objective(draft_length=DRAFT_LENGTH, loss=LOSS),
        settings=replace(OPTIMISER, step_tokens=step_tokens),
    )
    tokens, began, last = 0, time.perf_counter(), WARM_STEPS + limit if limit else None
    while learner.steps != last and (batch := feed.next_batch(micro_rows)) is not None:
        if learner.steps >= WARM_STEPS:
            tokens += batch.packed.trained_tokens
        learner.micro_step(batch)
        feed.mark_trained(learner.step_if_due())
        if learner.steps == WARM_STEPS and not tokens:
            began = time.perf_counter()
    seconds = time.perf_counter() - began
    loss = None if limit else held_out_loss(model, feed.held_out(tokens=HELD_OUT_TOKENS))
    return Pace(tokens=tokens, seconds=seconds, steps=learner.steps - WARM_STEPS, held_out_loss=loss)


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Samples per second of the same answers."""

    packed: float
    padded: float
    filled: float  # share of the padded rows that hold something


def packing(material: Material, *, batches: int, seed: int = 1) -> Packing:
    """The same batches of answers, packed and padded to the longest of each, an optimiser step after each batch.

    A padded row goes through all that a row with a token goes through, as it does where a batch is a rectangle.
    """
    feed, dice = material.feed(), random.Random(seed)
    sequences = [item for item in feed.freshest(tokens=10**9) if len(usable_rows(item)) > DRAFT_LENGTH]
    drawn = [sequences[:1], *(dice.sample(sequences, SAMPLES) for _ in range(batches))]
    seconds = {"packed": 0.0, "padded": 0.0}
    learners = {kind: _learner(material) for kind in seconds}
    for number, batch in enumerate(drawn):
        for kind, rows in (("packed", packed(batch)), ("padded", padded(batch))):
            began = time.perf_counter()
            learners[kind].micro_step(TrainingBatch(rows, {}, (0, 0)))
            learners[kind].step_if_due()
            if number:  # the first one warms up
                seconds[kind] += time.perf_counter() - began
    longest = [SAMPLES * max(len(usable_rows(item)) for item in batch) for batch in drawn[1:]]
    filled = sum(len(usable_rows(item)) for batch in drawn[1:] for item in batch) / sum(longest)
    count = batches * SAMPLES
    return Packing(packed=count / seconds["packed"], padded=count / seconds["padded"], filled=filled)


def _learner(material: Material) -> Learner:
    settings = replace(OPTIMISER, step_tokens=1)
    return Learner(material.start(), objective=Objective(draft_length=DRAFT_LENGTH, loss=LOSS), settings=settings)


def packed(sequences: Sequence[CapturedSequence]) -> PackedBatch:
    """Cut into pieces, as the trainer does."""
    pieces = []
    for sequence in sequences:
        rows = usable_rows(sequence)
        for start in range(rows.start, rows.stop, PIECE_ROWS):
            first = max(rows.start, start - (DRAFT_LENGTH - 1))
            pieces.append(Piece(sequence, first, min(rows.stop, start + PIECE_ROWS)))
    return pack(pieces, draft_length=DRAFT_LENGTH)


def padded(sequences: Sequence[CapturedSequence]) -> PackedBatch:
    """A rectangle: each answer fills a line as long as the longest; what is missing repeats its last row."""
    longest = max(len(usable_rows(item)) for item in sequences)
    return pack([_stretched(item, longest) for item in sequences], draft_length=DRAFT_LENGTH)


def _stretched(sequence: CapturedSequence, rows: int) -> Piece:
    have = usable_rows(sequence)
    missing = rows - len(have)
    tokens = sequence.token_ids[: have.stop + 1]
    states = sequence.hidden_states[: len(have) + 1]
    longer = replace(
        sequence,
        token_ids=torch.cat([tokens, tokens[-1:].expand(missing)]),
        hidden_states=torch.cat([states, states[-1:].expand(missing, -1, -1)]),
    )
    return Piece(longer, have.start, have.start + rows)
