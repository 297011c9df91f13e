"""How good is a drafter: simulated accept length on sequences that it was not trained on.

Speculative decoding (arXiv 2211.17192) draws a draft from the drafter's probabilities q and keeps it with
min(1, p / q), p being the target's; a token x is therefore drafted and kept with min(p(x), q(x)).  The recorded tokens
were drawn from p, so that the mean of min(1, q(x) / p(x)) over them estimates how often drafts are kept, and products
of it how many in a row, at the temperature at which each sequence was sampled.  At temperature 0 only the likeliest
token counts.  p is taken over the draft vocabulary, which makes it a little too large, and the estimate a little low.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from speculators.models.eagle3 import Eagle3DraftModel

from tlt_workloads.shards import CapturedSequence
from tlt_workloads.trainer.model import draft_ids, draft_logits, target_logits
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
            batch = pack([piece], draft_length=1).to(model.device)
            temperature = sequence.temperature
            scores.append(score_batch(model, batch, draft_length=draft_length, temperature=temperature))
    return scores


def score_batch(model: Eagle3DraftModel, batch: PackedBatch, *, draft_length: int, temperature: float) -> SequenceScore:
    """Scores one sequence: at each position, one plus how many leading drafts are kept on the way that was taken."""
    tokens = draft_ids(model, batch.token_ids[0])
    count = len(tokens) - draft_length
    # The token under draft step k of row i stands 1 + k rows further on, and row i + k knew its probability.
    followed = torch.stack([tokens[1 + step : 1 + step + count] for step in range(draft_length)])
    drafted = draft_logits(model, batch, draft_length=draft_length)[:, :count]
    answers = target_logits(model, batch)
    wanted = torch.stack([answers[step : step + count] for step in range(draft_length)])
    accepted = kept(drafted, wanted, followed, temperature=temperature).cumprod(0).sum(0) + 1
    mask = batch.loss_mask[0, :count]
    return SequenceScore(accepted=float(accepted[mask].sum()), positions=int(mask.sum()))


def kept(drafted: torch.Tensor, wanted: torch.Tensor, followed: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """How likely a draft is kept, on the way of the tokens that followed.

    Args:
        drafted: logits of the drafter [..., draft vocabulary].
        wanted: logits of the target, of the same shape.
        followed: draft ids of the tokens that followed [...], -1 for tokens that are never drafted.
        temperature: that both were sampled at.

    Returns:
        min(1, q / p) of these tokens [...]; at temperature 0 whether the drafter's likeliest token is the one.
    """
    if temperature == 0:
        return (drafted.argmax(-1) == followed).float()
    chosen = followed.clamp_min(0)[..., None]
    q = torch.log_softmax(drafted.float() / temperature, -1).gather(-1, chosen)[..., 0]
    p = torch.log_softmax(wanted.float() / temperature, -1).gather(-1, chosen)[..., 0]
    return torch.where(followed >= 0, (q - p).exp().clamp_max(1), 0.0)


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
