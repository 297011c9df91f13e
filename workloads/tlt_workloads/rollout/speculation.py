"""How many tokens to draft: by mode and by how many requests run together.

Verifying k drafts costs almost nothing while the accelerator waits for memory, and real time once it is busy; so large
batches draft nothing (see vLLM's `num_speculative_tokens_per_batch_size`).
"""

from __future__ import annotations

from tlt_workloads.contract import SpeculationMode, SpeculationSettings


class SpeculationRefusedError(ValueError):
    """The engine cannot speculate like that; the message names the field."""


def draft_lengths(settings: SpeculationSettings, *, longest: int, largest_batch: int, max_batch: int) -> list[int]:
    """Tokens to draft for each batch size, from 0 (unused) to `max_batch`.

    Args:
        settings: what is asked for; `ADAPTIVE` follows the same rule as `STATIC`.
        longest: the draft length that the server was started for.
        largest_batch: above this many requests nothing is drafted.
        max_batch: the engine's largest batch.

    Raises:
        SpeculationRefusedError: longer drafts than the server can make, or a mode that needs another drafter.
    """
    if settings.mode is SpeculationMode.OFF:
        return [0] * (max_batch + 1)
    if settings.mode is SpeculationMode.NGRAM:
        raise SpeculationRefusedError("mode: NGram needs a server started with an n-gram drafter")
    if not 0 <= settings.draft_length <= longest:
        raise SpeculationRefusedError(f"draftLength: {settings.draft_length} is not within 0 and {longest}")
    return [0, *(settings.draft_length if batch <= largest_batch else 0 for batch in range(1, max_batch + 1))]
