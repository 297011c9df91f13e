"""HTTP to one rollout pod; aiohttp's errors are renamed here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from tlt_workloads.gateway.errors import PodUnreachableError

# uvicorn closes a connection that was quiet for 5 s.  Ours must be gone before that, else a request that is sent in
# the same moment looks like a pod that died.
KEEP_ALIVE_SECONDS = 3.0
CONNECT_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class PodAnswer:
    """What a pod answered, whatever the status."""

    address: str
    status: int
    content: bytes
    content_type: str

    def json(self) -> Any:
        """The body as data; None when it is empty or no JSON."""
        try:
            return json.loads(self.content) if self.content else None
        except ValueError:
            return None

    @property
    def message(self) -> str:
        """The reason in an error answer, for people."""
        data = self.json()
        error = data.get("error", data.get("detail")) if isinstance(data, dict) else None
        if isinstance(error, dict):
            error = error.get("message")
        return str(error or self.content[:500].decode(errors="replace") or "no message")


class PodClient:
    """Requests to pods by address (`host:port`).  Generation has no time limit: an answer may be long."""

    def __init__(self) -> None:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=True)

    async def close(self) -> None:
        """Closes all connections."""
        await self._session.close()

    async def request(
        self,
        method: str,
        address: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        limit: float | None = None,
    ) -> PodAnswer:
        """Sends one request and reads the whole answer; `limit` in seconds, None for no limit.

        Raises:
            PodUnreachableError: no connection, or it broke before the answer was complete, or the limit passed.
        """
        async with self.stream(method, address, path, body=body, query=query, headers=headers, limit=limit) as response:
            return await self.read(response, address=address)

    async def read(self, response: aiohttp.ClientResponse, *, address: str) -> PodAnswer:
        """Reads an answer to its end.

        Raises:
            PodUnreachableError: the connection broke before.
        """
        try:
            content = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as failure:
            raise PodUnreachableError(address, _describe(failure)) from failure
        return PodAnswer(address=address, status=response.status, content=content, content_type=response.content_type)

    @contextlib.asynccontextmanager
    async def stream(
        self,
        method: str,
        address: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        limit: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Sends one request and hands out the answer as it arrives.

        Raises:
            PodUnreachableError: no connection, or none of the answer arrived.
        """
        timeout = aiohttp.ClientTimeout(total=limit, sock_connect=CONNECT_SECONDS)
        try:
            response = await self._session.request(
                method, f"http://{address}{path}", json=body, params=query, headers=headers, timeout=timeout
            )
        except (aiohttp.ClientError, OSError, TimeoutError) as failure:
            raise PodUnreachableError(address, _describe(failure)) from failure
        async with response:
            yield response


def _describe(failure: BaseException) -> str:
    return f"{type(failure).__name__}: {failure}".rstrip(": ")
