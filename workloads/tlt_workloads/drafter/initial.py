"""An untrained drafter: which tokens it drafts, and what it takes from its target."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save

from tlt_workloads.drafter.shape import CONFIG_FILE, WEIGHTS_FILE, DrafterConfig, drafter_config
from tlt_workloads.drafter.target import TargetFiles
from tlt_workloads.drafter.tensors import LAYER, check_drafter_tensors, drafter_tensors

_EMBEDDING_SHARE = 0.1  # how loudly the untrained drafter hears the newest token's embedding


@dataclass(frozen=True, eq=False)
class DraftVocabulary:
    """The drafted tokens, both ways; empty tensors never occur, a full vocabulary maps onto itself."""

    d2t: torch.Tensor  # int64 [draft vocabulary], distance from draft id to target id
    t2d: torch.Tensor  # bool [vocabulary], whether a token is drafted


def draft_vocabulary(weights: Mapping[int, float] | None, *, draft_vocab_size: int, vocab_size: int) -> DraftVocabulary:
    """Chooses the drafted tokens: those of the greatest weight, then the lowest ids.

    Without weights the lowest ids win, which in a byte-pair vocabulary are the earliest and so most frequent merges.
    """
    known = weights or {}
    order = sorted(range(vocab_size), key=lambda token: (-known.get(token, 0.0), token))
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
) -> DrafterConfig:
    """Writes the files of `initial_tensors`.  The same arguments write the same bytes.

    Args:
        model_path: folder of the target: `config.json` and safetensors weights.
        folder: where to write; made when missing.
        draft_vocab_size: tokens that can be drafted.
        seed: of the random part.

    Raises:
        DrafterError: the target is not there or not readable.
    """
    target = TargetFiles(Path(model_path))
    config = drafter_config(target.config, draft_vocab_size=draft_vocab_size)
    vocabulary = draft_vocabulary(None, draft_vocab_size=draft_vocab_size, vocab_size=config.vocab_size)
    tensors = initial_tensors(target, config, vocabulary=vocabulary, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config.to_json(), indent=2) + "\n")
    (folder / WEIGHTS_FILE).write_bytes(save(tensors, metadata={"format": "pt"}))
    return config


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
        shape = specs[f"{LAYER}.{name}"].shape
        if weight is not None and tuple(weight.shape) == shape:
            return weight.float()
        return torch.ones(shape) if len(shape) == 1 else random(f"{LAYER}.{name}")

    def widened(name: str) -> torch.Tensor:
        """[out, 2 * hidden]: the half that reads the embedding, then the half that reads the hidden state."""
        weight = target.last_layer(name)
        rows, columns = specs[f"{LAYER}.{name}"].shape
        if weight is None or tuple(weight.shape) != (rows, columns // 2):
            return random(f"{LAYER}.{name}")
        return torch.cat([_EMBEDDING_SHARE * weight.float(), weight.float()], dim=1)

    hidden = config.hidden_size
    ones = torch.ones(hidden)
    input_norm = target.last_layer("input_layernorm.weight")
    tensors = {
        "fc.weight": torch.cat([torch.zeros(hidden, (len(config.layer_ids) - 1) * hidden), torch.eye(hidden)], dim=1),
        **{f"{LAYER}.{name}": widened(name) for name in (f"self_attn.{part}_proj.weight" for part in "qkv")},
        f"{LAYER}.self_attn.o_proj.weight": copied("self_attn.o_proj.weight"),
        **{f"{LAYER}.mlp.{part}_proj.weight": copied(f"mlp.{part}_proj.weight") for part in ("gate", "up", "down")},
        **{name: ones for name in specs if name.startswith("fc_norm.")},
        f"{LAYER}.input_layernorm.weight": ones,
        f"{LAYER}.hidden_norm.weight": ones if input_norm is None else input_norm,
        f"{LAYER}.post_attention_layernorm.weight": copied("post_attention_layernorm.weight"),
        "norm.weight": target.final_norm(),
    }
    if "lm_head.weight" in specs:
        tensors |= {"lm_head.weight": target.head()[vocabulary.t2d], "d2t": vocabulary.d2t, "t2d": vocabulary.t2d}
    ready = {name: tensor.to(specs[name].dtype).contiguous() for name, tensor in tensors.items()}
    check_drafter_tensors(ready, config)
    return ready
