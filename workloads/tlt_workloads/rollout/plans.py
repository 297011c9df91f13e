"""What is drafted in a step: how many tokens, and by whom."""

from __future__ import annotations

from typing import Any

from tlt_workloads.contract import DraftSource


class DraftPlan(int):
    """A draft length that knows its drafter.

    vLLM carries one integer from the scheduler that decides to the drafter that acts; being one, this passes through
    all of it, processes included.  A plan of no tokens has no drafter of its own and counts as the learned one's.
    """

    source: DraftSource

    def __new__(cls, length: int, source: DraftSource = DraftSource.LEARNED) -> DraftPlan:
        plan = super().__new__(cls, length)
        plan.source = source if length else DraftSource.LEARNED
        return plan

    def __eq__(self, other: object) -> bool:
        if isinstance(other, DraftPlan):
            return int(self) == int(other) and self.source is other.source
        return int(self) == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(int(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return DraftPlan, (int(self), self.source)

    def __repr__(self) -> str:
        return f"{self.source.value}({int(self)})" if self else "Off"


OFF = DraftPlan(0)
