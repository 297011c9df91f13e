"""Which tensors a drafter has, and whether those of a file are a drafter of this shape for this target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tlt_workloads.contract import DrafterRefusal
from tlt_workloads.drafter.shape import CONFIG_FILE, DrafterConfig, DrafterError

LAYER = "layers.0"  # how names of the one decoder layer begin
_VOCABULARY_HINT = "; spec.drafter.draftVocabSize and --draft-vocab-size of the rollout servers must be equal"
_BY_TOKEN = ("lm_head.weight", "d2t", "t2d")  # tensors with one row for each token


class TensorError(DrafterError):
    """The tensors of a file are not those of a drafter of this shape."""

    def __init__(self, reason: DrafterRefusal, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Shape and element type that a drafter tensor must have on disk."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def drafter_tensors(config: DrafterConfig) -> dict[str, TensorSpec]:
    """The allow-list: every tensor that a drafter file may and must hold, by name."""
    hidden, wide = config.hidden_size, 2 * config.hidden_size
    queries = config.attention_heads * config.head_size
    keys = config.key_value_heads * config.head_size
    weights = {
        "fc.weight": (hidden, len(config.layer_ids) * hidden),
        f"{LAYER}.self_attn.q_proj.weight": (queries, wide),
        f"{LAYER}.self_attn.k_proj.weight": (keys, wide),
        f"{LAYER}.self_attn.v_proj.weight": (keys, wide),
        f"{LAYER}.self_attn.o_proj.weight": (hidden, queries),
        f"{LAYER}.mlp.gate_proj.weight": (config.intermediate_size, hidden),
        f"{LAYER}.mlp.up_proj.weight": (config.intermediate_size, hidden),
        f"{LAYER}.mlp.down_proj.weight": (hidden, config.intermediate_size),
        f"{LAYER}.input_layernorm.weight": (hidden,),
        f"{LAYER}.hidden_norm.weight": (hidden,),
        f"{LAYER}.post_attention_layernorm.weight": (hidden,),
        "norm.weight": (hidden,),
        "lm_head.weight": (config.draft_vocab_size, hidden),
    }
    if config.fc_norm:
        weights |= {f"fc_norm.{index}.weight": (hidden,) for index in range(len(config.layer_ids))}
    specs = {name: TensorSpec(shape=shape, dtype=torch.bfloat16) for name, shape in weights.items()}
    if config.draft_vocab_size == config.vocab_size:
        # A head of full size may be shared with the target, like the embedding; the target's own is used instead.
        del specs["lm_head.weight"]
    else:
        specs["d2t"] = TensorSpec(shape=(config.draft_vocab_size,), dtype=torch.int64)
        specs["t2d"] = TensorSpec(shape=(config.vocab_size,), dtype=torch.bool)
    return specs


def check_drafter_tensors(tensors: Mapping[str, torch.Tensor], config: DrafterConfig) -> None:
    """Refuses anything but a whole, finite drafter of this shape.

    Raises:
        TensorError: names the first tensor that is missing, unknown, of another shape or type, or not finite.
    """
    specs = drafter_tensors(config)
    for name in sorted(tensors.keys() - specs.keys()):
        raise TensorError(DrafterRefusal.UNKNOWN_TENSOR, f"{name}: not a drafter tensor")
    for name, spec in specs.items():
        if name not in tensors:
            raise TensorError(DrafterRefusal.MISSING_TENSOR, f"{name}: missing")
        _check_tensor(name, tensors[name], spec)
    if "d2t" in tensors:
        targets = torch.arange(config.draft_vocab_size) + tensors["d2t"]
        if not torch.equal(targets, tensors["t2d"].nonzero().flatten()):
            raise TensorError(
                DrafterRefusal.WRONG_VOCABULARY, "d2t: does not map the draft vocabulary onto the tokens that t2d marks"
            )


def _check_tensor(name: str, tensor: torch.Tensor, spec: TensorSpec) -> None:
    found, wanted = f"{tensor.dtype} {[*tensor.shape]}", f"{spec.dtype} {[*spec.shape]}"
    if tuple(tensor.shape) != spec.shape:
        counts_tokens = name in _BY_TOKEN and tensor.shape[1:] == torch.Size(spec.shape[1:])
        reason = DrafterRefusal.WRONG_VOCABULARY if counts_tokens else DrafterRefusal.WRONG_SHAPE
        hint = _VOCABULARY_HINT if counts_tokens else ""
        raise TensorError(reason, f"{name}: {found}, expected {wanted}{hint}")
    if tensor.dtype != spec.dtype:
        raise TensorError(DrafterRefusal.WRONG_TYPE, f"{name}: {found}, expected {wanted}")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise TensorError(DrafterRefusal.NOT_FINITE, f"{name}: holds values that are not finite")


def check_same_target(found: DrafterConfig, own: DrafterConfig) -> None:
    """Refuses a drafter for another model; what tensors cannot tell by their shapes is compared too.

    Raises:
        TensorError: names the fields of `config.json` that differ.
    """
    if (found.vocab_size, found.draft_vocab_size) != (own.vocab_size, own.draft_vocab_size):
        raise TensorError(
            DrafterRefusal.WRONG_VOCABULARY,
            f"{CONFIG_FILE}: drafts {found.draft_vocab_size} of {found.vocab_size} tokens, "
            f"expected {own.draft_vocab_size} of {own.vocab_size}{_VOCABULARY_HINT}",
        )
    theirs, ours = found.to_json(), own.to_json()
    if differing := [name for name in ours if name != "head_is_copy" and theirs.get(name) != ours[name]]:
        values = ", ".join(f"{name} is {theirs.get(name)!r} and not {ours[name]!r}" for name in differing)
        raise TensorError(DrafterRefusal.WRONG_TARGET, f"{CONFIG_FILE}: made for another target: {values}")


def drafter_bytes(config: DrafterConfig) -> int:
    """Bytes of all tensors of a drafter file."""
    specs = drafter_tensors(config).values()
    return sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in specs)
