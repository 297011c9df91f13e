"""A random Llama that a real engine serves: small enough to start fast, sure enough of itself that greedy is stable."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 64
LAYERS = 5


def build_tiny_model(folder: Path, *, seed: int = 0, sharpness: float = 6.0) -> Path:
    """Writes config and weights (float32) and returns the folder; there is no tokenizer, prompts are token ids."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).to(torch.float32)
    with torch.no_grad():
        model.model.norm.weight.mul_(sharpness / 8)  # width of the logits
    model.save_pretrained(folder)
    return folder


def perturbed(weights: dict[str, torch.Tensor], *, seed: int, amount: float) -> dict[str, torch.Tensor]:
    """The same names with noise on every floating-point tensor."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (tensor + amount * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)).contiguous()
        if tensor.is_floating_point()
        else tensor
        for name, tensor in weights.items()
    }
