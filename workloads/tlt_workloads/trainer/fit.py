"""A first drafter by linear regression, before any gradient.

Gradient descent needs tens of thousands of tokens before an EAGLE-3 drafter is of any use, and an idle window gives a
few thousand.  But most of what the drafter has to know is linear: where the last hidden state goes, given where it is
and which token came next.  So the weights are solved for.  In the drafter's own parts that reads:

    fc         auxiliary layers of token t                 -> last hidden state of t
    attention  the same, and the embedding of token t + 1  -> how the last hidden state moves on to t + 1
    MLP        random features of both                     -> what is still missing

The move must pass through the attention's values, so it is cut to as many directions as these have (reduced-rank
regression), and queries and keys are made so that each position looks at itself: both are the same random projection
of the embedding, whitened over the vocabulary, which no other token's resembles.  Gradients take it from there.

All hidden states are handled in units of their own spread, which the norms' gains supply.  Raw residual streams have a
few dimensions a hundred times larger than the rest; there, one step of Adam undoes everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from tlt_workloads.drafter import DrafterConfig
from tlt_workloads.shards import CapturedSequence
from tlt_workloads.trainer.model import FrozenTarget
from tlt_workloads.trainer.packing import usable_rows

_LAYER = "layers.0"
_RIDGE = 0.1  # of a feature's variance
_RIDGE_MLP = 0.3
_SELF_SCORE = 16.0  # attention logit of a position for itself, where others have about zero
_UNIT = 0.125  # spread of what the weights see; with it the usual learning rates of Adam are right
_VALUES = 0.125  # spread of what the attention carries
_CALIBRATION_ROWS = 256
_VOCABULARY_ROWS = 8192  # of the embedding, evenly spread, that stand for all of it
_BLOCK = 2048  # rows between two looks at the stop flag


@dataclass(frozen=True, eq=False)
class _Examples:
    """Aligned rows of many sequences; row by row: features of token t, embedding of t + 1, last states of both."""

    features: torch.Tensor  # [rows, layers, hidden], each layer normalised
    embedding: torch.Tensor  # [rows, hidden], normalised
    last: torch.Tensor  # [rows, hidden]
    next_last: torch.Tensor  # [rows, hidden]

    def __len__(self) -> int:
        return len(self.last)


def fit_drafter(
    shape: DrafterConfig,
    tensors: Mapping[str, torch.Tensor],
    target: FrozenTarget,
    sequences: Sequence[CapturedSequence],
    *,
    device: torch.device,
    check: Callable[[], None],
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Solves for a drafter's weights.

    Args:
        shape: of the drafter; it must normalise each auxiliary layer by itself.
        tensors: of any drafter of this shape; vocabulary and head are kept.
        target: embedding and head.
        sequences: what the policy generated; a few thousand tokens are enough.
        device: to calculate on; 4,000 rows of a model of width 576 take three seconds of one CPU core.
        check: called between the steps of the calculation; raises to leave.
        seed: of the random projections.

    Returns:
        All tensors of the drafter, float32 where they are weights.

    Raises:
        StepAbandonedError: `check` raised it.
    """
    generator = torch.Generator().manual_seed(seed)
    examples = _collect(shape, sequences, target, device)
    spread = _spread(examples.last)  # the drafter works in units of it; the norm before the head puts it back
    now, following = examples.last / spread, examples.next_last / spread

    features, feature_gain = _standardised(examples.features.flatten(1))
    mix = _regress(features, now, check=check)
    state = features @ mix  # [rows, hidden], the last hidden state as the auxiliary layers foretell it

    vocabulary = _normalised(_thinned(target.embedding, _VOCABULARY_ROWS).to(device, torch.float32), shape)
    _, embedding_gain = _standardised(vocabulary)
    normal_state, state_gain = _standardised(_normalised(state, shape))
    heard = torch.cat([examples.embedding * embedding_gain, normal_state], dim=1)  # [rows, 2 * hidden]
    move = _regress(heard, following - state, check=check)  # [2 * hidden, hidden]
    narrow, wide = _reduced(heard, move, spread, rank=shape.key_value_heads * shape.head_size)
    check()
    moved = state + heard @ narrow @ wide

    seen, moved_gain = _standardised(_normalised(moved, shape))
    gate, up = _random_features(shape, generator, device)
    active = torch.nn.functional.silu(seen @ gate.T) * (seen @ up.T)  # [rows, intermediate]
    down = _regress(active, following - moved, check=check, ridge=_RIDGE_MLP)
    guess = _normalised(moved + active @ down, shape) * spread

    check()
    looks = _self_attention(shape, vocabulary * embedding_gain, generator)  # [key-value heads, head, 2 * hidden]
    group = shape.attention_heads // shape.key_value_heads
    solved = {
        "fc.weight": mix.T,
        f"{_LAYER}.input_layernorm.weight": embedding_gain,
        f"{_LAYER}.hidden_norm.weight": state_gain,
        f"{_LAYER}.post_attention_layernorm.weight": moved_gain,
        f"{_LAYER}.self_attn.q_proj.weight": looks.repeat_interleave(group, dim=0).flatten(0, 1),
        f"{_LAYER}.self_attn.k_proj.weight": looks.flatten(0, 1),
        f"{_LAYER}.self_attn.v_proj.weight": narrow.T,
        f"{_LAYER}.self_attn.o_proj.weight": _spread_over_heads(shape, wide.T),
        f"{_LAYER}.mlp.gate_proj.weight": gate,
        f"{_LAYER}.mlp.up_proj.weight": up,
        f"{_LAYER}.mlp.down_proj.weight": down.T,
        "norm.weight": spread * _best_scale(guess, examples.next_last, target.head.to(device, torch.float32)),
    }
    solved |= {f"fc_norm.{index}.weight": gain for index, gain in enumerate(feature_gain.chunk(len(shape.layer_ids)))}
    return {**tensors, **{name: tensor.contiguous() for name, tensor in solved.items()}}


def fitted_rows(sequence: CapturedSequence) -> range:
    """Rows of a sequence that are used: those whose next token was generated; the alignment of packing.py."""
    rows = usable_rows(sequence)
    return range(min(rows.stop, max(rows.start, sequence.prompt_length - 1)), rows.stop)


def _collect(
    shape: DrafterConfig, sequences: Sequence[CapturedSequence], target: FrozenTarget, device: torch.device
) -> _Examples:
    parts = [_aligned(shape, sequence, target) for sequence in sequences]
    features, embedding, last, next_last = (torch.cat(column).to(device) for column in zip(*parts, strict=True))
    return _Examples(features, embedding, last, next_last)


def _aligned(shape: DrafterConfig, sequence: CapturedSequence, target: FrozenTarget) -> tuple[torch.Tensor, ...]:
    rows = fitted_rows(sequence)
    states = sequence.hidden_states[rows.start - sequence.first_row : rows.stop + 1 - sequence.first_row].float()
    tokens = sequence.token_ids[rows.start + 1 : rows.stop + 1].long()
    embedding = _normalised(target.embedding[tokens].float(), shape)
    return _normalised(states[:-1, :-1], shape), embedding, states[:-1, -1], states[1:, -1]


def _regress(
    inputs: torch.Tensor, outputs: torch.Tensor, *, check: Callable[[], None], ridge: float = _RIDGE
) -> torch.Tensor:
    """Ridge regression without intercept: [inputs, outputs]."""
    covariance = inputs.new_zeros(inputs.shape[1], inputs.shape[1])
    products = inputs.new_zeros(inputs.shape[1], outputs.shape[1])
    for some, wanted in zip(torch.split(inputs, _BLOCK), torch.split(outputs, _BLOCK), strict=True):
        check()
        covariance.addmm_(some.T, some)
        products.addmm_(some.T, wanted)
    covariance.diagonal().mul_(1 + ridge).add_(1e-6)
    check()
    solution: torch.Tensor = torch.linalg.solve(covariance, products)
    return solution


def _reduced(
    inputs: torch.Tensor, weights: torch.Tensor, importance: torch.Tensor, *, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two factors [inputs, rank] and [rank, outputs] of a regression's weights, closest in what they predict.

    Outputs count as the head will see them, by `importance` [outputs].  A rank beyond the outputs is filled with zeros.
    """
    predicted = inputs @ (weights * importance)
    directions = torch.linalg.eigh(predicted.T @ predicted).eigenvectors.T.flip(0)[:rank]  # the strongest first
    narrow = (weights * importance) @ directions.T
    scale = _spread(inputs @ narrow) / _VALUES
    missing = rank - len(directions)
    return (
        torch.nn.functional.pad(narrow / scale, (0, missing)),
        torch.nn.functional.pad(scale[:, None] * directions / importance, (0, 0, 0, missing)),
    )


def _spread_over_heads(shape: DrafterConfig, wide: torch.Tensor) -> torch.Tensor:
    """The output projection [hidden, queries]: all heads that share values get an equal part of what these carry."""
    group = shape.attention_heads // shape.key_value_heads
    per_values = wide.reshape(len(wide), shape.key_value_heads, shape.head_size) / group
    return per_values.repeat_interleave(group, dim=1).flatten(1)


def _self_attention(shape: DrafterConfig, vocabulary: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Projections [key-value heads, head, 2 * hidden] that serve as queries and as keys.

    Whitened over the vocabulary, and not over what is spoken: the frequent tokens would become too small to find
    themselves.
    """
    hidden = shape.hidden_size
    values, vectors = torch.linalg.eigh(vocabulary.T @ vocabulary / len(vocabulary))
    whiten = (vectors * values.clamp_min(1e-3 * float(values.mean())).rsqrt()) @ vectors.T
    # Of whitened embeddings, `head` random directions have a squared length of about `head`; attention divides by its
    # root, and the strength makes of that the wanted logit.
    strength = math.sqrt(_SELF_SCORE / math.sqrt(shape.head_size))
    looks = [
        strength * torch.linalg.qr(torch.randn(hidden, shape.head_size, generator=generator)).Q.T.to(whiten) @ whiten
        for _ in range(shape.key_value_heads)
    ]
    return torch.nn.functional.pad(torch.stack(looks), (0, hidden))


def _random_features(
    shape: DrafterConfig, generator: torch.Generator, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate and up projections [intermediate, hidden] that answer standardised input with about one, and its unit."""
    size = (shape.intermediate_size, shape.hidden_size)
    scale = 1 / (_UNIT * math.sqrt(shape.hidden_size))
    gate, up = (torch.randn(size, generator=generator).to(device) * scale for _ in range(2))
    return gate, up * _UNIT


def _best_scale(guess: torch.Tensor, wanted: torch.Tensor, head: torch.Tensor) -> float:
    """How much to trust the guess: the factor under which its token probabilities come closest to the target's."""
    logits = _thinned(guess, _CALIBRATION_ROWS) @ head.T
    probabilities = torch.softmax(_thinned(wanted, _CALIBRATION_ROWS) @ head.T, dim=-1)
    factors = [0.8**power for power in range(-1, 10)]
    losses = [-float((probabilities * torch.log_softmax(logits * factor, -1)).sum()) for factor in factors]
    return factors[losses.index(min(losses))]


def _standardised(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values with every dimension at the same spread, and the gains [dimensions] that make them so."""
    gain = _UNIT / _spread(values)
    return values * gain, gain


def _thinned(values: torch.Tensor, count: int) -> torch.Tensor:
    """At most so many rows, evenly spaced."""
    return values[:: max(1, math.ceil(len(values) / count))]


def _spread(values: torch.Tensor) -> torch.Tensor:
    """Root mean square of each dimension."""
    return values.pow(2).mean(0).sqrt().clamp_min(1e-4)


def _normalised(values: torch.Tensor, shape: DrafterConfig) -> torch.Tensor:
    """RMS norm without gain over the last dimension."""
    return values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + shape.rms_norm_eps)
