"""Lending a GPU: what is asked for, and what a lease looks like."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from tlt_workloads.codec import limits


class MemoryMode(enum.StrEnum):
    """What a lease does with the engine's memory: keep it (`RESERVE`) or put the engine to sleep (`SLEEP`)."""

    RESERVE = "Reserve"
    SLEEP = "Sleep"


class LeasePhase(enum.StrEnum):
    """A lease is granted, then asked back (`REVOKING`), then gone."""

    GRANTED = "Granted"
    REVOKING = "Revoking"


class RevokeReason(enum.StrEnum):
    """Why a lease was asked back."""

    REQUEST = "Request"  # a generation request arrived
    POLICY_UPDATE = "PolicyUpdate"
    OPERATOR = "Operator"  # suspended, deleted, drained, out of budget
    WINDOW_END = "WindowEnd"
    EXPIRED = "Expired"  # no heartbeat within the time to live
    SHUTDOWN = "Shutdown"


@dataclass(frozen=True, kw_only=True)
class LeaseRequest:
    """Body of `POST lease`; 201 LeaseView, or 409 with reason NotIdle | Held | Paused | Updating."""

    holder: str = field(metadata=limits(min_length=1))  # unique per trainer pod: "<pod name>/<pod uid>"
    ttl: float = field(default=10.0, metadata=limits(exclusive_minimum=0))  # ends after so long without a heartbeat
    window: float = field(default=0.0, metadata=limits(minimum=0))  # asked back after this long; 0 = no bound
    memory: MemoryMode = MemoryMode.RESERVE


@dataclass(frozen=True, kw_only=True)
class LeaseView:
    """A lease as the rollout pod shows it.

    `GET lease?holder=H` answers `{"seq", "boot", "lease": LeaseView | null}`, is a long poll and H's heartbeat.
    `DELETE lease?holder=H` ends H's lease; `DELETE lease?revoke=<RevokeReason>` asks it back from whoever holds it.
    """

    id: str
    holder: str
    phase: LeasePhase
    age: float
    expires_in: float
    reason: RevokeReason | None = None  # set while revoking
    revoking_for: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EndedLease:
    """The last lease that ended, kept so that nobody needs to have watched."""

    id: str
    holder: str
    duration: float  # granted to ended
    hand_back: float  # revoking to ended; 0 when the holder gave it back unasked
    reason: RevokeReason | None
    ended_ago: float
