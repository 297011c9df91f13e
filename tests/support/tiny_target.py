"""A target model of a few thousand parameters as files, for tests that need one on disk."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

TINY_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_hidden_layers": 4,
    "vocab_size": 96,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


def write_tiny_target(folder: Path, *, seed: int = 0) -> Path:
    """Writes random weights of a Llama with `TINY_CONFIG` and returns the folder."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.2).to(torch.bfloat16)

    hidden, wide, vocabulary = 32, 64, 96
    tensors = {
        "model.embed_tokens.weight": random(vocabulary, hidden),
        "model.norm.weight": 1 + random(hidden),
        "lm_head.weight": random(vocabulary, hidden),
    }
    for layer in range(4):
        prefix = f"model.layers.{layer}"
        tensors |= {
            f"{prefix}.self_attn.q_proj.weight": random(32, hidden),
            f"{prefix}.self_attn.k_proj.weight": random(16, hidden),
            f"{prefix}.self_attn.v_proj.weight": random(16, hidden),
            f"{prefix}.self_attn.o_proj.weight": random(hidden, 32),
            f"{prefix}.mlp.gate_proj.weight": random(wide, hidden),
            f"{prefix}.mlp.up_proj.weight": random(wide, hidden),
            f"{prefix}.mlp.down_proj.weight": random(hidden, wide),
            f"{prefix}.input_layernorm.weight": 1 + random(hidden),
            f"{prefix}.post_attention_layernorm.weight": 1 + random(hidden),
        }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TINY_CONFIG))
    save_file(tensors, folder / "model.safetensors")
    return folder
