"""The door that generation requests pass: the pod learns of each one before the engine does.

Plain ASGI, so that streamed answers stay streamed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Everything in vLLM 0.32 that makes the engine compute; the rest (health, models, metrics, tokenize) does not.
GENERATION_ROUTES = frozenset(
    {
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/responses",
        "/v1/messages",
        "/inference/v1/generate",
        "/v1/systemone",
        "/invocations",
        "/v1/embeddings",
        "/v1/score",
        "/v1/rerank",
        "/pooling",
        "/classify",
    }
)


class Doorkeeper(Protocol):
    """Who is told about requests."""

    async def admit(self) -> None:
        """A request arrived; returns when the engine may have it."""

    def depart(self, *, failed: bool, aborted: bool) -> None:
        """It is over."""


class RequestGate:
    """ASGI middleware around vLLM's application."""

    def __init__(self, app: App, *, doorkeeper: Callable[[], Doorkeeper | None]) -> None:
        self._app = app
        self._doorkeeper = doorkeeper

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes everything on; generation requests are announced and counted."""
        doorkeeper = self._doorkeeper()
        if doorkeeper is None or not _generates(scope):
            await self._app(scope, receive, send)
            return
        passage = _Passage(receive, send)
        raised = True
        try:
            await doorkeeper.admit()
            await self._app(scope, passage.receive, passage.send)
            raised = False
        finally:
            aborted = passage.left_early
            doorkeeper.depart(failed=not aborted and (raised or passage.status >= 500), aborted=aborted)


class _Passage:
    """Watches one request's two channels."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.status = 0
        self.left_early = False
        self._answered = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._answered:
            self.left_early = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self._answered = True
        await self._send(message)


def _generates(scope: Scope) -> bool:
    if scope["type"] != "http" or scope.get("method") != "POST":
        return False
    path = str(scope["path"]).removeprefix(str(scope.get("root_path", "")))
    return path in GENERATION_ROUTES
