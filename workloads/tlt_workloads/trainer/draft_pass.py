"""One training pass on a processor: what speculators' EAGLE-3 module computes, in less work.

Weights and modules are speculators', and so is the result (tests compare both).  What differs is the order of work:

- A piece attends within itself, not within a mask over all rows and all draft steps.
- The head sees only rows that carry loss, and the target's answer to a row is computed once, not once a draft step.
- Head and loss go through blocks of rows that stay in the cache, and each block's gradient is taken at once, as
  Liger Kernel does (arXiv 2410.10989).  No tensor of rows times vocabulary is ever kept.
- Matrices are multiplied in bfloat16 where the processor has instructions for that; sums and weights stay float32.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from speculators.losses import resolve_loss_config
from speculators.models.eagle3 import Eagle3DraftModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tlt_workloads.trainer.packing import PackedBatch

BLOCK = 128  # rows of head and loss at once: 4 MiB for a draft vocabulary of 8192
KL = "kl_div"


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices by itself; emulated, they would be slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@dataclass(frozen=True, eq=False)
class _Pieces:
    """Where rows stand when each piece has a line of its own, filled up to the longest."""

    rows: torch.Tensor  # int64 [pieces * longest], the row that stands there; 0 where none does
    places: torch.Tensor  # int64 [rows], the place of a row
    count: int
    longest: int

    @classmethod
    def of(cls, documents: torch.Tensor) -> _Pieces:
        """From the document ids [rows] of a batch without padding."""
        lengths = torch.bincount(documents)
        count, longest = len(lengths), int(lengths.max())
        starts = torch.cumsum(lengths, 0) - lengths
        places = documents * longest + torch.arange(len(documents)) - starts[documents]
        rows = torch.zeros(count * longest, dtype=torch.int64)
        rows[places] = torch.arange(len(documents))
        return cls(rows, places, count, longest)

    def apart(self, values: torch.Tensor) -> torch.Tensor:
        """[rows, heads, size] to [pieces, heads, longest, size]."""
        return values[self.rows].reshape(self.count, self.longest, *values.shape[1:]).transpose(1, 2)

    def together(self, values: torch.Tensor) -> torch.Tensor:
        """[pieces, heads, longest, size] to [rows, heads, size]."""
        return values.transpose(1, 2).flatten(0, 1)[self.places]


class DraftPass:
    """Made once for a model; call it for each batch."""

    def __init__(
        self,
        model: Eagle3DraftModel,
        *,
        draft_length: int,
        loss: str,
        step_decay: float,
        check: Callable[[], None],
        low_precision: bool | None = None,
    ) -> None:
        """Args:
        model: on the CPU.
        draft_length: steps ahead.
        loss: speculators' name of it, or its JSON with weights.
        step_decay: how much less each further step counts.
        check: called between blocks; raises to leave.
        low_precision: whether to multiply in bfloat16; None asks the processor.
        """
        self._model = model
        self._draft_length = draft_length
        self._loss = loss
        self._step_decay = step_decay
        self._check = check
        self._low = has_bfloat16() if low_precision is None else low_precision
        self._head = model.lm_head.weight.detach().to(torch.bfloat16 if self._low else torch.float32)
        self._target_head = self._head
        if model.verifier_lm_head.weight is not model.lm_head.weight and not torch.equal(
            model.verifier_lm_head.weight, model.lm_head.weight
        ):
            self._target_head = model.verifier_lm_head.weight.detach().to(self._head.dtype)

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """Mean loss over the batch's trained positions, summed over draft steps."""
        positions = batch.loss_mask[0].nonzero().flatten()
        if not len(positions):
            learning = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
            return 0.0 * torch.stack([parameter.sum() for parameter in learning]).sum()
        with torch.autocast("cpu", torch.bfloat16) if self._low else contextlib.nullcontext():
            states = self._states(batch, positions)
        weights = [self._step_decay**step / (len(positions) + 1e-5) for step in range(self._draft_length)]
        answers = batch.last_hidden[0, positions]
        result: torch.Tensor = _HeadLoss.apply(  # type: ignore[no-untyped-call]
            states, answers, self._head, self._target_head, weights, self._row_losses(), self._check
        )
        return result

    def _states(self, batch: PackedBatch, positions: torch.Tensor) -> torch.Tensor:
        """What the head reads [draft length, positions, hidden]: at each step, the state that predicts the position."""
        model, config = self._model, self._model.config
        pieces = _Pieces.of(batch.document_ids[0])
        hidden, tokens = self._mixed(batch.features[0]), batch.token_ids[0]
        layer, attention = model.layers[0], _Attention(model.layers[0].self_attn, pieces)
        found = []
        for step in range(self._draft_length):
            ahead = torch.nn.functional.pad(tokens[step:], (0, step))
            embedded = layer.input_layernorm(model.embed_tokens(ahead).float())
            normal = layer.hidden_norm(hidden)
            residual = normal if layer.norm_before_residual else hidden
            both = torch.cat([embedded, normal], dim=-1)
            rotation = model.rotary_emb(both[None], batch.position_ids + step)
            hidden = residual + attention(both, rotation)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            ready = model.norm(hidden)
            if config.norm_output:
                hidden = ready
            found.append(ready[positions - step])
        return torch.stack(found)

    def _mixed(self, features: torch.Tensor) -> torch.Tensor:
        model = self._model
        if model.input_norm is not None:
            features = model.input_norm(features)
        if model.fc_norm is not None:
            chunks = features.chunk(len(model.fc_norm), dim=-1)
            features = torch.cat([norm(chunk) for norm, chunk in zip(model.fc_norm, chunks, strict=True)], dim=-1)
        mixed: torch.Tensor = model.fc(features).float()
        return mixed

    def _row_losses(self) -> list[tuple[Callable[..., torch.Tensor], float]] | None:
        """Losses with their weights; None for plain KL, which has a way of its own."""
        if self._loss == KL:
            return None
        return list(resolve_loss_config(self._loss, "eager").values())


class _Attention:
    """Attention of one batch over its draft steps: to the first step's rows of the same piece, and to itself later."""

    def __init__(self, module: Any, pieces: _Pieces) -> None:
        self._module = module
        self._pieces = pieces
        longest = pieces.longest
        self._mask = torch.full((longest, longest), -math.inf).triu(1)
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []

    def __call__(self, inputs: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        module, pieces = self._module, self._pieces
        query, key, value = (
            project(inputs).reshape(len(inputs), -1, module.head_dim)
            for project in (module.q_proj, module.k_proj, module.v_proj)
        )
        query, key = apply_rotary_pos_emb(
            query.transpose(0, 1)[None], key.transpose(0, 1)[None], *rotation
        )  # [1, heads, rows, size]
        query, key = query[0].transpose(0, 1).to(value.dtype), key[0].transpose(0, 1).to(value.dtype)
        self._keys.append(pieces.apart(key))
        self._values.append(pieces.apart(value))
        mixed = pieces.together(self._mixed(pieces.apart(query)))
        answer: torch.Tensor = module.o_proj(mixed.flatten(1))
        return answer

    def _mixed(self, query: torch.Tensor) -> torch.Tensor:
        """[pieces, heads, longest, size]; heads that share keys stand side by side."""
        count, shared, longest, size = self._keys[0].shape
        group = query.shape[1] // shared
        query = query.reshape(count, shared, group, longest, size) * self._module.scaling
        scores = query.flatten(2, 3) @ self._keys[0].transpose(-1, -2)  # [pieces, shared, group * longest, longest]
        scores = scores.reshape(count, shared, group, longest, longest).float() + self._mask
        own = [(query.float() * key[:, :, None].float()).sum(-1, keepdim=True) for key in self._keys[1:]]
        shares = torch.softmax(torch.cat([scores, *own], dim=-1), dim=-1).to(query.dtype)
        mixed = (shares[..., :longest].flatten(2, 3) @ self._values[0]).reshape(count, shared, group, longest, size)
        for step, value in enumerate(self._values[1:]):
            mixed = mixed + shares[..., longest + step : longest + step + 1] * value[:, :, None]
        return mixed.reshape(count, shared * group, longest, size)


class _HeadLoss(torch.autograd.Function):
    """Sum of weighted row losses under the head; its gradient is ready when the loss is."""

    @staticmethod
    def forward(
        context: Any,
        states: torch.Tensor,  # [steps, rows, hidden]
        answers: torch.Tensor,  # [rows, hidden], the target's last hidden states
        head: torch.Tensor,  # [draft vocabulary, hidden]
        target_head: torch.Tensor,
        weights: list[float],  # of a row, by step
        losses: list[tuple[Callable[..., torch.Tensor], float]] | None,
        check: Callable[[], None],
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        gradient = torch.empty_like(states, dtype=torch.float32)
        for start in range(0, states.shape[1], BLOCK):
            block = slice(start, start + BLOCK)
            check()
            wanted = answers[block].to(head.dtype) @ target_head.T
            target = _Target(wanted, losses)
            for step, weight in enumerate(weights):
                check()
                logits = states[step, block].to(head.dtype) @ head.T
                loss, slope = target.compare(logits)
                total += weight * loss
                torch.mul((slope.to(head.dtype) @ head).float(), weight, out=gradient[step, block])
        context.save_for_backward(gradient)
        return total.float()

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = context.saved_tensors
        return gradient * gradients[0], None, None, None, None, None, None


class _Target:
    """What the target says about a block of rows, to compare drafts with."""

    def __init__(self, logits: torch.Tensor, losses: list[tuple[Callable[..., torch.Tensor], float]] | None) -> None:
        self._losses = losses
        self._logits = logits.float()
        if losses is None:
            logarithms = torch.log_softmax(self._logits, -1)
            self._probabilities = logarithms.exp()
            self._entropy = -torch.linalg.vecdot(self._probabilities, logarithms).sum(dtype=torch.float64)

    def compare(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of the rows' losses, and its gradient [rows, draft vocabulary]."""
        if self._losses is None:
            logarithms = torch.log_softmax(logits, -1, dtype=torch.float32)
            crossed = -torch.linalg.vecdot(self._probabilities, logarithms).sum(dtype=torch.float64)
            return crossed - self._entropy, logarithms.exp_().sub_(self._probabilities)
        with torch.enable_grad():
            leaf = logits.float()[None].requires_grad_()
            terms = [weight * function(leaf, self._logits[None]).sum() for function, weight in self._losses]
            loss = torch.stack(terms).sum()
            [slope] = torch.autograd.grad(loss, leaf)
        return loss.detach().double(), slope[0]
