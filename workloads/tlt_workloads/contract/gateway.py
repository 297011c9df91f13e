"""The gateway: what is left of a batch of completions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GatewayBackend:
    """One rollout pod as the gateway sees it."""

    address: str
    outstanding: int
    healthy: bool


@dataclass(frozen=True, kw_only=True)
class GatewayState:
    """What is left of the current batch of completions."""

    seq: int
    boot: str
    queued: int
    outstanding: int
    batch_size: int  # completions in the batches now open
    completed: int  # of these
    backends: tuple[GatewayBackend, ...]
    requests: int  # since boot
    retried_requests: int
    failed_requests: int
    policy_version: int
    remaining: float | None = None  # expected seconds until the last outstanding one is answered; None = unknown
