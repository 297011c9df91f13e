"""Which of several operators acts: the one that holds a Kubernetes Lease (coordination.k8s.io/v1).

As in client-go (k8s.io/client-go/tools/leaderelection): a candidate takes the Lease when it is free, or when it has not
changed for the holder's own `leaseDurationSeconds` by the candidate's clock, so that no two clocks are ever compared.
The holder stops acting when it could not renew for `deadline`, which is shorter, so that it has stopped before anybody
may follow.  Writes carry the resource version: of two candidates exactly one gets the Lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tlt_operator.clients.kube import LEASE, Kubernetes, Object
from tlt_operator.errors import ConflictError, NotFoundError, OperatorError
from tlt_operator.reconcile.clock import Clock

logger = logging.getLogger(__name__)


class LeadershipLostError(OperatorError):
    """Another operator may act from now on, so this one must not."""


@dataclass(frozen=True, kw_only=True)
class ElectionTerms:
    """Seconds.  A take-over after a crash takes at most `duration` and two times `retry`."""

    duration: float = 12.0  # others wait this long after the last renewal that they saw
    deadline: float = 9.0  # the holder acts for at most this long without a renewal
    renew: float = 2.0  # between two renewals
    retry: float = 1.0  # between two looks of a candidate

    def __post_init__(self) -> None:
        if not 0 < self.renew < self.deadline < self.duration or self.retry <= 0:
            raise ValueError(f"0 < renew < deadline < duration and 0 < retry does not hold: {self}")

    @property
    def patience(self) -> float:
        """How long one renewal may take: what hangs on a dead connection must leave time for another try."""
        return self.deadline / 2


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A version of the Lease, and when the candidate first saw it on its own steady clock."""

    version: str
    at: float


def holder_of(lease: Mapping[str, Any]) -> str:
    """Who holds it; empty when it is free."""
    return str((lease.get("spec") or {}).get("holderIdentity") or "")


def sighted(lease: Mapping[str, Any], before: Sighting | None, *, now: float) -> Sighting:
    """The sighting of a Lease that was read just now."""
    version = str(lease["metadata"]["resourceVersion"])
    return before if before is not None and before.version == version else Sighting(version=version, at=now)


def may_take(lease: Mapping[str, Any], seen: Sighting, *, identity: str, now: float) -> bool:
    """Whether a candidate may take the Lease: it is free, its own, or its holder has been silent for too long."""
    holder = holder_of(lease)
    promised = float((lease.get("spec") or {}).get("leaseDurationSeconds") or 0)
    return holder in ("", identity) or now - seen.at >= promised


@dataclass(kw_only=True)
class Election:
    """One candidate.  `win`, then `hold`, then `release`."""

    kube: Kubernetes
    namespace: str
    name: str
    identity: str  # unique among all processes that ever ran
    terms: ElectionTerms = field(default_factory=ElectionTerms)
    clock: Clock = field(default_factory=Clock)
    _lease: Object | None = None  # as we last wrote it
    _renewed: float = 0.0

    async def win(self) -> None:
        """Returns as soon as this candidate holds the Lease."""
        seen: Sighting | None = None
        told = ""
        while self._lease is None:
            try:
                found = await self.kube.find(LEASE, namespace=self.namespace, name=self.name)
                if found is not None:
                    seen = sighted(found, seen, now=self.clock.steady())
                    if (holder := holder_of(found)) != told:
                        logger.info("Lease %s is held by %s", self.name, holder or "nobody")
                        told = holder
                if found is None or seen is None or may_take(found, seen, identity=self.identity, now=self._now()):
                    await self._write(found)
                    continue
            except ConflictError:
                pass  # another candidate was faster
            except OperatorError as error:
                logger.warning("Lease %s: %s", self.name, error)
            await asyncio.sleep(self.terms.retry)
        logger.info("Lease %s is ours; this operator acts as %s", self.name, self.identity)

    async def hold(self) -> None:
        """Renews for ever; after it has raised, `win` may be called again.

        Raises:
            LeadershipLostError: the Lease could not be renewed in time, or is somebody else's.
        """
        pause = self.terms.renew
        while True:
            await asyncio.sleep(pause)
            left = self._renewed + self.terms.deadline - self._now()
            if left <= 0:
                self._lease = None
                raise LeadershipLostError(f"Lease {self.name} was not renewed for {self.terms.deadline:g}s")
            try:
                async with asyncio.timeout(min(left, self.terms.patience)):
                    await self._renew()
                pause = self.terms.renew
            except LeadershipLostError:
                raise
            except (OperatorError, TimeoutError) as error:
                pause = self.terms.renew / 8  # there is little time left
                logger.warning("Lease %s is not renewed yet: %s", self.name, error or type(error).__name__)

    async def release(self) -> None:
        """Frees the Lease, so that the next operator need not wait; without it nothing happens."""
        lease, self._lease = self._lease, None
        if lease is None:
            return
        body = {**lease, "spec": {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}}
        try:
            async with asyncio.timeout(self.terms.renew):
                await self.kube.replace(body)
        except (OperatorError, TimeoutError) as error:
            logger.warning("Lease %s could not be released: %s", self.name, error or type(error).__name__)

    async def _renew(self) -> None:
        try:
            await self._write(self._lease)
        except NotFoundError:
            await self._write(None)  # somebody deleted it
        except ConflictError:
            # Somebody wrote to it; a person with kubectl is forgiven, another holder is not.
            found = await self.kube.find(LEASE, namespace=self.namespace, name=self.name)
            if found is not None and holder_of(found) != self.identity:
                self._lease = None
                raise LeadershipLostError(f"Lease {self.name} is held by {holder_of(found) or 'nobody'}") from None
            await self._write(found)

    async def _write(self, before: Object | None) -> None:
        """Writes our renewal over a version of the Lease, or makes the Lease."""
        asked = self._now()
        moment = self.clock.precise_timestamp()
        old = (before.get("spec") or {}) if before is not None else {}
        is_ours = old.get("holderIdentity") == self.identity
        spec = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": round(self.terms.duration),
            "acquireTime": old.get("acquireTime", moment) if is_ours else moment,
            "renewTime": moment,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (not is_ours and before is not None),
        }
        body: Object = {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": spec,
        }
        if before is None:
            self._lease = await self.kube.create(body)
        else:
            body["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"]
            self._lease = await self.kube.replace(body)
        self._renewed = asked  # not when the answer came: others count from when it was written

    def _now(self) -> float:
        return self.clock.steady()


async def lead(election: Election, *, begin: Callable[[], None], pause: Callable[[], Awaitable[None]]) -> None:
    """Acts while this operator holds the Lease, and stands by while it does not; runs until cancelled."""
    while True:
        await election.win()
        begin()
        try:
            await election.hold()
        except LeadershipLostError as error:
            logger.error("%s; this operator stands by", error)
        finally:  # whatever ends the renewal ends the acting
            await pause()
