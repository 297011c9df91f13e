"""How good is a drafter: simulated accept length on sequences that it was not trained on.

With greedy drafts, speculative decoding accepts a draft exactly when the target samples that very token.  The recorded
sequences are such samples, so counting the leading drafts that equal them estimates the live accept length at the
temperature of the rollout, whatever it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from speculators.models.eagle3 import Eagle3DraftModel

from tlt_workloads.shards import CapturedSequence
from tlt_workloads.trainer.model import propose
from tlt_workloads.trainer.packing import PackedBatch, Piece, pack, usable_rows


@dataclass(frozen=True, kw_only=True)
class SequenceScore:
    """Sum of accept lengths over the positions of one sequence."""

    accepted: float  # bonus tokens included
    positions: int


@dataclass(frozen=True, kw_only=True)
class Score:
    """Mean accept length with its standard error, sequences taken as the independent units."""

    accept_length: float
    standard_error: float


def score_sequences(
    model: Eagle3DraftModel,
    sequences: Sequence[CapturedSequence],
    *,
    draft_length: int,
    check: Callable[[], None],
    longest: int = 512,
) -> list[SequenceScore]:
    """Scores each sequence by itself.

    Args:
        model: the drafter.
        sequences: held-out sequences.
        draft_length: drafts per step of the engine.
        check: called between sequences; raises to leave.
        longest: rows of a sequence that are looked at.
    """
    scores = []
    for sequence in sequences:
        check()
        rows = usable_rows(sequence)
        piece = Piece(sequence, rows.start, min(rows.stop, rows.start + longest))
        if len(piece) > draft_length:
            scores.append(score_batch(model, pack([piece], draft_length=1).to(model.device), draft_length=draft_length))
    return scores


def score_batch(model: Eagle3DraftModel, batch: PackedBatch, *, draft_length: int) -> SequenceScore:
    """Scores one sequence: at each position, one plus how many leading drafts are the tokens that followed."""
    drafts = propose(model, batch, draft_length=draft_length)  # [draft length, tokens]
    tokens = batch.token_ids[0]
    count = len(tokens) - draft_length
    # The token under draft step k of row i stands 1 + k rows further on.
    followed = torch.stack([tokens[1 + step : 1 + step + count] for step in range(draft_length)])
    accepted = (drafts[:, :count] == followed).cumprod(0).sum(0) + 1
    mask = batch.loss_mask[0, :count]
    return SequenceScore(accepted=float(accepted[mask].sum()), positions=int(mask.sum()))


def summarise(scores: Sequence[SequenceScore]) -> Score:
    """Mean over all positions; ValueError when there are none."""
    positions = sum(score.positions for score in scores)
    if not positions:
        raise ValueError("no held-out positions to score")
    mean = sum(score.accepted for score in scores) / positions
    deviations = [score.accepted - mean * score.positions for score in scores]
    return Score(accept_length=mean, standard_error=_cluster_error(deviations, positions))


def gain(scores: Sequence[SequenceScore], parent: Sequence[SequenceScore]) -> Score:
    """By how much the mean accept length differs from the parent's on the same sequences."""
    positions = sum(score.positions for score in scores)
    differences = [ours.accepted - theirs.accepted for ours, theirs in zip(scores, parent, strict=True)]
    mean = sum(differences) / positions
    deviations = [difference - mean * score.positions for difference, score in zip(differences, scores, strict=True)]
    return Score(accept_length=mean, standard_error=_cluster_error(deviations, positions))


def _cluster_error(deviations: Sequence[float], positions: int) -> float:
    """Standard error of a ratio of sums over clusters; infinite with a single cluster."""
    clusters = len(deviations)
    if clusters < 2:
        return math.inf
    return math.sqrt(sum(item * item for item in deviations) * clusters / (clusters - 1)) / positions
