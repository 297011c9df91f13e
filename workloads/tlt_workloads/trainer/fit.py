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

The rows are gone through three times, block by block, and only sums over them are kept, so that memory does not grow
with their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from tlt_workloads.drafter import DrafterConfig
from tlt_workloads.shards import CapturedSequence
from tlt_workloads.trainer.model import FrozenTarget
from tlt_workloads.trainer.packing import usable_rows

_LAYER = "layers.0"
_RIDGE, _RIDGE_MLP = 0.1, 0.3  # of an input's variance
_SELF_SCORE = 16.0  # attention logit of a position for itself, where others have about zero
_UNIT = 0.125  # spread of what the weights see; with it the usual learning rates of Adam are right
_VALUES = 0.125  # spread of what the attention carries
_SAMPLE_ROWS = 1024  # evenly spread, that stand for all rows where a sum over them does not serve
_CALIBRATION_ROWS = 256
_VOCABULARY_ROWS = 8192  # of the embedding, evenly spread, that stand for all of it
_BLOCK = 512  # rows between two looks at the stop flag, at least


@dataclass(frozen=True, eq=False)
class _Block:
    """Aligned rows of some sequences; row by row: features of token t, embedding of t + 1, last states of both."""

    features: torch.Tensor  # [rows, layers * hidden], each layer normalised
    embedding: torch.Tensor  # [rows, hidden], normalised
    last: torch.Tensor  # [rows, hidden]
    next_last: torch.Tensor  # [rows, hidden]


class _Regression:
    """Ridge regression without intercept, from sums over rows."""

    def __init__(self) -> None:
        self.rows = 0
        self._covariance = torch.zeros(())
        self._products = torch.zeros(())

    def add(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """Takes rows in: [rows, inputs], [rows, outputs]."""
        if not self.rows:
            self._covariance = inputs.new_zeros(inputs.shape[1], inputs.shape[1])
            self._products = inputs.new_zeros(inputs.shape[1], outputs.shape[1])
        self.rows += len(inputs)
        self._covariance.addmm_(inputs.T, inputs)
        self._products.addmm_(inputs.T, outputs)

    def spread(self) -> torch.Tensor:
        """Root mean square of each input [inputs]."""
        return (self._covariance.diagonal() / self.rows).sqrt().clamp_min(1e-4)

    def covariance(self, gain: torch.Tensor) -> torch.Tensor:
        """Mean products [inputs, inputs] of the inputs times their gains [inputs]."""
        return self._covariance * gain * gain[:, None] / self.rows

    def solve(self, gain: torch.Tensor, *, ridge: float) -> torch.Tensor:
        """Weights [inputs, outputs] for the inputs times their gains [inputs]; `ridge` is a share of their variance."""
        covariance = self.covariance(gain)
        covariance.diagonal().mul_(1 + ridge).add_(1e-9)
        solution: torch.Tensor = torch.linalg.solve(covariance, self._products * gain[:, None] / self.rows)
        return solution


def fit_drafter(
    shape: DrafterConfig,
    tensors: Mapping[str, torch.Tensor],
    target: FrozenTarget,
    sequences: Iterable[CapturedSequence],
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
        sequences: what the policy generated, gone through several times; a few thousand tokens are enough, and ten
            times as many are better.
        device: to calculate on; a core takes about half a millisecond for a row of a model of width 576.
        check: called between the steps of the calculation; raises to leave.
        seed: of the random projections.

    Returns:
        All tensors of the drafter, float32 where they are weights.

    Raises:
        StepAbandonedError: `check` raised it.
    """
    generator = torch.Generator().manual_seed(seed)

    def blocks() -> Iterator[_Block]:
        for block in _blocks(shape, sequences, target, device):
            check()
            yield block

    seen_now, size = _Regression(), torch.zeros(shape.hidden_size, device=device)
    for block in blocks():
        seen_now.add(block.features, block.last)
        size += block.last.pow(2).sum(0)
    spread = (size / seen_now.rows).sqrt().clamp_min(1e-4)  # the drafter works in units of it
    feature_gain = _UNIT / seen_now.spread()
    check()
    mix = seen_now.solve(feature_gain, ridge=_RIDGE) / spread

    vocabulary = _normalised(_thinned(target.embedding, _VOCABULARY_ROWS).to(device, torch.float32), shape)
    embedding_gain = _UNIT / _spread(vocabulary)

    def heard_in(block: _Block) -> tuple[torch.Tensor, torch.Tensor]:
        """The last hidden state as the auxiliary layers foretell it, and all that the attention may carry of it."""
        state = (block.features * feature_gain) @ mix
        return state, torch.cat([block.embedding * embedding_gain, _normalised(state, shape)], dim=1)

    moves, samples = _Regression(), []
    for block in blocks():
        state, heard = heard_in(block)
        moves.add(heard, block.next_last / spread - state)
        samples.append(_every(block, math.ceil(seen_now.rows / _SAMPLE_ROWS)))
    state_gain = _UNIT / moves.spread()[shape.hidden_size :]
    gain = torch.cat([torch.ones_like(embedding_gain), state_gain])  # the embedding has its own already
    check()
    move = moves.solve(gain, ridge=_RIDGE)  # [2 * hidden, hidden]
    narrow, wide = _reduced(moves.covariance(gain), move, spread, rank=shape.key_value_heads * shape.head_size)

    def moved_in(block: _Block) -> torch.Tensor:
        state, heard = heard_in(block)
        return state + (heard * gain) @ narrow @ wide

    check()
    sample = _joined(samples)
    moved_gain = _UNIT / _spread(_normalised(moved_in(sample), shape))
    gate, up = _random_features(shape, generator, device)

    def active_in(moved: torch.Tensor) -> torch.Tensor:
        seen = _normalised(moved, shape) * moved_gain
        return torch.nn.functional.silu(seen @ gate.T) * (seen @ up.T)  # [rows, intermediate]

    missing = _Regression()
    for block in blocks():
        moved = moved_in(block)
        missing.add(active_in(moved), block.next_last / spread - moved)
    check()
    down = missing.solve(torch.ones(shape.intermediate_size, device=device), ridge=_RIDGE_MLP)
    moved = moved_in(sample)
    guess = _normalised(moved + active_in(moved) @ down, shape) * spread

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
        "norm.weight": spread * _best_scale(guess, sample.next_last, target.head.to(device, torch.float32)),
    }
    solved |= {f"fc_norm.{index}.weight": gain for index, gain in enumerate(feature_gain.chunk(len(shape.layer_ids)))}
    return {**tensors, **{name: tensor.contiguous() for name, tensor in solved.items()}}


def fitted_rows(sequence: CapturedSequence) -> range:
    """Rows of a sequence that are used: those whose next token was generated; the alignment of packing.py."""
    rows = usable_rows(sequence)
    return range(min(rows.stop, max(rows.start, sequence.prompt_length - 1)), rows.stop)


def _blocks(
    shape: DrafterConfig, sequences: Iterable[CapturedSequence], target: FrozenTarget, device: torch.device
) -> Iterator[_Block]:
    waiting, rows = list[_Block](), 0
    for sequence in sequences:
        waiting.append(_aligned(shape, sequence, target, device))
        rows += len(waiting[-1].last)
        if rows >= _BLOCK:
            yield _joined(waiting)
            waiting, rows = [], 0
    if rows:
        yield _joined(waiting)


def _joined(blocks: list[_Block]) -> _Block:
    columns = zip(*((block.features, block.embedding, block.last, block.next_last) for block in blocks), strict=True)
    return _Block(*(torch.cat(column) for column in columns))


def _every(block: _Block, stride: int) -> _Block:
    return _Block(*(part[::stride] for part in (block.features, block.embedding, block.last, block.next_last)))


def _aligned(shape: DrafterConfig, sequence: CapturedSequence, target: FrozenTarget, device: torch.device) -> _Block:
    rows = fitted_rows(sequence)
    states = sequence.hidden_states[rows.start - sequence.first_row : rows.stop + 1 - sequence.first_row]
    tokens = sequence.token_ids[rows.start + 1 : rows.stop + 1].long()
    states, embedding = states.to(device).float(), target.embedding[tokens].to(device).float()
    features = _normalised(states[:-1, :-1], shape).flatten(1)
    return _Block(features, _normalised(embedding, shape), states[:-1, -1], states[1:, -1])


def _reduced(
    covariance: torch.Tensor, weights: torch.Tensor, importance: torch.Tensor, *, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two factors [inputs, rank] and [rank, outputs] of a regression's weights, closest in what they predict.

    Outputs count as the head will see them, by `importance` [outputs].  A rank beyond the outputs is filled with zeros.
    """
    weighed = weights * importance
    predicted = weighed.T @ covariance @ weighed
    directions = torch.linalg.eigh(predicted).eigenvectors.T.flip(0)[:rank]  # the strongest first
    narrow = weighed @ directions.T
    scale = (narrow * (covariance @ narrow)).sum(0).clamp_min(0).sqrt().clamp_min(1e-4) / _VALUES
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


def _thinned(values: torch.Tensor, count: int) -> torch.Tensor:
    """At most so many rows, evenly spaced."""
    return values[:: max(1, math.ceil(len(values) / count))]


def _spread(values: torch.Tensor) -> torch.Tensor:
    """Root mean square of each dimension."""
    return values.pow(2).mean(0).sqrt().clamp_min(1e-4)


def _normalised(values: torch.Tensor, shape: DrafterConfig) -> torch.Tensor:
    """RMS norm without gain over the last dimension."""
    return values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + shape.rms_norm_eps)
