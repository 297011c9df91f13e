"""Shows what the trainer pod does: `GET /tlt/v1/trainer` as a long poll, `GET /healthz`."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import web

from tlt_workloads.contract import TRAINER_ROUTE, RevisionManifest, TrainerPhase, TrainerState, WindowReport, encode
from tlt_workloads.guard import Guard, TooManyAttemptsError
from tlt_workloads.tokens import TokenFile, UnauthorizedError

LONGEST_WAIT = 60.0  # s


@dataclass(frozen=True, kw_only=True)
class TrainerFacts:
    """Everything that is shown, with the window's beginning as a point in time instead of an age."""

    phase: TrainerPhase = TrainerPhase.STARTING
    message: str = ""
    windows: int = 0
    trained_tokens: int = 0
    available_tokens: int = 0
    trained_seconds: float = 0.0
    last_window: WindowReport | None = None
    last_window_started: float = 0.0  # monotonic
    candidates: tuple[RevisionManifest, ...] = ()
    peak_memory: int = 0
    skipped_shards: int = 0
    replicas: int = 0


class StatusBoard:
    """The facts and their sequence number."""

    def __init__(self, *, holder: str) -> None:
        self._holder = holder
        self._boot = secrets.token_hex(8)
        self._seq = 1
        self._changed = asyncio.Condition()
        self._wakers: set[asyncio.Task[None]] = set()
        self.facts = TrainerFacts()

    def update(self, **changes: Any) -> None:
        """Sets facts; watchers are told when any of them is new."""
        facts = replace(self.facts, **changes)
        if facts != self.facts:
            self.facts = facts
            self._seq += 1
            waker = asyncio.ensure_future(self._wake())
            self._wakers.add(waker)
            waker.add_done_callback(self._wakers.discard)

    def count(self, *, trained_tokens: int) -> None:
        """Sets the running total, which watchers see with the next change but are not woken for."""
        self.facts = replace(self.facts, trained_tokens=trained_tokens)

    def state(self) -> TrainerState:
        """The facts as of now."""
        facts, window = self.facts, self.facts.last_window
        if window is not None:
            window = replace(window, started_ago=time.monotonic() - facts.last_window_started)
        return TrainerState(
            seq=self._seq,
            boot=self._boot,
            phase=facts.phase,
            holder=self._holder,
            message=facts.message,
            windows=facts.windows,
            trained_tokens=facts.trained_tokens,
            available_tokens=facts.available_tokens,
            trained_seconds=facts.trained_seconds,
            last_window=window,
            candidates=facts.candidates,
            peak_memory=facts.peak_memory,
            skipped_shards=facts.skipped_shards,
            replicas=facts.replicas,
        )

    async def wait_for_change(self, seq: int, *, timeout: float) -> None:  # noqa: ASYNC109 - a long poll ends without error
        """Returns when the sequence number differs from `seq`, at the latest after the timeout."""
        try:
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait_for(lambda: self._seq != seq)
        except TimeoutError:
            pass

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def status_application(board: StatusBoard, *, tokens: TokenFile) -> web.Application:
    """The pod's HTTP side."""
    guard = Guard(tokens)

    async def trainer(request: web.Request) -> web.Response:
        try:
            guard.check(request.headers.get("Authorization"), address=request.remote or "")
            seq = int(request.query.get("seq", "0"))
            wait = min(LONGEST_WAIT, max(0.0, float(request.query.get("wait", "0"))))
        except TooManyAttemptsError as error:
            refusal = _error(429, "TooManyAttempts", str(error))
            refusal.headers["Retry-After"] = str(error.retry_after)
            return refusal
        except UnauthorizedError as error:
            return _error(401, "Unauthorized", str(error))
        except ValueError:
            return _error(400, "BadQuery", "seq must be a whole number and wait a number of seconds")
        if wait:
            await board.wait_for_change(seq, timeout=wait)
        return web.json_response(encode(board.state()))

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok")

    application = web.Application()
    application.router.add_get(TRAINER_ROUTE, trainer)
    application.router.add_get("/healthz", healthz)
    return application


def _error(status: int, reason: str, message: str) -> web.Response:
    return web.json_response({"error": {"reason": reason, "message": message}}, status=status)
