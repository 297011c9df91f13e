"""The policy's output head as the engine has it, row by row, for drafters whose head is a copy of some rows."""

from __future__ import annotations

import torch


def policy_head_rows(policy: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor | None:
    """Rows of the policy's head; None when it has none of its own, or one that a kernel has packed away.

    With tensor parallelism every rank must call: the rows of a rank's part are added up over all ranks.

    Args:
        policy: the model in the engine.
        ids: int64 [tokens], target ids.

    Returns:
        [tokens, hidden].
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    heads = [module for module in policy.modules() if isinstance(module, ParallelLMHead)]
    if len(heads) != 1 or not heads[0].weight.numel():
        return None
    try:
        with torch.no_grad():
            # The head's own forward refuses to look rows up; the class that it extends does it, padding and parts of
            # other ranks included.
            rows: torch.Tensor = VocabParallelEmbedding.forward(heads[0], ids.to(heads[0].weight.device))
    except NotImplementedError:  # a quantised head
        return None
    return rows
