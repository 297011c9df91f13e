"""A drafter's shape: from its target, and as `config.json` tells of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
_POSITION_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")


class DrafterError(ValueError):
    """Drafter or target files cannot be used; the message names the file or tensor."""


@dataclass(frozen=True, kw_only=True)
class DrafterConfig:
    """The drafter's shape; `position` holds the target's rotary settings as its config writes them."""

    hidden_size: int
    intermediate_size: int
    attention_heads: int
    key_value_heads: int
    head_size: int
    vocab_size: int
    draft_vocab_size: int
    layer_ids: tuple[int, ...]
    rms_norm_eps: float
    max_positions: int
    position: Mapping[str, Any]
    norm_before_residual: bool = False
    norm_output: bool = False
    fc_norm: bool = False  # each auxiliary layer is normalised by itself
    head_is_copy: bool = False  # `lm_head` holds rows of the target's head as they were, and is never trained

    def to_json(self) -> dict[str, Any]:
        """The `config.json` that vLLM reads."""
        return {
            "architectures": ["LlamaForCausalLMEagle3"],
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.attention_heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.head_size,
            "num_hidden_layers": 1,
            "vocab_size": self.vocab_size,
            "draft_vocab_size": self.draft_vocab_size,
            "eagle_aux_hidden_state_layer_ids": list(self.layer_ids),
            "rms_norm_eps": self.rms_norm_eps,
            "max_position_embeddings": self.max_positions,
            "norm_before_residual": self.norm_before_residual,
            "norm_output": self.norm_output,
            "fc_norm": self.fc_norm,
            "head_is_copy": self.head_is_copy,
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
            **self.position,
        }


def drafter_config(target: Mapping[str, Any], *, draft_vocab_size: int) -> DrafterConfig:
    """The drafter of a target, from the target's `config.json`.

    Raises:
        DrafterError: the target's config lacks a field, or the draft vocabulary is larger than the target's.
    """
    try:
        heads = int(target["num_attention_heads"])
        hidden_size = int(target["hidden_size"])
        vocab_size = int(target["vocab_size"])
        if not 0 < draft_vocab_size <= vocab_size:
            raise DrafterError(f"spec.drafter.draftVocabSize: {draft_vocab_size} is not within 1 and {vocab_size}")
        return DrafterConfig(
            hidden_size=hidden_size,
            intermediate_size=int(target["intermediate_size"]),
            attention_heads=heads,
            key_value_heads=int(target.get("num_key_value_heads") or heads),
            head_size=int(target.get("head_dim") or hidden_size // heads),
            vocab_size=vocab_size,
            draft_vocab_size=draft_vocab_size,
            layer_ids=auxiliary_layers(int(target["num_hidden_layers"])),
            rms_norm_eps=float(target.get("rms_norm_eps", 1e-5)),
            max_positions=int(target["max_position_embeddings"]),
            position={key: target[key] for key in _POSITION_KEYS if target.get(key) is not None},
            fc_norm=True,
            head_is_copy=True,
        )
    except KeyError as error:
        raise DrafterError(f"target {CONFIG_FILE}: field {error.args[0]!r} is missing") from error


def auxiliary_layers(target_layers: int) -> tuple[int, ...]:
    """The target layers whose input the drafter reads: low, middle and high, distinct in small models too."""
    wanted = {2, target_layers // 2, target_layers - 3}
    fitting = sorted(layer for layer in wanted if 0 < layer < target_layers)
    spare = (layer for layer in range(target_layers - 1, 0, -1) if layer not in fitting)
    return tuple(sorted([*fitting, *(next(spare) for _ in range(3 - len(fitting)))]))


def read_drafter_config(folder: Path) -> DrafterConfig:
    """The shape of a drafter on disk.

    Raises:
        DrafterError: no readable `config.json` of an EAGLE-3 drafter.
    """
    return parse_drafter_config(read_json(folder / CONFIG_FILE), where=str(folder / CONFIG_FILE))


def parse_drafter_config(data: Mapping[str, Any], *, where: str) -> DrafterConfig:
    """The shape of a drafter from the content of its `config.json`; `where` stands in errors."""
    try:
        return DrafterConfig(
            hidden_size=data["hidden_size"],
            intermediate_size=data["intermediate_size"],
            attention_heads=data["num_attention_heads"],
            key_value_heads=data["num_key_value_heads"],
            head_size=data["head_dim"],
            vocab_size=data["vocab_size"],
            draft_vocab_size=data["draft_vocab_size"],
            layer_ids=tuple(data["eagle_aux_hidden_state_layer_ids"]),
            rms_norm_eps=data["rms_norm_eps"],
            max_positions=data["max_position_embeddings"],
            position={key: data[key] for key in _POSITION_KEYS if key in data},
            norm_before_residual=data.get("norm_before_residual", False),
            norm_output=data.get("norm_output", False),
            fc_norm=data.get("fc_norm", False),
            head_is_copy=data.get("head_is_copy", False),
        )
    except KeyError as error:
        raise DrafterError(f"{where}: field {error.args[0]!r} is missing") from error
    except TypeError as error:
        raise DrafterError(f"{where}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; DrafterError when there is none."""
    try:
        data: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DrafterError(f"{path}: cannot be read: {error}") from error
    return data
