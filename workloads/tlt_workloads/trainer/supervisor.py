"""Holds the lease for a trainer pod, and keeps exactly one worker running while the lease is granted.

The supervisor never opens the device.  What it does when: a granted lease and enough data start a worker; a revoked,
ended or unreachable lease, or the pod's own end, stops it; a worker's end gives the lease back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from tlt_workloads.contract import LeasePhase, LeaseView, RevisionManifest, RevokeReason, TrainerPhase, WindowReport
from tlt_workloads.shards import job_shards
from tlt_workloads.store import StoreError, open_store
from tlt_workloads.trainer.buffer import fresh_tokens
from tlt_workloads.trainer.leases import LeaseClient, RolloutUnreachableError
from tlt_workloads.trainer.progress import TrainingProgress, latest_progress
from tlt_workloads.trainer.revisions import published_revisions
from tlt_workloads.trainer.settings import TrainerSettings, WindowOrder
from tlt_workloads.trainer.status import StatusBoard
from tlt_workloads.trainer.target import TargetError, find_target
from tlt_workloads.trainer.window import (
    WindowEnd,
    WorkerEnded,
    WorkerFailed,
    WorkerMessage,
    WorkerPublished,
    WorkerReady,
    WorkerSkipped,
    WorkerStepped,
)
from tlt_workloads.trainer.workshop import Worker, Workshop

IDLE_WAIT = 20.0  # s of a long poll without a lease
HELD_WAIT = 2.0  # s with one: each answer is a heartbeat
WRITING_LIMIT = 60.0  # s that a worker may write on after it has left the device
RETRY_PAUSE = 0.5  # s after an unreachable rollout pod
LONGEST_REFUSAL = 60.0  # s without windows after repeated failures
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Stop:
    """Why a window must end."""

    reason: str


class _Record:
    """What a window's worker has told so far."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.forked: float | None = None
        self.ready: float | None = None
        self.first_step: float | None = None
        self.steps = self.tokens = 0
        self.loss_first: float | None = None
        self.loss_last: float | None = None
        self.peak_memory = 0
        self.end: WindowEnd | None = None
        self.failure: WorkerFailed | None = None

    def take(self, message: WorkerMessage) -> None:
        match message:
            case WorkerReady():
                self.ready = time.monotonic() - self.started
            case WorkerStepped(steps=steps, tokens=tokens, loss=loss):
                if self.first_step is None:
                    self.first_step, self.loss_first = time.monotonic() - self.started, loss
                self.steps, self.tokens, self.loss_last = steps, tokens, loss
            case WorkerEnded(end=end, peak_memory=peak_memory):
                self.end, self.peak_memory = end, peak_memory
            case WorkerFailed():
                self.failure = message

    def summary(self, stop_seconds: float) -> str:
        """The window's course in seconds after the lease was seen, for the log."""
        marks = {"forked": self.forked, "ready": self.ready, "first step": self.first_step}
        told = [f"{name} {at:.3f}" for name, at in marks.items() if at is not None]
        return ", ".join([*told, f"{self.steps} steps", f"stopped in {stop_seconds:.3f}"])

    def report(self, lease_id: str, *, reason: str, stop_seconds: float) -> WindowReport:
        return WindowReport(
            lease_id=lease_id,
            started_ago=0.0,
            seconds=time.monotonic() - self.started,
            lease_to_first_step=self.first_step,
            steps=self.steps,
            tokens=self.tokens,
            loss_first=self.loss_first,
            loss_last=self.loss_last,
            stop_reason=reason,
            stop_seconds=stop_seconds,
        )


class Supervisor:
    """Runs until `shut_down` is called."""

    def __init__(
        self, settings: TrainerSettings, *, board: StatusBoard, leases: LeaseClient, workshop: Workshop
    ) -> None:
        self._settings = settings
        self._board = board
        self._leases = leases
        self._workshop = workshop
        self._lease: LeaseView | None = None
        self._lost_contact = False
        self._news = asyncio.Event()  # the lease, the contact or the wish to run has changed
        self._shutting_down = False
        self._skipped: frozenset[str] = frozenset()  # shards that workers could not read
        self._ended: set[str] = set()  # leases that were given back but may still show in a late answer
        self._failures = 0
        self._refuse_until = 0.0

    def shut_down(self) -> None:
        """Stops the worker, gives the lease back and lets `run` return."""
        self._shutting_down = True
        self._news.set()

    async def run(self) -> None:
        """Serves windows one after the other."""
        await self._start()
        helpers = [asyncio.create_task(self._watch_lease()), asyncio.create_task(self._scan_regularly())]
        try:
            while not self._shutting_down:
                lease = await self._next_lease()
                if lease is not None:
                    await self._serve(lease)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

    async def _start(self) -> None:
        self._board.update(message="importing the training libraries")
        await self._scan()
        seconds = await self._workshop.warm_up()
        _log.info("imports done in %.1f s", seconds)
        self._board.update(phase=TrainerPhase.WAITING, message=f"imports done in {seconds:.1f} s")
        self._check_target()

    async def _next_lease(self) -> LeaseView | None:
        """Returns when there is a lease that nobody has dealt with, or None when it is time to go."""
        while not self._shutting_down:
            if self._lease is not None and self._lease.id not in self._ended:
                return self._lease
            self._news.clear()
            await self._news.wait()
        return None

    async def _serve(self, lease: LeaseView) -> None:
        record, started = _Record(), time.monotonic()
        reason, stop_seconds = await self._refusal(lease), 0.0
        if reason is None:
            worker = await self._workshop.start(
                WindowOrder(settings=self._settings, lease_id=lease.id), self._listener(record)
            )
            record.forked = time.monotonic() - record.started
            self._board.update(phase=TrainerPhase.TRAINING, message=f"window {lease.id}: worker {worker.pid}")
            stop = await self._until_over(worker, lease)
            stop_seconds = await self._stop(worker, lease, stop) if stop is not None else 0.0
            await self._give_back(lease)
            self._board.update(phase=TrainerPhase.STOPPING, replicas=0)  # it may still write its checkpoint
            code = await worker.wait(limit=WRITING_LIMIT)
            reason = stop.reason if stop is not None else self._own_end(record, code)
        else:
            await self._give_back(lease)
        self._settle(record)
        _log.info("window %s: %s; %s", lease.id, reason, record.summary(stop_seconds))
        await self._scan(recount=True)  # a killed worker has told of more than it left behind
        self._board.update(
            phase=TrainerPhase.FAILED if self._is_failed(record) else TrainerPhase.WAITING,
            message=self._board.facts.message if record.failure is None else record.failure.message,
            windows=self._board.facts.windows + 1,
            trained_seconds=self._board.facts.trained_seconds + (time.monotonic() - started if record.steps else 0.0),
            last_window=record.report(lease.id, reason=reason, stop_seconds=stop_seconds),
            last_window_started=record.started,
            replicas=0,
            peak_memory=max(self._board.facts.peak_memory, record.peak_memory),
        )

    async def _refusal(self, lease: LeaseView) -> str | None:
        """Why this lease is of no use now, as a stop reason; None when a worker should start."""
        if lease.phase is LeasePhase.REVOKING:
            return str(lease.reason or RevokeReason.OPERATOR)
        if not self._check_target() or time.monotonic() < self._refuse_until:
            return f"Error: {self._board.facts.message}"
        await self._scan()
        if self._board.facts.available_tokens < self._settings.config.min_new_tokens:
            return WindowEnd.NO_DATA
        return None

    async def _until_over(self, worker: Worker, lease: LeaseView) -> _Stop | None:
        """Returns why the worker must stop, or None when it has left the device by itself."""
        released = asyncio.ensure_future(worker.released())
        while (stop := self._stop_reason(lease)) is None and not released.done():
            self._news.clear()
            news = asyncio.ensure_future(self._news.wait())
            await asyncio.wait({released, news}, return_when=asyncio.FIRST_COMPLETED)
            news.cancel()
        if released.done():
            return None
        released.cancel()
        return stop

    async def _stop(self, worker: Worker, lease: LeaseView, stop: _Stop) -> float:
        """Returns when the worker has left the device, and how many seconds that took."""
        seen = time.monotonic()
        self._board.update(phase=TrainerPhase.STOPPING, message=f"window {lease.id}: {stop.reason}")
        await worker.stop(grace=self._settings.config.grace)
        seconds = time.monotonic() - seen
        if worker.was_killed:
            _log.warning("window %s: worker killed after %.2f s", lease.id, seconds)
        return seconds

    def _stop_reason(self, lease: LeaseView) -> _Stop | None:
        if self._shutting_down:
            return _Stop(RevokeReason.SHUTDOWN)
        if self._lost_contact:
            return _Stop("Error: rollout pod unreachable")
        current = self._lease
        if current is None or current.id != lease.id:
            return _Stop(RevokeReason.EXPIRED)
        if current.phase is LeasePhase.REVOKING:
            return _Stop(current.reason or RevokeReason.OPERATOR)
        return None

    def _own_end(self, record: _Record, code: int) -> str:
        if record.failure is None and record.end is None:
            record.failure = WorkerFailed(message=f"worker ended with exit code {code}", permanent=False)
        return str(record.end) if record.failure is None else f"Error: {record.failure.message}"

    def _settle(self, record: _Record) -> None:
        """After a failure windows are refused for a while, longer each time; a good window forgets that."""
        if record.failure is None:
            self._failures = 0
        else:
            self._failures += 1
            self._refuse_until = time.monotonic() + min(LONGEST_REFUSAL, 2.0**self._failures)
            _log.error("window failed: %s", record.failure.message)

    def _is_failed(self, record: _Record) -> bool:
        return self._board.facts.phase is TrainerPhase.FAILED or bool(record.failure and record.failure.permanent)

    def _listener(self, record: _Record) -> Callable[[WorkerMessage], None]:
        before = self._board.facts.trained_tokens

        def listen(message: WorkerMessage) -> None:
            record.take(message)
            if isinstance(message, WorkerStepped):
                self._board.count(trained_tokens=before + message.tokens)
                self._board.update(replicas=message.replicas)  # which wakes watchers when it is another number
            elif isinstance(message, WorkerSkipped):
                self._skipped |= message.shards
                self._board.update(skipped_shards=len(self._skipped))
            elif isinstance(message, WorkerPublished):
                _log.info("published %s", message.manifest.revision)
                self._board.update(candidates=(*self._board.facts.candidates, message.manifest))

        return listen

    async def _give_back(self, lease: LeaseView) -> None:
        self._ended.add(lease.id)
        with contextlib.suppress(RolloutUnreachableError):
            await self._leases.give_back(patience=self._settings.rollout_timeout)

    async def _watch_lease(self) -> None:
        seq, boot, answered = 0, "", time.monotonic()
        while True:
            wait = HELD_WAIT if self._lease is not None else IDLE_WAIT
            try:
                answer = await self._leases.poll(seq=seq, wait=wait, patience=self._settings.rollout_timeout)
            except RolloutUnreachableError as error:
                if time.monotonic() - answered > self._settings.rollout_timeout and not self._lost_contact:
                    _log.warning("rollout pod unreachable: %s", error)
                    self._lost_contact, self._lease = True, None
                    self._news.set()
                await asyncio.sleep(RETRY_PAUSE)
                continue
            answered = time.monotonic()
            seq = answer.seq if answer.boot == boot or not boot else 0
            boot = answer.boot
            lease = answer.lease  # the pod shows whatever lease there is, also another holder's
            self._lost_contact = False
            self._lease = lease if lease is not None and lease.holder == self._settings.holder else None
            self._news.set()

    async def _scan_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._settings.scan_interval)
            await self._scan()
            if self._board.facts.phase is TrainerPhase.FAILED:
                self._check_target()

    async def _scan(self, *, recount: bool = False) -> None:
        """Looks into the store; when it cannot be read the last facts stay.

        Args:
            recount: whether no worker is counting now, whatever the phase says.
        """
        try:
            facts = await asyncio.to_thread(_look, self._settings)
        except (OSError, StoreError) as error:
            _log.warning("store cannot be read: %s", error)
            self._board.update(message=f"store cannot be read: {error}")
            return
        progress, available, candidates = facts
        self._board.update(available_tokens=available, candidates=candidates)
        if recount or self._board.facts.phase in (TrainerPhase.STARTING, TrainerPhase.WAITING):
            self._board.count(trained_tokens=progress.trained_tokens)

    def _check_target(self) -> bool:
        try:
            find_target(self._settings.config.target_model)
        except TargetError as error:
            self._board.update(phase=TrainerPhase.FAILED, message=str(error))
            return False
        if self._board.facts.phase is TrainerPhase.FAILED and self._failures == 0:
            self._board.update(phase=TrainerPhase.WAITING, message="")
        return self._board.facts.phase is not TrainerPhase.FAILED


def _look(settings: TrainerSettings) -> tuple[TrainingProgress, int, tuple[RevisionManifest, ...]]:
    """What the store holds: progress, tokens to train on, revisions."""
    store = open_store(settings.job_store_url)
    progress = latest_progress(store)
    shards = {entry.path: (entry.policy_version, entry.tokens) for entry in job_shards(store)}
    available = fresh_tokens(shards, progress.shards, max_policy_lag=settings.config.max_policy_lag)
    return progress, available, published_revisions(store)
