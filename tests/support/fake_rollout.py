"""Stand-ins for pods: real HTTP servers that speak the contract where there is no node to run the real ones."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid

import aiohttp
from aiohttp import web

from tests.support.fake_pod import FakePod, refusal
from tlt_workloads.contract import (
    CONFIG_ROUTE,
    DRAFTER_ROUTE,
    GATEWAY_PORT,
    GATEWAY_ROUTE,
    LEASE_ROUTE,
    STATE_ROUTE,
    TRAINER_PORT,
    TRAINER_ROUTE,
    AcceptanceCounters,
    CaptureCounters,
    DrafterLoad,
    DrafterLoaded,
    EndedLease,
    Evaluation,
    GatewayState,
    LeasePhase,
    LeaseRequest,
    LeaseView,
    RevisionManifest,
    RevokeReason,
    RolloutConfig,
    RolloutState,
    SpeculationMode,
    TrainerPhase,
    TrainerState,
    WindowReport,
    config_digest,
    decode,
    encode,
)
from tlt_workloads.tokens import TokenFile, bearer


class FakeRollout(FakePod):
    """A rollout pod: tests call `generate` and `finish`; leases, configuration, drafters behave as the real ones."""

    def __init__(
        self, address: str, port: int, *, token: str | TokenFile | None = None, idle_after: float = 0.05
    ) -> None:
        super().__init__(address, port, token=token)
        self.idle_after = idle_after
        self.running = 0
        self.lease: LeaseView | None = None
        self.last_lease: EndedLease | None = None
        self.revision: DrafterLoad | None = None
        self.method: str | None = "eagle3"
        self.config: RolloutConfig | None = None
        self.captured = 0
        self.visible_devices: tuple[str, ...] = ()
        self.acceptance = AcceptanceCounters()
        self.policy_version = 1
        self.loads: list[str | None] = []  # every drafter that came, None for the server's own
        self.refuse_drafter: str | None = None
        self.may_load = asyncio.Event()  # a load waits for it, as for a slow store
        self.may_load.set()
        self.busy_seconds = self.idle_seconds = self.lent_seconds = 0.0
        self.granted: list[LeaseRequest] = []
        self._quiet_since = self._counted = time.monotonic()
        self._granted_at = self._revoked_at = self._ended_at = self._heard_at = 0.0
        self._timer: asyncio.Task[None] | None = None

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get(STATE_ROUTE, self._state),
            web.post(LEASE_ROUTE, self._post_lease),
            web.get(LEASE_ROUTE, self._get_lease),
            web.delete(LEASE_ROUTE, self._delete_lease),
            web.post(CONFIG_ROUTE, self._configure),
            web.post(DRAFTER_ROUTE, self._drafter),
            web.delete(DRAFTER_ROUTE, self._own_drafter),
        ]

    async def start(self) -> None:
        await super().start()
        self._timer = asyncio.create_task(self._tick())

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await super().stop()

    async def reboot(self) -> None:
        self.lease = self.last_lease = self.revision = self.config = None
        self.captured = 0
        self.acceptance = AcceptanceCounters()
        self.busy_seconds = self.idle_seconds = self.lent_seconds = 0.0
        await super().reboot()

    @property
    def drafter(self) -> str | None:
        """Name of the revision that it has; None is the server's own drafter."""
        return self.revision.revision if self.revision is not None else None

    def draft(self, drafts: int, *, accept_length: float) -> None:
        """So many verification steps, with this mean of tokens."""
        before = self.acceptance
        self.acceptance = AcceptanceCounters(
            drafts=before.drafts + drafts,
            draft_tokens=before.draft_tokens + 3 * drafts,
            accepted_tokens=before.accepted_tokens + round(drafts * (accept_length - 1)),
        )
        self.bump()

    def generate(self, requests: int = 1) -> None:
        """Requests arrive; a lease is asked back at once."""
        self._count()
        self.running += requests
        if self.lease is not None and self.lease.phase is LeasePhase.GRANTED:
            self._revoke(RevokeReason.REQUEST)
        self.bump()

    def finish(self, *, captured: int = 0) -> None:
        """All requests are done."""
        self._count()
        self.running, self._quiet_since = 0, time.monotonic()
        self.captured += captured
        self.bump()

    @property
    def idle(self) -> bool:
        return self.running == 0 and time.monotonic() - self._quiet_since >= self.idle_after

    def state(self) -> RolloutState:
        self._count()
        now = time.monotonic()
        lease, last = self.lease, self.last_lease
        if lease is not None:
            revoking = now - self._revoked_at if lease.phase is LeasePhase.REVOKING else 0.0
            lease = dataclasses.replace(lease, age=now - self._granted_at, revoking_for=revoking)
        if last is not None:
            last = dataclasses.replace(last, ended_ago=now - self._ended_at)
        return RolloutState(
            seq=self.seq,
            boot=self.boot,
            running=self.running,
            waiting=0,
            idle=self.idle,
            idle_for=now - self._quiet_since if self.idle else 0.0,
            paused=False,
            updating=False,
            lease=lease,
            last_lease=last,
            policy_version=self.policy_version,
            drafter_revision=self.revision.revision if self.revision else None,
            drafter_digest=self.revision.sha256 if self.revision else None,
            drafter_method=self.method,
            speculation=SpeculationMode.ADAPTIVE,
            draft_length=3,
            config_digest=config_digest(self.config) if self.config else None,
            served_names=("policy",),
            requests=0,
            failed_requests=0,
            aborted_requests=0,
            generated_tokens=0,
            busy_seconds=self.busy_seconds,
            idle_seconds=self.idle_seconds,
            lent_seconds=self.lent_seconds,
            capture=CaptureCounters(tokens=self.captured),
            acceptance=self.acceptance,
            engine_version="0",
            plugin_version="0",
            visible_devices=self.visible_devices,
        )

    def end_lease(self) -> None:
        """The holder hands the device back."""
        if self.lease is None:
            return
        self._count()
        now = time.monotonic()
        revoked = self.lease.phase is LeasePhase.REVOKING
        self.last_lease = EndedLease(
            id=self.lease.id,
            holder=self.lease.holder,
            duration=now - self._granted_at,
            hand_back=now - self._revoked_at if revoked else 0.0,
            reason=self.lease.reason,
            ended_ago=0.0,
        )
        self.lease, self._ended_at = None, now
        self.bump()

    async def _tick(self) -> None:
        was_idle = False
        while True:
            await asyncio.sleep(0.005)
            if self.idle != was_idle:
                was_idle = self.idle
                self.bump()
            if self.lease is not None and time.monotonic() - self._heard_at > self.granted[-1].ttl:
                self.lease = dataclasses.replace(self.lease, reason=RevokeReason.EXPIRED)
                self.end_lease()

    def _count(self) -> None:
        now = time.monotonic()
        seconds, self._counted = now - self._counted, now
        if self.running:
            self.busy_seconds += seconds
        else:
            self.idle_seconds += seconds
            self.lent_seconds += seconds if self.lease is not None else 0.0

    def _revoke(self, reason: RevokeReason) -> None:
        assert self.lease is not None
        self._revoked_at = time.monotonic()
        self.lease = dataclasses.replace(self.lease, phase=LeasePhase.REVOKING, reason=reason)

    async def _state(self, request: web.Request) -> web.Response:
        return await self.answer(request, lambda: encode(self.state()))

    async def _post_lease(self, request: web.Request) -> web.Response:
        wanted = decode(LeaseRequest, await request.json())
        if self.lease is not None:
            return refusal(409, "Held", f"held by {self.lease.holder}")
        if not self.idle:
            return refusal(409, "NotIdle", f"{self.running} requests run")
        self._count()
        self.granted.append(wanted)
        self._granted_at = self._heard_at = time.monotonic()
        self.lease = LeaseView(
            id=uuid.uuid4().hex[:8], holder=wanted.holder, phase=LeasePhase.GRANTED, age=0.0, expires_in=wanted.ttl
        )
        self.bump()
        return web.json_response(encode(self.lease), status=201)

    async def _get_lease(self, request: web.Request) -> web.Response:
        if self.lease is not None and request.query.get("holder") == self.lease.holder:
            self._heard_at = time.monotonic()
        return await self.answer(
            request,
            lambda: {"seq": self.seq, "boot": self.boot, "lease": encode(self.lease) if self.lease else None},
        )

    async def _delete_lease(self, request: web.Request) -> web.Response:
        if "revoke" in request.query:
            if self.lease is not None and self.lease.phase is LeasePhase.GRANTED:
                self._revoke(RevokeReason(request.query["revoke"]))
                self.bump()
        elif self.lease is not None and self.lease.holder == request.query.get("holder"):
            self.end_lease()
        return web.json_response({})

    async def _configure(self, request: web.Request) -> web.Response:
        self.config = decode(RolloutConfig, await request.json())
        self.bump()
        return web.json_response({})

    async def _drafter(self, request: web.Request) -> web.Response:
        load = decode(DrafterLoad, await request.json())
        await self.may_load.wait()
        if self.refuse_drafter is not None:
            return refusal(422, "BadWeights", self.refuse_drafter)
        self.revision, self.acceptance = load, AcceptanceCounters()
        self.loads.append(load.revision)
        self.bump()
        return web.json_response(
            encode(
                DrafterLoaded(
                    revision=load.revision,
                    seconds=0.01,
                    stall=0.001,
                    policy_checksum_before="a",
                    policy_checksum_after="a",
                )
            )
        )

    async def _own_drafter(self, _: web.Request) -> web.Response:
        if self.revision is not None:
            self.revision, self.acceptance = None, AcceptanceCounters()
            self.loads.append(None)
            self.bump()
        return web.json_response(encode(self.state()))


class FakeTrainer(FakePod):
    """A trainer pod: takes the lease that it is given, `trains`, and hands back when asked."""

    def __init__(self, address: str, *, rollout_url: str, holder: str, token: str | TokenFile | None = None) -> None:
        super().__init__(address, TRAINER_PORT, token=token)
        self.rollout_url, self.holder = rollout_url, holder
        self.phase = TrainerPhase.WAITING
        self.message = ""
        self.available = 10**6
        self.candidates: tuple[RevisionManifest, ...] = ()
        self.windows = 0
        self.last_window: WindowReport | None = None
        self._supervisor: asyncio.Task[None] | None = None

    def routes(self) -> list[web.RouteDef]:
        return [web.get(TRAINER_ROUTE, self._state)]

    async def start(self) -> None:
        await super().start()
        self._supervisor = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        await super().stop()

    def publish(self, manifest: RevisionManifest) -> None:
        """A revision is in the store."""
        self.candidates = (*self.candidates, manifest)
        self.bump()

    def fail(self, message: str) -> None:
        """The supervisor cannot go on."""
        self.phase, self.message = TrainerPhase.FAILED, message
        self.bump()

    def hang(self) -> None:
        """The supervisor does nothing any more: it neither hands back nor beats."""
        if self._supervisor is not None:
            self._supervisor.cancel()

    def state(self) -> TrainerState:
        return TrainerState(
            seq=self.seq,
            boot=self.boot,
            phase=self.phase,
            holder=self.holder,
            message=self.message,
            windows=self.windows,
            trained_tokens=0,
            available_tokens=self.available,
            trained_seconds=0.0,
            last_window=self.last_window,
            candidates=self.candidates,
            peak_memory=0,
        )

    async def _state(self, request: web.Request) -> web.Response:
        return await self.answer(request, lambda: encode(self.state()))

    async def _supervise(self) -> None:
        async with aiohttp.ClientSession() as session:
            seq = 0
            while True:
                query = {"holder": self.holder, "seq": str(seq), "wait": "0.3"}
                try:
                    async with session.get(
                        self.rollout_url + LEASE_ROUTE, params=query, headers=bearer(self.sent_token() or "")
                    ) as response:
                        data = await response.json()
                except aiohttp.ClientError:
                    await asyncio.sleep(0.05)
                    continue
                seq = data.get("seq", 0)
                lease = decode(LeaseView, data["lease"]) if data.get("lease") else None
                await self._obey(session, lease)

    async def _obey(self, session: aiohttp.ClientSession, lease: LeaseView | None) -> None:
        mine = lease is not None and lease.holder == self.holder
        if mine and lease is not None and lease.phase is LeasePhase.REVOKING:
            query, headers = {"holder": self.holder}, bearer(self.sent_token() or "")
            async with session.delete(self.rollout_url + LEASE_ROUTE, params=query, headers=headers):
                self.windows += 1
                mine = False
        wanted = TrainerPhase.TRAINING if mine else TrainerPhase.WAITING
        if self.phase is not wanted and self.phase is not TrainerPhase.FAILED:
            self.phase = wanted
            self.bump()


class FakeGateway(FakePod):
    """A gateway that says what it is told to."""

    def __init__(self, address: str, *, token: str | TokenFile | None = None) -> None:
        super().__init__(address, GATEWAY_PORT, token=token)
        self.queued = self.outstanding = 0

    def routes(self) -> list[web.RouteDef]:
        return [web.get(GATEWAY_ROUTE, self._state)]

    async def _state(self, request: web.Request) -> web.Response:
        return await self.answer(request, lambda: encode(self.state()))

    def state(self) -> GatewayState:
        return GatewayState(
            seq=self.seq,
            boot=self.boot,
            queued=self.queued,
            outstanding=self.outstanding,
            batch_size=0,
            completed=0,
            backends=(),
            requests=0,
            retried_requests=0,
            failed_requests=0,
            policy_version=1,
        )


def manifest(job: str, number: int, *, accept_length: float = 1.5, parent: float | None = None) -> RevisionManifest:
    """The manifest of a trained revision."""
    return RevisionManifest(
        revision=f"{job}-r{number}",
        job=f"default/{job}",
        sha256=f"{number:064x}",
        parent=f"{job}-r{number - 1}" if number > 1 else None,
        method="Eagle3",
        policy_versions=(0, number),
        trained_tokens=1000 * number,
        evaluation=Evaluation(
            accept_length=accept_length,
            standard_error=0.01,
            parent_accept_length=parent,
            sequences=10,
            tokens=1000,
        ),
        draft_vocab_size=8192,
        trainer_version="0",
        created_at="2026-01-01T00:00:00Z",
    )
