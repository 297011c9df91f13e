"""How good is a drafter: simulated accept length on sequences that it was not trained on.

Speculative decoding (arXiv 2211.17192) draws a draft from the drafter's probabilities q and keeps it with
min(1, p / q), p being the target's; a token x is therefore drafted and kept with min(p(x), q(x)).  The recorded tokens
were drawn from p, so that the mean of min(1, q(x) / p(x)) over them estimates how often drafts are kept, and products
of it how many in a row, at the temperature at which each sequence was sampled.  At temperature 0 only the likeliest
token counts.  p is taken over the draft vocabulary, which makes it a little too large, and the estimate a little low.

An engine does not draft at every position.  Where drafts are good it takes long strides, so that most of its drafts
begin where they are bad, and tokens per draft are fewer than the mean over positions.  So the engine's way through each
recorded answer is followed: a position counts as often as a draft is expected to begin there.  Given the token that
stands next, min(1, q / p) is just how often it came by being drafted, so the way is followed exactly.
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
    """What an engine is expected to do for one sequence."""

    tokens: float  # that it generates, bonus tokens included
    drafts: float  # that it makes for them


@dataclass(frozen=True, kw_only=True)
class Score:
    """Tokens per draft with their standard error, sequences taken as the independent units."""

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
            score = score_batch(model, batch, draft_length=draft_length, temperature=temperature)
            scores += [score] if score.drafts else []  # none in an answer that is shorter than a draft
    return scores


def score_batch(model: Eagle3DraftModel, batch: PackedBatch, *, draft_length: int, temperature: float) -> SequenceScore:
    """Scores one sequence, from the first token of its answer on."""
    tokens = draft_ids(model, batch.token_ids[0])
    count = len(tokens) - draft_length
    # The token under draft step k of row i stands 1 + k rows further on, and row i + k knew its probability.
    followed = torch.stack([tokens[1 + step : 1 + step + count] for step in range(draft_length)])
    drafted = draft_logits(model, batch, draft_length=draft_length)[:, :count]
    answers = target_logits(model, batch)
    wanted = torch.stack([answers[step : step + count] for step in range(draft_length)])
    chances = kept(drafted, wanted, followed, temperature=temperature)
    return follow(chances[:, batch.loss_mask[0, :count]])


def follow(chances: torch.Tensor) -> SequenceScore:
    """An engine's expected way through an answer, which it leaves with the first draft that begins beyond it.

    Args:
        chances: [draft length, rows], how likely the draft of each step is kept when those before it were, for drafts
            that begin at each row.
    """
    length, rows = chances.shape
    leading = torch.cat([torch.ones(1, rows), chances.cpu().cumprod(0), torch.zeros(1, rows)])
    strides = (leading[:-1] - leading[1:]).T.tolist()  # [rows][kept drafts], how likely it is that many
    visits = [1.0, *([0.0] * (rows + length))]
    tokens = 0.0
    for row, shares in enumerate(strides):
        for kept_drafts, share in enumerate(shares):
            visits[row + 1 + kept_drafts] += visits[row] * share
            tokens += visits[row] * share * (1 + kept_drafts)
    return SequenceScore(tokens=tokens, drafts=sum(visits[:rows]))


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
    """Tokens per draft of all sequences; ValueError when there is nothing to score."""
    drafts = sum(score.drafts for score in scores)
    if not drafts:
        raise ValueError("no held-out positions to score")
    return Score(
        accept_length=sum(score.tokens for score in scores) / drafts, standard_error=_cluster_error(_deviations(scores))
    )


def gain(scores: Sequence[SequenceScore], parent: Sequence[SequenceScore]) -> Score:
    """By how much the accept length differs from the parent's on the same sequences."""
    pairs = zip(_deviations(scores), _deviations(parent), strict=True)
    return Score(
        accept_length=summarise(scores).accept_length - summarise(parent).accept_length,
        standard_error=_cluster_error([ours - theirs for ours, theirs in pairs]),
    )


def _deviations(scores: Sequence[SequenceScore]) -> list[float]:
    """What each sequence adds to the error of the ratio of sums (linearised)."""
    drafts = sum(score.drafts for score in scores)
    mean = sum(score.tokens for score in scores) / drafts
    return [(score.tokens - mean * score.drafts) / drafts for score in scores]


def _cluster_error(deviations: Sequence[float]) -> float:
    """Standard error of a ratio of sums over clusters; infinite with a single cluster."""
    clusters = len(deviations)
    if clusters < 2:
        return math.inf
    return math.sqrt(sum(item * item for item in deviations) * clusters / (clusters - 1))
