"""A trainer pod: its facts, and how it learns."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from tlt_workloads.contract.drafters import RevisionManifest


class TrainerPhase(enum.StrEnum):
    """What the supervisor of a trainer pod does."""

    STARTING = "Starting"  # importing, reading the target's embeddings
    WAITING = "Waiting"  # warm, holds no lease
    TRAINING = "Training"  # a worker has the device
    STOPPING = "Stopping"  # asked back, or given back while the worker still writes its checkpoint
    FAILED = "Failed"


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How a job's trainers learn; the operator passes it in `TLT_TRAINER_CONFIG`."""

    target_model: str
    method: str = "Eagle3"
    draft_vocab_size: int = 8192
    draft_length: int = 3
    learning_rate: float = 1e-4
    max_policy_lag: int = 4
    min_new_tokens: int = 20000  # a window starts only with at least this many tokens not yet trained on
    checkpoint_interval: float = 5.0
    micro_batch_tokens: int = 0  # 0 = measured so that one micro-step takes at most 200 ms
    initial_revision: str | None = None
    keep_warm: float = 600.0
    grace: float = 2.0  # from revoke to SIGKILL of the worker


@dataclass(frozen=True, kw_only=True)
class WindowReport:
    """One idle window used (or not) by a trainer."""

    lease_id: str
    started_ago: float
    seconds: float
    lease_to_first_step: float | None  # None: ended before a step
    steps: int
    tokens: int
    loss_first: float | None
    loss_last: float | None
    stop_reason: str  # RevokeReason value, or "NoData", "Done", "Error: ..."
    stop_seconds: float  # revoke seen to worker gone


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """Facts about one trainer pod.  `candidates` lists every revision in the store, oldest first."""

    seq: int
    boot: str
    phase: TrainerPhase
    holder: str
    message: str
    windows: int
    trained_tokens: int
    available_tokens: int  # captured, fresh enough and not yet trained on
    trained_seconds: float
    last_window: WindowReport | None
    candidates: tuple[RevisionManifest, ...]
    peak_memory: int
    skipped_shards: int = 0  # different ones since the pod's boot: cut off, of another model, or gone when wanted
    replicas: int = 0  # that train together as one, this one included; 0 while it does not train
