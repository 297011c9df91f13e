"""A rollout pod: its facts, and what it must know of its job."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from tlt_workloads.codec import encode, limits
from tlt_workloads.contract.leases import EndedLease, LeaseView
from tlt_workloads.contract.names import JOB_PATTERN
from tlt_workloads.contract.recording import CaptureCounters, CaptureSettings
from tlt_workloads.contract.speculation import AcceptanceCounters, Drafting, SpeculationMode, SpeculationSettings


@dataclass(frozen=True, kw_only=True)
class RolloutState:
    """Facts about one rollout pod.  The pod reports facts only; what to do with them is decided elsewhere."""

    seq: int
    boot: str
    running: int  # requests in the engine, waiting ones included in `waiting`
    waiting: int
    idle: bool  # nothing running, waiting, paused or updating for at least `idle_after`
    idle_for: float  # 0 while not idle
    paused: bool
    updating: bool  # a policy or drafter update is in flight
    lease: LeaseView | None
    last_lease: EndedLease | None
    policy_version: int
    drafter_revision: str | None  # None = the drafter that the server started with
    drafter_digest: str | None  # sha256 of the loaded weights file
    drafter_method: str | None  # None = the server was started without speculation
    speculation: SpeculationMode
    draft_length: int  # as set: the longest one in mode Adaptive
    config_digest: str | None  # digest of the RolloutConfig in force
    served_names: tuple[str, ...]
    requests: int  # accepted since boot
    failed_requests: int
    aborted_requests: int
    generated_tokens: int
    busy_seconds: float  # since boot; busy + idle = time since the first answer
    idle_seconds: float
    lent_seconds: float  # part of idle_seconds
    capture: CaptureCounters
    acceptance: AcceptanceCounters
    engine_version: str
    plugin_version: str
    swap_stall: float | None = None  # longest gap in running requests during the last drafter load
    drafter_lag: int | None = None  # policy updates since the last that the drafter was trained on; None: unknown
    drafter_refusals: Mapping[str, int] = field(default_factory=dict)  # drafters refused since boot, by DrafterRefusal
    visible_devices: tuple[str, ...] = ()  # ids by which the container got devices without a claim
    drafting: Drafting | None = None  # None = no step yet
    ngram: AcceptanceCounters = field(default_factory=AcceptanceCounters)  # of the n-gram drafter, since boot


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """Body of `POST config`: what a rollout pod needs to know of its job.  Sent again after each reboot."""

    job: str = field(metadata=limits(pattern=JOB_PATTERN))  # "<namespace>/<name>"
    store_url: str = field(metadata=limits(min_length=1))
    idle_after: float = field(default=0.5, metadata=limits(minimum=0))
    capture: CaptureSettings = field(default_factory=CaptureSettings)
    speculation: SpeculationSettings = field(default_factory=SpeculationSettings)


def config_digest(config: RolloutConfig) -> str:
    """The sha256 (hex) of a configuration in canonical JSON; a pod reports the one in force in `configDigest`."""
    canonical = json.dumps(encode(config), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
