"""The drafter in memory: speculators' EAGLE-3 module around our files.

The module trains `fc`, the matrices of its decoder layer and its last norm.  Embedding and head are frozen copies of
the target's.  The other norms only put what they read into units of its own spread (`fit.py`); what their gains could
learn, the matrices behind them can, while one step of Adam on a gain of a thousandth would undo it.
`speculators` would apply the target's final norm to the recorded last hidden state; the engine records it after that
norm, so here the norm is the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from speculators.config import SpeculatorsConfig, VerifierConfig
from speculators.losses import resolve_loss_config
from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig
from speculators.proposals.greedy import GreedyTokenProposalConfig
from transformers import LlamaConfig

from tlt_workloads.drafter import DrafterConfig, DrafterError, TargetFiles, drafter_tensors
from tlt_workloads.trainer.packing import PackedBatch

SOFTNESS = 1.4  # at which drafters learn (decision 0031)
_BORROWED = ("embed_tokens.", "lm_head.", "verifier_")
_UNITS = ("fc_norm.", "input_layernorm.", "hidden_norm.", "post_attention_layernorm.")


@dataclass(frozen=True, eq=False)
class FrozenTarget:
    """What a drafter borrows from its target and never trains."""

    embedding: torch.Tensor  # [vocabulary, hidden]
    head: torch.Tensor  # [draft vocabulary, hidden]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What training minimises: speculators' loss by name, over `draft_length` steps ahead, later ones counting less."""

    draft_length: int
    loss: str = "kl_div"
    step_decay: float = 0.8


def read_frozen_target(target: TargetFiles, t2d: torch.Tensor | None) -> FrozenTarget:
    """Reads embedding and head of the target; the head is cut to the draft vocabulary that `t2d` marks."""
    head = target.head()
    return FrozenTarget(target.embedding(), head if t2d is None else head[t2d])


def build_drafter(
    config: DrafterConfig,
    tensors: Mapping[str, torch.Tensor],
    target: FrozenTarget,
    *,
    draft_length: int,
    device: torch.device,
    softness: float = 1.0,
) -> Eagle3DraftModel:
    """Builds the module with float32 trainable weights from a drafter's tensors.

    Args:
        config: shape of the drafter.
        tensors: of the drafter; those that are float32 and on the device already are not copied, so that training
            changes them.
        target: what it borrows.
        draft_length: tokens ahead.
        device: where it is built.
        softness: temperature at which its logits and the target's are told, 1 unless it is to learn by them
            (distillation, arXiv 1503.02531).  The module knows no temperature, but heads are linear.

    Raises:
        DrafterError: a tensor is missing or has another shape.
    """
    with torch.device("meta"):
        model = Eagle3DraftModel(speculators_config(config, draft_length=draft_length, device=device))
    # Rotary frequencies are a buffer that no file holds, so the one that was built without memory is built again.
    model.rotary_emb = type(model.rotary_emb)(model.rotary_emb.config).to(device)
    model.verifier_norm = torch.nn.Identity()
    head = _softened(target.head.to(device, torch.float32), softness)
    own = {"lm_head.weight": head, **tensors}
    if "lm_head.weight" in tensors:  # a drafter from elsewhere may bring a head of its own
        own["lm_head.weight"] = _softened(tensors["lm_head.weight"].to(device, torch.float32), softness)
    state = {name: _ready(name, own, spec.shape, device) for name, spec in drafter_tensors(config).items()}
    state = {
        "lm_head.weight": head,
        **state,
        "embed_tokens.weight": target.embedding.to(device),
        "verifier_lm_head.weight": head,
    }
    model.load_state_dict(state, strict=True, assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in own_parameters(model) and not any(unit in name for unit in _UNITS))
    return model


def _softened(head: torch.Tensor, softness: float) -> torch.Tensor:
    return head if softness == 1 else head / softness


def own_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that are the drafter's and not its target's, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if not name.startswith(_BORROWED)}


def trainable_tensors(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The tensors that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def draft_loss(model: Eagle3DraftModel, batch: PackedBatch, objective: Objective) -> torch.Tensor:
    """Mean loss over the batch's trained positions, summed over draft steps."""
    _, loss, _ = model(
        hidden_states=batch.features,
        input_ids=batch.token_ids,
        document_ids=batch.document_ids,
        loss_mask=batch.loss_mask,
        position_ids=batch.position_ids,
        verifier_last_hidden_states=batch.last_hidden,
        ttt_steps=objective.draft_length,
        ttt_step_loss_decay=objective.step_decay,
        loss_config=resolve_loss_config(objective.loss, _loss_implementation(batch.features.device)),
    )
    result: torch.Tensor = loss
    return result


@torch.no_grad()
def draft_logits(model: Eagle3DraftModel, batch: PackedBatch, *, draft_length: int) -> torch.Tensor:
    """What the drafter thinks of every next token at every position, given that the drafts before were right.

    Returns:
        Logits [draft length, tokens, draft vocabulary].
    """
    found: list[torch.Tensor] = []
    # The module returns the likeliest tokens only.
    hook = model.lm_head.register_forward_hook(lambda _module, _inputs, logits: found.append(logits[0]))
    try:
        model(
            hidden_states=batch.features,
            input_ids=batch.token_ids,
            document_ids=batch.document_ids,
            position_ids=batch.position_ids,
            ttt_steps=draft_length,
        )
    finally:
        hook.remove()
    return torch.stack(found)


@torch.no_grad()
def target_logits(model: Eagle3DraftModel, batch: PackedBatch) -> torch.Tensor:
    """What the target itself thought of the token after each row, [tokens, draft vocabulary]."""
    logits: torch.Tensor = model.verifier_lm_head(batch.last_hidden[0].to(model.verifier_lm_head.weight.dtype))
    return logits


def draft_ids(model: Eagle3DraftModel, token_ids: torch.Tensor) -> torch.Tensor:
    """Target token ids as draft ids of the same shape; -1 for tokens that are never drafted."""
    if model.t2d is None:
        return token_ids
    ranks = torch.cumsum(model.t2d.long(), 0) - 1
    return torch.where(model.t2d[token_ids], ranks[token_ids], -1)


def on_every_operation(model: Eagle3DraftModel, check: Callable[[], None]) -> None:
    """Calls `check` before each of the model's own operations, forward and backward, so that a step can be left.

    A hand-back waits for one operation at most, a few milliseconds; between layers there are tens of them, and more
    when the engine already computes on the same core.
    """

    def before_forward(_module: Any, arguments: tuple[Any, ...]) -> None:
        check()
        for argument in arguments:
            if isinstance(argument, torch.Tensor) and argument.requires_grad:
                argument.register_hook(before_backward)  # type: ignore[no-untyped-call]

    def before_backward(_gradient: torch.Tensor) -> None:
        check()

    for module in model.modules():
        if not any(module.children()):
            module.register_forward_pre_hook(before_forward)


def _ready(
    name: str, tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...], device: torch.device
) -> torch.Tensor:
    if name not in tensors or tuple(tensors[name].shape) != shape:
        found = [*tensors[name].shape] if name in tensors else "nothing"
        raise DrafterError(f"{name}: expected {[*shape]}, found {found}")
    tensor = tensors[name].to(device)
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor


def _loss_implementation(device: torch.device) -> str:
    """The fused losses are Triton kernels."""
    return "fused" if device.type == "cuda" else "eager"


def speculators_config(
    config: DrafterConfig, *, draft_length: int, device: torch.device, verifier: str | None = None
) -> Eagle3SpeculatorConfig:
    """The drafter's shape as speculators writes it; `verifier` is the policy's name or folder, if anybody shall ask."""
    layer = LlamaConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.attention_heads,
        num_key_value_heads=config.key_value_heads,
        head_dim=config.head_size,
        num_hidden_layers=1,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_positions,
        rms_norm_eps=config.rms_norm_eps,
        attention_bias=False,
        pad_token_id=None,
        **config.position,
    )
    # Flex attention has no backward on the CPU; on a GPU it never builds the tokens-by-tokens mask.
    layer._attn_implementation = "simple_flex_attention" if device.type == "cuda" else "eager"
    return Eagle3SpeculatorConfig(
        transformer_layer_config=layer,
        draft_vocab_size=config.draft_vocab_size,
        norm_before_residual=config.norm_before_residual,
        norm_output=config.norm_output,
        fc_norm=config.fc_norm,
        eagle_aux_hidden_state_layer_ids=list(config.layer_ids),
        speculators_config=SpeculatorsConfig(
            algorithm="eagle3",
            proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=draft_length)],
            default_proposal_method="greedy",
            verifier=VerifierConfig(name_or_path=verifier, architectures=[]),
        ),
    )
