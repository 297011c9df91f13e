"""How drafts are made: what is asked for, what was decided, and how well they do."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from tlt_workloads.codec import limits


class SpeculationMode(enum.StrEnum):
    """How draft lengths are chosen; `ADAPTIVE` learns from the engine which length and which drafter pay."""

    ADAPTIVE = "Adaptive"
    STATIC = "Static"
    NGRAM = "NGram"
    OFF = "Off"


class DraftSource(enum.StrEnum):
    """Who drafts."""

    LEARNED = "Learned"  # the trained drafter
    NGRAM = "NGram"  # what followed the same words before, in the request itself


@dataclass(frozen=True, kw_only=True)
class LengthCounters:
    """Drafts of one length."""

    draft_length: int
    drafts: int
    accepted_tokens: int


@dataclass(frozen=True, kw_only=True)
class AcceptanceCounters:
    """Totals of the learned drafter since it was loaded.  Mean accept length = 1 + accepted_tokens / drafts."""

    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    by_length: tuple[LengthCounters, ...] = ()  # the same drafts by what was asked for; lengths never used are absent


@dataclass(frozen=True, kw_only=True)
class Drafting:
    """What the engine decided for its last step."""

    batch: int  # requests in it
    source: DraftSource
    draft_length: int  # 0 = no speculation


@dataclass(frozen=True, kw_only=True)
class SpeculationSettings:
    """Body of `POST speculation`."""

    mode: SpeculationMode = SpeculationMode.ADAPTIVE
    draft_length: int = field(default=3, metadata=limits(minimum=0))


@dataclass(frozen=True, kw_only=True)
class ArmReport:
    """One draft length of one drafter, as measured at a batch size."""

    source: DraftSource
    draft_length: int
    step_seconds: float  # median
    accept_length: float  # mean tokens of a step and request, bonus token counted


@dataclass(frozen=True, kw_only=True)
class BucketReport:
    """Batch sizes that are decided together."""

    largest_batch: int
    source: DraftSource  # of the arm in use
    draft_length: int
    arms: tuple[ArmReport, ...]


@dataclass(frozen=True, kw_only=True)
class SpeculationReport:
    """Answer of `GET speculation`: what is in force, and what adaptive speculation knows."""

    mode: SpeculationMode
    draft_length: int
    sources: tuple[DraftSource, ...]  # drafters that there are now
    lost_share: float  # of the time of all steps, lost by trying what was not the best
    buckets: tuple[BucketReport, ...]
