"""What a rollout engine records for training, and what it counts."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from tlt_workloads.codec import limits


class ElementType(enum.StrEnum):
    """How a recorded number is stored: two bytes, or one (e4m3) with a scale per token and layer."""

    BFLOAT16 = "Bfloat16"
    FLOAT8 = "Float8"


@dataclass(frozen=True, kw_only=True)
class CaptureDrops:
    """Tokens that were not recorded, by reason; totals since boot."""

    behind: int = 0  # the writer is slower than the engine: a slow store, or too few processors
    step_budget: int = 0  # the policy version's budget is used up, or kept for longer sequences
    memory: int = 0  # too many long requests run at once
    store_full: int = 0
    store_read_only: int = 0
    store_denied: int = 0  # wrong credentials, or no right to write
    store_gone: int = 0  # not mounted, not reachable, no such bucket
    store_failed: int = 0  # anything else


@dataclass(frozen=True, kw_only=True)
class CaptureCounters:
    """Totals since boot."""

    tokens: int = 0
    bytes: int = 0
    dropped_tokens: int = 0  # the sum of `drops`
    sequences: int = 0
    shards: int = 0
    steps: int = 0  # of the engine, seen by the capture
    seconds: float = 0.0  # time taken on the decode path, all steps together
    drops: CaptureDrops = field(default_factory=CaptureDrops)


@dataclass(frozen=True, kw_only=True)
class CaptureSettings:
    """What the rollout engine records for training.

    A step is a policy version; both of its budgets hold.  By default the ring has room for the steps that a trainer
    looks back on (`TrainerConfig.max_policy_lag`).
    """

    enabled: bool = True
    max_tokens_per_step: int = field(default=65536, metadata=limits(minimum=0))
    max_bytes_per_step: int = field(default=2 << 30, metadata=limits(minimum=0))
    max_bytes: int = field(default=8 << 30, metadata=limits(minimum=0))  # the pod's share of the ring in the store
    sample_rate: float = field(default=1.0, metadata=limits(minimum=0, maximum=1))  # of sequences
    prompt_rows: int = field(default=128, metadata=limits(minimum=0))  # of the prompt's end; all its ids are kept
    element_type: ElementType = ElementType.BFLOAT16
