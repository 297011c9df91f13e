"""How large the body of a control call may be.  Generation requests pass untouched.

Plain ASGI, and before the routes: FastAPI reads a body as a whole before any of our code runs.
"""

from __future__ import annotations

import json

from tlt_workloads.contract import API_PREFIX
from tlt_workloads.rollout.gate import App, Message, Receive, Scope, Send

LARGEST_CONTROL_BODY = 64 << 10  # bytes; the largest payload of the contract is far below
LARGEST_WEIGHTS_BODY = 16 << 20  # bytes; names, types and shapes of all tensors of a policy, never their values
WEIGHT_ROUTES = frozenset(
    {"/init_weight_transfer_engine", "/start_weight_update", "/update_weights", "/finish_weight_update"}
)


def limit_of(path: str) -> int | None:
    """Bytes that a body to this path may have; None when this is not for us to say."""
    if path.startswith(API_PREFIX):
        return LARGEST_CONTROL_BODY
    return LARGEST_WEIGHTS_BODY if path in WEIGHT_ROUTES else None


class BodyLimit:
    """ASGI middleware that answers 413 before a larger body has been read."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the body up to the limit, and hands it on in one piece."""
        limit = limit_of(scope["path"]) if scope["type"] == "http" else None
        if limit is None:
            await self._app(scope, receive, send)
            return
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the caller has gone
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > limit:
                await _refuse(send, limit)
                return
        await self._app(
            scope, _replay({"type": "http.request", "body": bytes(body), "more_body": False}, receive), send
        )


def _replay(first: Message, receive: Receive) -> Receive:
    pending = [first]

    async def read() -> Message:
        return pending.pop() if pending else await receive()

    return read


async def _refuse(send: Send, limit: int) -> None:
    error = {"error": {"reason": "BodyTooLarge", "message": f"the body must not be larger than {limit} bytes"}}
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(error).encode()})
