"""Which tokens a drafter should be able to draft: those that the policy said, and those that it thought of.

A vocabulary is chosen when a few thousand tokens are there, and most of the words that will come are not among them.
But the policy has weighed all its words at each of these tokens.  The sum of these probabilities is how often each word
was to be expected, whether it came or not, and tells from the same answers far more about those that are to come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from tlt_workloads.shards import CapturedSequence

ROWS = 512  # evenly spread, that stand for all: a second of one core for a policy of width 576
_BLOCK_ROWS = 64  # at once: 40 MB for a vocabulary of 150,000
_BLOCK_TOKENS = 16_384  # of the head in float32 at once


@torch.no_grad()
def token_weights(
    head: torch.Tensor, sequences: Iterable[CapturedSequence], *, device: torch.device, check: Callable[[], None]
) -> dict[int, float]:
    """How often each token was said in these answers, plus how often it was to be expected.

    Args:
        head: of the policy [vocabulary, hidden].
        sequences: what it generated, with the last hidden states.
        device: to calculate on.
        check: called between blocks; raises to leave.

    Returns:
        Weights of all tokens; empty without answers.

    Raises:
        StepAbandonedError: `check` raised it.
    """
    said, states = torch.zeros(len(head), dtype=torch.float64), list[torch.Tensor]()
    for sequence in sequences:
        check()
        answer = sequence.token_ids[sequence.prompt_length :].long()
        said += torch.bincount(answer, minlength=len(head))
        states.append(sequence.hidden_states[max(0, sequence.prompt_length - 1 - sequence.first_row) :, -1].clone())
    rows = sum(len(block) for block in states)
    if not rows:
        return {}
    stride = math.ceil(rows / ROWS)
    sample = torch.cat(states)[::stride].to(device, torch.float32)
    parts = [part.to(device) for part in torch.split(head, _BLOCK_TOKENS)]
    expected = torch.zeros(len(head), device=device)
    for block in torch.split(sample, _BLOCK_ROWS):
        check()
        logits = torch.cat([block @ part.float().T for part in parts], dim=1)
        expected += torch.softmax(logits, dim=1).sum(0)
    return dict(enumerate((said + stride * expected.double().cpu()).tolist()))
