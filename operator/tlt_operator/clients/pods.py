"""HTTP between the operator and the pods of a job: bearer token, JSON, the payload types of the contract."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import aiohttp

from tlt_operator.errors import (
    BusyError,
    IncompatibleError,
    NotFoundError,
    RefusedError,
    UnauthorizedError,
    UnreachableError,
)
from tlt_workloads.contract import ContractError, decode

Payload = TypeVar("Payload")

LARGEST_ANSWER = 4 << 20  # bytes; a trainer with a thousand candidates stays far below


class PodClient:
    """Calls to the pods of one job.

    `tokens` may be replaced while calls are under way: the one to send, and during a rotation the other one, which a
    pod may still want that is a step behind.
    """

    def __init__(self, session: aiohttp.ClientSession, *, tokens: tuple[str, ...], request_timeout: float) -> None:
        self._session = session
        self._timeout = request_timeout
        self.tokens = tokens

    async def poll(self, kind: type[Payload], url: str, *, seq: int, wait: float) -> Payload:
        """A long poll: the answer when it differs from `seq`, or the same one again after `wait` seconds."""
        data = await self.call(
            "GET", url, query={"seq": str(seq), "wait": f"{wait:g}"}, request_timeout=wait + self._timeout
        )
        return decode_answer(kind, data, url)

    async def call(
        self,
        method: str,
        url: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        request_timeout: float | None = None,
    ) -> Any:
        """One request; the JSON of the answer, None when it is empty.

        Raises:
            UnreachableError: no answer in time.
            BusyError: 409, 429 or 503; `reason` is the pod's word.
            NotFoundError: the route does not exist.
            UnauthorizedError: the token was refused.
            RefusedError: any other 4xx.
            IncompatibleError: the answer is no JSON.
        """
        timeout = aiohttp.ClientTimeout(total=request_timeout or self._timeout, sock_connect=self._timeout)
        status, text = 401, b""
        for token in self.tokens:
            status, text = await self._send(method, url, body=body, query=query, token=token, timeout=timeout)
            if status != 401:
                break
        return _judge(f"{method} {url}", status, text)

    async def _send(
        self,
        method: str,
        url: str,
        *,
        body: Mapping[str, Any] | None,
        query: Mapping[str, str] | None,
        token: str,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - handed to the HTTP client
    ) -> tuple[int, bytes]:
        try:
            async with self._session.request(
                method,
                url,
                json=body,
                params=query,
                headers={"Authorization": f"Bearer {token}"},
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                return response.status, await _read(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(f"{method} {url}: {error!r}") from error


def decode_answer(kind: type[Payload], data: Any, url: str) -> Payload:
    """The answer as a payload type.

    Raises:
        IncompatibleError: it does not fit.
    """
    try:
        return decode(kind, data)
    except ContractError as error:
        raise IncompatibleError(f"{url}: {error}") from error


async def _read(response: aiohttp.ClientResponse) -> bytes:
    text = bytearray()
    async for chunk in response.content.iter_any():
        text += chunk
        if len(text) > LARGEST_ANSWER:
            raise IncompatibleError(f"{response.url}: the answer is larger than {LARGEST_ANSWER} bytes")
    return bytes(text)


def _judge(call: str, status: int, text: bytes) -> Any:
    try:
        data = json.loads(text) if text.strip() else None
    except ValueError:
        data = None
        if status < 300:
            raise IncompatibleError(f"{call}: the answer is no JSON") from None
    if 200 <= status < 300:
        return data
    reason, message = _error_of(data)
    told = f"{call}: {message or f'HTTP {status}'}"
    match status:
        case 404 | 405:
            raise NotFoundError(told)
        case 401 | 403:
            raise UnauthorizedError(told)
        case 409 | 429 | 503:
            raise BusyError(told, reason=reason)
        case _ if 400 <= status < 500:
            raise RefusedError(message or told)
        case _:
            raise UnreachableError(told)


def _error_of(data: Any) -> tuple[str, str]:
    error = data.get("error") if isinstance(data, Mapping) else None
    if not isinstance(error, Mapping):
        return "", ""
    return str(error.get("reason", "")), str(error.get("message", ""))
