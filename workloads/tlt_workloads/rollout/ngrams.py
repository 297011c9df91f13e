"""Drafts without a model: what followed the same words before, in the request itself.

vLLM's own n-gram proposer, beside a learned drafter in the same engine.  It is compiled (numba) in a thread, so that no
start waits for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tlt_workloads.rollout.background import background_thread

logger = logging.getLogger("vllm.tlt")

SHORTEST, LONGEST = 2, 4  # words that must be the same: one alone says little, more are rare


class NgramDrafter:
    """Proposes from the tokens that the model runner keeps on the host.

    Args:
        runner: vLLM's model runner, without asynchronous scheduling: with it the newest tokens never reach the host in
            time.
        on_ready: called once proposals can be made.
    """

    def __init__(self, runner: Any, *, on_ready: Callable[[], None]) -> None:
        self._runner = runner
        self._proposer: Any = None
        self._on_ready = on_ready
        background_thread(self._compile, name="tlt-ngrams").start()

    def _compile(self) -> None:
        from vllm.v1.spec_decode.ngram_proposer import NgramProposer

        config = self._runner.vllm_config
        try:
            self._proposer = NgramProposer(
                SimpleNamespace(
                    speculative_config=SimpleNamespace(
                        prompt_lookup_min=SHORTEST,
                        prompt_lookup_max=LONGEST,
                        num_speculative_tokens=config.speculative_config.num_speculative_tokens,
                    ),
                    model_config=config.model_config,
                    scheduler_config=config.scheduler_config,
                    parallel_config=config.parallel_config,
                )
            )
            self._on_ready()
        except Exception:
            logger.exception("n-gram drafts cannot be made here; the learned drafter works all the same")

    def propose(self, length: int, sampled: list[list[int]]) -> list[list[int]]:
        """Up to `length` tokens for each request of the step.

        Args:
            length: most tokens of a draft.
            sampled: the tokens that this step sampled, by row of the runner's batch; none for an unfinished prompt.
        """
        if self._proposer is None:
            return [[] for _ in sampled]
        batch = self._runner.input_batch
        known = batch.num_tokens_no_spec[: len(sampled)].copy()
        for row, tokens in enumerate(sampled):
            # The runner writes these tokens to the same place when it books the step, right after the drafts.
            end = min(known[row] + len(tokens), batch.token_ids_cpu.shape[1])
            batch.token_ids_cpu[row, known[row] : end] = tokens[: end - known[row]]
            known[row] = end
        proposed: list[list[int]] = self._proposer.propose(length, sampled, known, batch.token_ids_cpu)
        return proposed


def sampled_tokens(sampled: torch.Tensor, *, unfinished: np.ndarray) -> list[list[int]]:
    """Tokens of each row without the marks of rejected drafts.

    Args:
        sampled: int [requests, up to draft length + 1], -1 = no token.
        unfinished: bool [requests]; what was sampled there means nothing.
    """
    return [
        [] if skip else [token for token in row if token >= 0]
        for row, skip in zip(sampled.tolist(), unfinished.tolist(), strict=True)
    ]
