"""The lease on this pod's GPU: who holds it, until when, and why it was asked back.

Pure: the clock is an argument.  A lease is granted, kept alive by its holder's heartbeats, asked back (revoking) and
ended by its holder; a holder that falls silent loses it.  At most one lease exists at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tlt_workloads.contract import EndedLease, LeasePhase, LeaseRequest, LeaseView, MemoryMode, RevokeReason


class LeaseHeldError(Exception):
    """Another holder has the lease."""


class NotHolderError(Exception):
    """The caller does not hold the lease that it wants to renew or give back."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A granted lease; times are seconds of the caller's monotonic clock."""

    id: str
    holder: str
    ttl: float
    window: float
    memory: MemoryMode
    granted_at: float
    seen_at: float
    revoked_at: float | None = None
    reason: RevokeReason | None = None

    @property
    def phase(self) -> LeasePhase:
        """Whether the lease was asked back."""
        return LeasePhase.GRANTED if self.reason is None else LeasePhase.REVOKING

    @property
    def expires_at(self) -> float:
        """When the lease ends without another heartbeat."""
        return self.seen_at + self.ttl


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A lease that is over."""

    lease: Lease
    ended_at: float
    reason: RevokeReason | None


class LeaseBook:
    """The lease now held and the last one that ended."""

    def __init__(self) -> None:
        self.current: Lease | None = None
        self.last: Ended | None = None

    def grant(self, request: LeaseRequest, *, id: str, now: float) -> Lease:  # noqa: A002 - the contract's word
        """Grants a lease; asking again as the same holder renews the heartbeat and answers the same lease.

        Raises:
            LeaseHeldError: somebody else has it, or it is being handed back.
        """
        held = self.current
        if held is not None:
            if held.holder != request.holder or held.phase is LeasePhase.REVOKING:
                raise LeaseHeldError(f"lease {held.id} is {held.phase.value} to {held.holder}")
            self.current = replace(held, seen_at=now)
        else:
            self.current = Lease(
                id=id,
                holder=request.holder,
                ttl=request.ttl,
                window=request.window,
                memory=request.memory,
                granted_at=now,
                seen_at=now,
            )
        return self.current

    def heartbeat(self, holder: str, *, now: float) -> bool:
        """Keeps a lease alive; False when `holder` has none."""
        if self.current is None or self.current.holder != holder:
            return False
        self.current = replace(self.current, seen_at=now)
        return True

    def revoke(self, reason: RevokeReason, *, now: float) -> bool:
        """Asks the lease back; the first reason stays.  False when there is nothing to ask back."""
        if self.current is None or self.current.phase is LeasePhase.REVOKING:
            return False
        self.current = replace(self.current, revoked_at=now, reason=reason)
        return True

    def release(self, holder: str, *, now: float) -> None:
        """Ends the lease; giving back what one no longer has is fine.

        Raises:
            NotHolderError: somebody else holds it.
        """
        if self.current is None:
            return
        if self.current.holder != holder:
            raise NotHolderError(f"lease {self.current.id} belongs to {self.current.holder}, not to {holder}")
        self._end(self.current.reason, now)

    def pass_time(self, *, now: float) -> bool:
        """Ends a lease whose holder is silent and asks back one whose window is over; True when something changed."""
        lease = self.current
        if lease is None:
            return False
        if now >= lease.expires_at:
            self._end(lease.reason or RevokeReason.EXPIRED, now)
            return True
        window_over = lease.window > 0 and now >= lease.granted_at + lease.window
        return window_over and self.revoke(RevokeReason.WINDOW_END, now=now)

    def next_deadline(self) -> float | None:
        """The next instant at which `pass_time` may change something."""
        lease = self.current
        if lease is None:
            return None
        if lease.window > 0 and lease.phase is LeasePhase.GRANTED:
            return min(lease.expires_at, lease.granted_at + lease.window)
        return lease.expires_at

    def view(self, *, now: float) -> LeaseView | None:
        """The lease as others see it."""
        lease = self.current
        if lease is None:
            return None
        return LeaseView(
            id=lease.id,
            holder=lease.holder,
            phase=lease.phase,
            age=now - lease.granted_at,
            expires_in=max(0.0, lease.expires_at - now),
            reason=lease.reason,
            revoking_for=0.0 if lease.revoked_at is None else now - lease.revoked_at,
        )

    def ended_view(self, *, now: float) -> EndedLease | None:
        """The last lease that ended, as others see it."""
        if self.last is None:
            return None
        lease, ended_at = self.last.lease, self.last.ended_at
        return EndedLease(
            id=lease.id,
            holder=lease.holder,
            duration=ended_at - lease.granted_at,
            hand_back=0.0 if lease.revoked_at is None else ended_at - lease.revoked_at,
            reason=self.last.reason,
            ended_ago=now - ended_at,
        )

    def _end(self, reason: RevokeReason | None, now: float) -> None:
        assert self.current is not None
        self.last = Ended(lease=self.current, ended_at=now, reason=reason)
        self.current = None
