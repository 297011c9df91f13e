"""This rollout pod as one object: what it is doing, who holds its GPU, which weights it has.

All of it runs in the API process's event loop, so that nothing here needs a lock except what awaits the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tlt_workloads.contract import (
    AcceptanceCounters,
    CaptureCounters,
    DrafterRefusal,
    Drafting,
    LeasePhase,
    LeaseRequest,
    LeaseView,
    MemoryMode,
    RevokeReason,
    RolloutState,
    SpeculationMode,
    SpeculationSettings,
)
from tlt_workloads.rollout.activity import ActivityClock
from tlt_workloads.rollout.engine import Engine
from tlt_workloads.rollout.lease import Lease, LeaseBook, LeaseHeldError
from tlt_workloads.rollout.slumber import Slumber, SlumberState

logger = logging.getLogger("vllm.tlt")

ENGINE_POLL = 0.1  # seconds between two looks at an engine that still has requests which no caller waits for
WAKE_LIMIT = 120.0  # seconds that a request waits for an engine that does not wake before it fails
HAND_BACK_LIMIT = 60.0  # seconds that a request waits for a sleeping engine's GPU before the lease is ended for it


class RefusedError(Exception):
    """The pod will not do that now.  `reason` is CamelCase, the message a sentence."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What does not change while the server runs."""

    served_names: tuple[str, ...]
    engine_version: str
    plugin_version: str
    drafter_method: str | None  # None = started without speculation
    can_sleep: bool  # the engine can give its memory back
    visible_devices: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Readings:
    """Where the totals come from that others count."""

    waiting: Callable[[], int]
    generated_tokens: Callable[[], int]
    acceptance: Callable[[], AcceptanceCounters]
    ngram: Callable[[], AcceptanceCounters]
    drafting: Callable[[], Drafting | None]
    capture: Callable[[], CaptureCounters]


class RolloutPod:
    """The pod's facts, the changes to them, and those who wait for the next change."""

    def __init__(
        self, engine: Engine, *, identity: Identity, readings: Readings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.engine = engine
        self.identity = identity
        self._readings = readings
        self._clock = clock
        self.boot = uuid.uuid4().hex
        self.seq = 1
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.activity = ActivityClock(started_at=clock())
        self.leases = LeaseBook()
        self._slumber = Slumber(engine, on_change=self._note_change)
        self.policy_version = 0
        self.drafter_revision: str | None = None
        self.drafter_digest: str | None = None
        self.own_drafter_digest: str | None = None  # of what the server started with
        self.swap_stall: float | None = None
        self.drafter_trained_to: int | None = None  # the last policy that the drafter has learnt from
        self.drafter_refusals: Counter[DrafterRefusal] = Counter()
        self.speculation = SpeculationSettings(mode=SpeculationMode.OFF, draft_length=0)
        self.config_digest: str | None = None
        self._arm()

    # -- facts ---------------------------------------------------------------------------------------------------

    def facts(self) -> RolloutState:
        """The public state."""
        now = self._clock()
        self.activity.pass_time(now)
        unfinished = self.engine.unfinished_requests()
        waiting = min(unfinished, self._readings.waiting())
        return RolloutState(
            seq=self.seq,
            boot=self.boot,
            running=unfinished - waiting,
            waiting=waiting,
            idle=self.activity.is_idle(now) and unfinished == 0 and not self._is_waking,
            idle_for=self.activity.idle_for(now),
            paused=self.activity.paused,
            updating=self.activity.updating,
            lease=self._lease_in_force(now),
            last_lease=self.leases.ended_view(now=now),
            policy_version=self.policy_version,
            drafter_revision=self.drafter_revision,
            drafter_digest=self.drafter_digest,
            drafter_method=self.identity.drafter_method,
            speculation=self.speculation.mode,
            draft_length=self.speculation.draft_length,
            config_digest=self.config_digest,
            served_names=self.identity.served_names,
            requests=self.activity.requests,
            failed_requests=self.activity.failed,
            aborted_requests=self.activity.aborted,
            generated_tokens=self._readings.generated_tokens(),
            busy_seconds=self.activity.busy_seconds,
            idle_seconds=self.activity.idle_seconds,
            lent_seconds=self.activity.lent_seconds,
            capture=self._readings.capture(),
            acceptance=self._readings.acceptance(),
            engine_version=self.identity.engine_version,
            plugin_version=self.identity.plugin_version,
            swap_stall=self.swap_stall,
            drafter_lag=self._drafter_lag(),
            drafter_refusals={reason.value: count for reason, count in self.drafter_refusals.items()},
            visible_devices=self.identity.visible_devices,
            drafting=self._readings.drafting(),
            ngram=self._readings.ngram(),
        )

    async def wait_for_change(self, seq: int, *, within: float) -> None:
        """Returns at once when the sequence number differs from `seq`, else at the next change or after `within` s."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                while self.seq == seq:
                    await self._changed.wait()

    # -- requests (gate.Doorkeeper) --------------------------------------------------------------------------------

    async def admit(self) -> None:
        """A generation request arrived: the lease is asked back at once; a sleeping engine wakes first."""
        now = self._clock()
        self.activity.arrive(now)
        self.leases.revoke(RevokeReason.REQUEST, now=now)
        self._note_change()
        if self.sleeps:
            await self._be_awake()

    def depart(self, *, failed: bool, aborted: bool) -> None:
        """A generation request is over."""
        self.activity.depart(self._clock(), failed=failed, aborted=aborted)
        self._note_change()

    # -- lease -----------------------------------------------------------------------------------------------------

    async def grant(self, request: LeaseRequest) -> LeaseView:
        """Lends the GPU.

        Raises:
            RefusedError: NotIdle, Held, Paused, Updating; Unsupported when the engine cannot sleep, SleepFailed when
                it did not.
        """
        if request.memory is MemoryMode.SLEEP and not self.identity.can_sleep:
            raise RefusedError("Unsupported", "memory: Sleep needs an engine started with --enable-sleep-mode")
        unfinished = self.engine.unfinished_requests()
        now = self._clock()
        held = self.leases.current
        if held is None or held.holder != request.holder:
            self._check_lendable(now, unfinished=unfinished)
        elif held.memory is not request.memory:
            raise RefusedError("Held", f"the lease is yours in memory mode {held.memory.value}; give it back first")
        try:
            lease = self.leases.grant(request, id=secrets.token_hex(8), now=now)
        except LeaseHeldError as error:
            raise RefusedError("Held", str(error)) from error
        self.activity.set_lent(True, now=now)
        self._note_change()
        if lease.memory is MemoryMode.SLEEP:
            await self._fall_asleep_for(lease)
        view = self._lease_in_force(self._clock())
        if view is None:
            raise RefusedError("NotIdle", "the lease ended before it began")
        return view

    def heartbeat(self, holder: str) -> bool:
        """The holder is alive; False when it has no lease."""
        alive = self.leases.heartbeat(holder, now=self._clock())
        self._arm()
        return alive

    def revoke(self, reason: RevokeReason) -> bool:
        """Asks the lease back; False when there is none to ask back."""
        changed = self.leases.revoke(reason, now=self._clock())
        if changed:
            self._note_change()
        return changed

    async def release(self, holder: str) -> None:
        """The holder gives the lease back; a sleeping engine wakes.

        Raises:
            NotHolderError: another holder has it.
        """
        self.leases.release(holder, now=self._clock())
        self._note_change()  # which begins to wake the engine

    # -- sleep -----------------------------------------------------------------------------------------------------

    @property
    def sleeps(self) -> bool:
        """Whether the engine is asleep, about to be, or not awake again; it must not be used then."""
        lease = self.leases.current
        return not self._slumber.is_awake or (lease is not None and lease.memory is MemoryMode.SLEEP)

    @property
    def _is_waking(self) -> bool:
        return self.leases.current is None and not self._slumber.is_awake

    async def take_back(self, reason: RevokeReason) -> None:
        """Asks the lease back, and if the engine sleeps for it, returns when it is awake.

        To be called when no other lease can be granted: while the pod counts as busy, paused or updating.

        Raises:
            TimeoutError: the engine does not wake.
        """
        self.revoke(reason)
        if self.sleeps:
            await self._be_awake()

    async def wait_until_awake(self, *, within: float) -> None:
        """Waits without asking for anything.

        Raises:
            RefusedError: Asleep, the engine still sleeps.
        """
        try:
            async with asyncio.timeout(within):
                while self.sleeps:
                    await self._changed.wait()
        except TimeoutError:
            raise RefusedError("Asleep", "the engine sleeps while its GPU is lent") from None

    def _lease_in_force(self, now: float) -> LeaseView | None:
        """The lease as others may see it: in mode Sleep its holder must not begin before the memory is free."""
        lease = self.leases.current
        waits = lease is not None and lease.memory is MemoryMode.SLEEP
        if waits and self._slumber.state is not SlumberState.ASLEEP:
            return None
        return self.leases.view(now=now)

    async def _fall_asleep_for(self, lease: Lease) -> None:
        """Ends the lease when the engine did not sleep, or was asked for meanwhile: its holder has never seen it."""

        def is_wanted() -> bool:
            current = self.leases.current
            return current is not None and current.id == lease.id and current.phase is LeasePhase.GRANTED

        try:
            await self._slumber.fall_asleep(wanted=is_wanted)
        except BaseException as error:
            self._end(lease)
            if isinstance(error, Exception):
                raise RefusedError("SleepFailed", f"the engine did not go to sleep: {error}") from error
            raise
        if not is_wanted():
            self._end(lease)

    def _end(self, lease: Lease) -> None:
        if self.leases.current is not None and self.leases.current.id == lease.id:
            self.leases.release(lease.holder, now=self._clock())
            self._note_change()

    async def _be_awake(self) -> None:
        if self.leases.current is not None:
            await self._wait_for_hand_back()
        await self._slumber.wake(limit=WAKE_LIMIT)

    def _check_lendable(self, now: float, *, unfinished: int) -> None:
        if self.leases.current is not None:
            raise RefusedError("Held", f"the lease belongs to {self.leases.current.holder}")
        if self._is_waking:
            raise RefusedError("NotIdle", "the engine is waking from the last lease")
        if self.activity.paused:
            raise RefusedError("Paused", "generation is paused, which is not idle")
        if self.activity.updating:
            raise RefusedError("Updating", "a weight update is in flight")
        if unfinished or not self.activity.is_idle(now):
            raise RefusedError(
                "NotIdle", f"{max(unfinished, self.activity.in_flight)} requests, or quiet for too short"
            )

    async def _wait_for_hand_back(self) -> None:
        try:
            async with asyncio.timeout(HAND_BACK_LIMIT):
                while self.leases.current is not None:
                    await self._changed.wait()
        except TimeoutError:  # a trainer that still has the memory makes the wake-up fail, which is tried again
            logger.warning("lease not handed back within %.0f s, ended for a waiting request", HAND_BACK_LIMIT)
            if self.leases.current is not None:
                self.leases.release(self.leases.current.holder, now=self._clock())
                self._note_change()

    # -- weights ---------------------------------------------------------------------------------------------------

    def set_paused(self, paused: bool) -> None:
        """Somebody paused or resumed the engine through a route; whoever pauses is about to need the device."""
        if paused:
            self.leases.revoke(RevokeReason.POLICY_UPDATE, now=self._clock())
        self.activity.set_paused(paused, now=self._clock())
        self._note_change()

    def set_updating(self, updating: bool) -> None:
        """A weight update began or ended."""
        self.activity.set_updating(updating, now=self._clock())
        self._note_change()

    def _drafter_lag(self) -> int | None:
        if self.drafter_trained_to is None:
            return None
        return max(0, self.policy_version - self.drafter_trained_to)

    def note(self) -> None:
        """Another fact changed."""
        self._note_change()

    def set_idle_after(self, seconds: float) -> None:
        """How long the pod must be quiet to count as idle."""
        self.activity.idle_after = seconds
        self._note_change()

    # -- time ------------------------------------------------------------------------------------------------------

    def _note_change(self) -> None:
        self.activity.set_lent(self.leases.current is not None, now=self._clock())
        if self._is_waking:  # however the lease ended: given back, expired, or never begun
            self._slumber.begin_to_wake()
        self.seq += 1
        self._changed.set()
        self._changed = asyncio.Event()
        self._arm()

    def _arm(self) -> None:
        """Sets the one timer to the next instant at which time alone changes something."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        lingers = now + ENGINE_POLL if self._engine_lingers(now) else None
        edges = (self.activity.next_edge(now), self.leases.next_deadline(), lingers)
        deadlines = [at for at in edges if at is not None]
        if deadlines:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, min(deadlines) - now), self._on_deadline)

    def _on_deadline(self) -> None:
        now = self._clock()
        if self.leases.pass_time(now=now) or not self._engine_lingers(now):
            self._note_change()
        else:
            self._arm()

    def _engine_lingers(self, now: float) -> bool:
        """Whether the last answer is out but the engine is not done; nobody will tell us when it is."""
        return self.activity.is_idle(now) and self.engine.unfinished_requests() > 0
