"""A language that a drafter can learn perfectly, recorded as an engine would record it.

Every token follows from the one before: `next = (3 * token + 1) % 90`.  The recorded hidden states say where a
sequence is: the auxiliary ones carry the token's embedding, the last one makes the target's head choose the next token.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from tlt_workloads.shards import CapturedSequence, ShardMetadata, write_shard
from tlt_workloads.store import Store

TOKENS = 90
LAYER_IDS = (1, 2, 3)
PROMPT = 4


class ToyLanguage:
    """Speaks as the target of `write_tiny_target` would, had it learnt the language."""

    def __init__(self, target: Path, *, seed: int = 0) -> None:
        tensors = load_file(target / "model.safetensors")
        self._embedding = tensors["model.embed_tokens.weight"].float()
        self._head = tensors["lm_head.weight"].float()
        self._generator = torch.Generator().manual_seed(seed)

    def sequence(self, tokens: int, *, policy_version: int = 1) -> CapturedSequence:
        """A sequence from a random first token; the last token has no hidden state, as in an engine."""
        ids = [int(torch.randint(0, TOKENS, (1,), generator=self._generator))]
        while len(ids) < tokens:
            ids.append(_follow(ids[-1]))
        spoken = torch.tensor(ids)
        following = torch.tensor([_follow(token) for token in ids])
        head = self._head[following]
        last = 12 * head / head.norm(dim=-1, keepdim=True)
        embedded = self._embedding[spoken]
        states = torch.stack([embedded, 2 * embedded, self._embedding[following], last], dim=1)
        return CapturedSequence(
            token_ids=spoken.to(torch.int32),
            hidden_states=states[:-1].to(torch.bfloat16),
            prompt_length=PROMPT,
            policy_version=policy_version,
            finished=True,
            temperature=0.0,  # there is one next token
        )

    def write_shards(self, store: Store, *, count: int, first: int = 0, pod: str = "pod-0", version: int = 1) -> None:
        """Shards of two sequences each."""
        for number in range(first, first + count):
            write_shard(
                store,
                f"hidden-states/{pod}",
                number=number,
                sequences=[self.sequence(64, policy_version=version), self.sequence(40, policy_version=version)],
                metadata=ShardMetadata(model="tiny", layer_ids=LAYER_IDS),
            )


def _follow(token: int) -> int:
    return (3 * token + 1) % TOKENS
