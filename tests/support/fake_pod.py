"""What all stand-ins for pods share: a real HTTP server with long polls and a token."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable
from typing import Any

from aiohttp import web

from tlt_workloads.tokens import TokenFile, UnauthorizedError


class FakePod(abc.ABC):
    """An HTTP server with long polls; `token` None accepts everything, a `TokenFile` what it says at that moment."""

    def __init__(self, address: str, port: int, *, token: str | TokenFile | None = None) -> None:
        self.address, self.port, self.token = address, port, token
        self.boot = uuid.uuid4().hex[:8]
        self.seq = 1
        self.calls: list[str] = []
        self.refused: list[str] = []
        self._changed = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @abc.abstractmethod
    def routes(self) -> list[web.RouteDef]:
        """What this kind of pod answers."""

    async def start(self) -> None:
        app = web.Application(middlewares=[self._guard])
        app.add_routes([*self.routes(), web.get("/healthz", self._healthz)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.address, self.port, reuse_address=True).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def reboot(self) -> None:
        """Starts again as another process, with nothing remembered."""
        await self.stop()
        self.boot, self.seq = uuid.uuid4().hex[:8], 1
        await self.start()

    def bump(self) -> None:
        """Says that the state changed."""
        self.seq += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def answer(self, request: web.Request, show: Callable[[], Any]) -> web.Response:
        """The long poll of the contract."""
        seq, wait = int(request.query.get("seq", 0)), float(request.query.get("wait", 0))
        deadline = time.monotonic() + wait
        while seq == self.seq and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)
        return web.json_response(show())

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.calls.append(f"{request.method} {request.path}")
        if not self._lets_in(request.headers.get("Authorization")):
            self.refused.append(f"{request.method} {request.path}")
            return refusal(401, "Unauthorized", "wrong token")
        return await handler(request)

    def _lets_in(self, authorization: str | None) -> bool:
        if not isinstance(self.token, TokenFile):
            return self.token is None or authorization == f"Bearer {self.token}"
        try:
            self.token.check(authorization)
        except UnauthorizedError:
            return False
        return True

    def sent_token(self) -> str | None:
        """The token that this pod itself sends."""
        return self.token.tokens()[0] if isinstance(self.token, TokenFile) else self.token


def refusal(status: int, reason: str, message: str) -> web.Response:
    return web.json_response({"error": {"reason": reason, "message": message}}, status=status)
