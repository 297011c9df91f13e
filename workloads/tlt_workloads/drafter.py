"""An EAGLE-3 drafter as files: `config.json` and `model.safetensors`, in the form that vLLM loads with method `eagle3`.

EAGLE-3 (arXiv 2503.01840): `fc` mixes the hidden states of a few target layers, one decoder layer reads that beside
the embedding of the newest token, and the target's own head, cut down to the draft vocabulary, scores the next one.
`d2t[i]` is the distance from draft id `i` to its target id; `t2d[j]` tells whether target id `j` is drafted at all.

The target's embedding is not among a drafter's tensors, ever: vLLM lets the drafter share the target's module when
both are equal at start, and loading `embed_tokens` later would then overwrite the policy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from tlt_workloads.contract import DrafterRefusal

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
_EMBEDDING_SHARE = 0.1  # how loudly the untrained drafter hears the newest token's embedding
_LAYER = "layers.0"
_VOCABULARY_HINT = "; spec.drafter.draftVocabSize and --draft-vocab-size of the rollout servers must be equal"
_BY_TOKEN = ("lm_head.weight", "d2t", "t2d")  # tensors with one row for each token
_POSITION_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")


class DrafterError(ValueError):
    """Drafter or target files cannot be used; the message names the file or tensor."""


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
    return parse_drafter_config(_read_json(folder / CONFIG_FILE), where=str(folder / CONFIG_FILE))


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


def drafter_tensors(config: DrafterConfig) -> dict[str, TensorSpec]:
    """The allow-list: every tensor that a drafter file may and must hold, by name."""
    hidden, wide = config.hidden_size, 2 * config.hidden_size
    queries = config.attention_heads * config.head_size
    keys = config.key_value_heads * config.head_size
    weights = {
        "fc.weight": (hidden, len(config.layer_ids) * hidden),
        f"{_LAYER}.self_attn.q_proj.weight": (queries, wide),
        f"{_LAYER}.self_attn.k_proj.weight": (keys, wide),
        f"{_LAYER}.self_attn.v_proj.weight": (keys, wide),
        f"{_LAYER}.self_attn.o_proj.weight": (hidden, queries),
        f"{_LAYER}.mlp.gate_proj.weight": (config.intermediate_size, hidden),
        f"{_LAYER}.mlp.up_proj.weight": (config.intermediate_size, hidden),
        f"{_LAYER}.mlp.down_proj.weight": (hidden, config.intermediate_size),
        f"{_LAYER}.input_layernorm.weight": (hidden,),
        f"{_LAYER}.hidden_norm.weight": (hidden,),
        f"{_LAYER}.post_attention_layernorm.weight": (hidden,),
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


@dataclass(frozen=True, eq=False)
class DraftVocabulary:
    """The drafted tokens, both ways; empty tensors never occur, a full vocabulary maps onto itself."""

    d2t: torch.Tensor  # int64 [draft vocabulary], distance from draft id to target id
    t2d: torch.Tensor  # bool [vocabulary], whether a token is drafted


def draft_vocabulary(counts: Mapping[int, int] | None, *, draft_vocab_size: int, vocab_size: int) -> DraftVocabulary:
    """Chooses the drafted tokens: the most frequent ones, then the lowest ids.

    Without counts the lowest ids win, which in a byte-pair vocabulary are the earliest and so the most frequent merges.
    """
    seen = counts or {}
    order = sorted(range(vocab_size), key=lambda token: (-seen.get(token, 0), token))
    kept = torch.tensor(sorted(order[:draft_vocab_size]))
    t2d = torch.zeros(vocab_size, dtype=torch.bool)
    t2d[kept] = True
    return DraftVocabulary(kept - torch.arange(draft_vocab_size), t2d)


def write_initial_drafter(
    model_path: str | Path,
    folder: Path,
    *,
    draft_vocab_size: int,
    seed: int = 0,
    token_counts: Mapping[int, int] | None = None,
) -> DrafterConfig:
    """Writes the files of `initial_tensors`.  The same arguments write the same bytes.

    Args:
        model_path: folder of the target: `config.json` and safetensors weights.
        folder: where to write; made when missing.
        draft_vocab_size: tokens that can be drafted.
        seed: of the random part.
        token_counts: how often each token was seen in the target's own output, to choose the drafted ones by.

    Raises:
        DrafterError: the target is not there or not readable.
    """
    target = TargetFiles(Path(model_path))
    config = drafter_config(target.config, draft_vocab_size=draft_vocab_size)
    vocabulary = draft_vocabulary(token_counts, draft_vocab_size=draft_vocab_size, vocab_size=config.vocab_size)
    tensors = initial_tensors(target, config, vocabulary=vocabulary, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config.to_json(), indent=2) + "\n")
    (folder / WEIGHTS_FILE).write_bytes(save(tensors, metadata={"format": "pt"}))
    return config


class TargetFiles:
    """Single tensors of a target model, read from its safetensors files without loading the rest."""

    def __init__(self, folder: Path) -> None:
        if not (folder / CONFIG_FILE).is_file():
            raise DrafterError(
                f"spec.target.model: no {CONFIG_FILE} in {folder}; mount the model there or name its path"
            )
        self._folder = folder
        data = _read_json(folder / CONFIG_FILE)
        self.config: Mapping[str, Any] = data.get("text_config", data)
        self._files = self._list_tensors()

    @property
    def layers(self) -> int:
        """How many decoder layers the target has."""
        return int(self.config["num_hidden_layers"])

    def embedding(self) -> torch.Tensor:
        """[vocabulary, hidden]."""
        return self._one_of("embed_tokens.weight")

    def head(self) -> torch.Tensor:
        """[vocabulary, hidden]; the embedding when the target ties the two."""
        return self._one_of("lm_head.weight", "embed_tokens.weight")

    def final_norm(self) -> torch.Tensor:
        """[hidden]."""
        return self._one_of(
            ".norm.weight", starts=("model.norm.weight", "norm.weight", "model.language_model.norm.weight")
        )

    def last_layer(self, name: str) -> torch.Tensor | None:
        """A tensor of the last decoder layer, None when that layer has none of this name."""
        suffix = f"layers.{self.layers - 1}.{name}"
        found = [key for key in self._files if key == suffix or key.endswith(f".{suffix}")]
        return self._read(found[0]) if found else None

    def _one_of(self, *suffixes: str, starts: tuple[str, ...] = ()) -> torch.Tensor:
        for suffix in suffixes:
            for key in self._files:
                if (key in starts) if starts else (key == suffix or key.endswith(f".{suffix}")):
                    return self._read(key)
        raise DrafterError(f"{self._folder}: no tensor {' or '.join(suffixes)}")

    def _read(self, name: str) -> torch.Tensor:
        with safe_open(self._files[name], "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def _list_tensors(self) -> dict[str, Path]:
        if (self._folder / INDEX_FILE).is_file():
            index = _read_json(self._folder / INDEX_FILE)
            return {name: self._folder / file for name, file in index["weight_map"].items()}
        path = self._folder / WEIGHTS_FILE
        try:
            with safe_open(path, "pt") as file:
                return dict.fromkeys(file.keys(), path)
        except (OSError, SafetensorError) as error:
            raise DrafterError(f"spec.target.model: {path} cannot be read: {error}") from error


def initial_tensors(
    target: TargetFiles, config: DrafterConfig, *, vocabulary: DraftVocabulary, seed: int = 0
) -> dict[str, torch.Tensor]:
    """An untrained drafter that already resembles its target.

    `fc` passes the highest auxiliary layer through, attention and MLP are copies of the target's last layer with the
    half that reads the embedding turned down, norms and head are the target's.  What the target cannot give (another
    shape) is drawn from a normal distribution of width 0.02.
    """
    generator = torch.Generator().manual_seed(seed)
    specs = drafter_tensors(config)

    def random(name: str) -> torch.Tensor:
        return torch.randn(specs[name].shape, generator=generator) * 0.02

    def copied(name: str) -> torch.Tensor:
        weight = target.last_layer(name)
        shape = specs[f"{_LAYER}.{name}"].shape
        if weight is not None and tuple(weight.shape) == shape:
            return weight.float()
        return torch.ones(shape) if len(shape) == 1 else random(f"{_LAYER}.{name}")

    def widened(name: str) -> torch.Tensor:
        """[out, 2 * hidden]: the half that reads the embedding, then the half that reads the hidden state."""
        weight = target.last_layer(name)
        rows, columns = specs[f"{_LAYER}.{name}"].shape
        if weight is None or tuple(weight.shape) != (rows, columns // 2):
            return random(f"{_LAYER}.{name}")
        return torch.cat([_EMBEDDING_SHARE * weight.float(), weight.float()], dim=1)

    hidden = config.hidden_size
    ones = torch.ones(hidden)
    input_norm = target.last_layer("input_layernorm.weight")
    tensors = {
        "fc.weight": torch.cat([torch.zeros(hidden, (len(config.layer_ids) - 1) * hidden), torch.eye(hidden)], dim=1),
        **{f"{_LAYER}.{name}": widened(name) for name in (f"self_attn.{part}_proj.weight" for part in "qkv")},
        f"{_LAYER}.self_attn.o_proj.weight": copied("self_attn.o_proj.weight"),
        **{f"{_LAYER}.mlp.{part}_proj.weight": copied(f"mlp.{part}_proj.weight") for part in ("gate", "up", "down")},
        **{name: ones for name in specs if name.startswith("fc_norm.")},
        f"{_LAYER}.input_layernorm.weight": ones,
        f"{_LAYER}.hidden_norm.weight": ones if input_norm is None else input_norm,
        f"{_LAYER}.post_attention_layernorm.weight": copied("post_attention_layernorm.weight"),
        "norm.weight": target.final_norm(),
    }
    if "lm_head.weight" in specs:
        tensors |= {"lm_head.weight": target.head()[vocabulary.t2d], "d2t": vocabulary.d2t, "t2d": vocabulary.t2d}
    ready = {name: tensor.to(specs[name].dtype).contiguous() for name, tensor in tensors.items()}
    check_drafter_tensors(ready, config)
    return ready


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DrafterError(f"{path}: cannot be read: {error}") from error
    return data
