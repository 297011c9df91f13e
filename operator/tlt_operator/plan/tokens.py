"""How many captured tokens wait to be trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tlt_operator.plan.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True)
class TokenMemory:
    """What the trainers said last, and the pods' capture counters (by boot) at that moment."""

    available: int = 0
    captured: Mapping[str, int] = field(default_factory=dict)


def count_tokens(snapshot: Snapshot, memory: TokenMemory) -> tuple[int, TokenMemory]:
    """Tokens not yet trained on: as the trainers see them, else an estimate from what was captured since.

    Before the first trainer has answered, everything captured since the pods' boot counts.
    """
    captured = {view.state.boot: view.state.capture.tokens for view in snapshot.rollouts if view.state is not None}
    answers = [
        view.state.available_tokens
        for view in snapshot.trainers
        if view.state is not None and view.fault is None and view.age <= snapshot.limits.stale_after
    ]
    if answers:
        available = max(answers)
        return available, TokenMemory(available=available, captured=captured)
    grown = sum(max(0, tokens - memory.captured.get(boot, 0)) for boot, tokens in captured.items())
    return memory.available + grown, memory
