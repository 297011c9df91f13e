"""The trainer's side of the lease: asks the rollout pod, and by asking says that it is alive."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from tlt_workloads.contract import LEASE_ROUTE, ContractError, LeaseView, decode
from tlt_workloads.tokens import TokenFile, TokenUnreadableError, bearer


class RolloutUnreachableError(Exception):
    """The rollout pod gave no usable answer."""


@dataclass(frozen=True, kw_only=True)
class LeaseAnswer:
    """One answer of the rollout pod."""

    seq: int
    boot: str
    lease: LeaseView | None


class LeaseClient:
    """Speaks to one rollout pod for one holder."""

    def __init__(self, session: aiohttp.ClientSession, *, rollout_url: str, holder: str, tokens: TokenFile) -> None:
        self._session = session
        self._url = f"{rollout_url}{LEASE_ROUTE}"
        self._holder = holder
        self._tokens = tokens

    async def poll(self, *, seq: int, wait: float, patience: float) -> LeaseAnswer:
        """Waits for news of the lease; every call is a heartbeat.

        Args:
            seq: of the last answer; another number there answers at once.
            wait: seconds after which the pod answers anyway.
            patience: seconds beyond that until the pod counts as gone.

        Raises:
            RolloutUnreachableError: no answer, or not one of this contract.
        """
        query = {"holder": self._holder, "seq": str(seq), "wait": f"{wait:g}"}
        data = await self._request("GET", query, deadline=wait + patience)
        try:
            view = data["lease"]
            lease = None if view is None else decode(LeaseView, view, path="lease")
            return LeaseAnswer(seq=int(data["seq"]), boot=str(data["boot"]), lease=lease)
        except (KeyError, TypeError, ContractError) as error:
            raise RolloutUnreachableError(f"{self._url}: unexpected answer: {error}") from error

    async def give_back(self, *, patience: float) -> None:
        """Ends the lease; nothing happens when it has ended already.

        Raises:
            RolloutUnreachableError: no answer; the lease then ends by itself for want of heartbeats.
        """
        await self._request("DELETE", {"holder": self._holder}, deadline=patience, absent_is_fine=True)

    async def _request(
        self, method: str, query: dict[str, str], *, deadline: float, absent_is_fine: bool = False
    ) -> dict[str, Any]:
        try:
            async with asyncio.timeout(deadline), self._answer(method, query) as answer:
                if absent_is_fine and answer.status in (404, 409):
                    return {}
                if answer.status >= 300:
                    raise RolloutUnreachableError(f"{method} {self._url}: {answer.status} {await answer.text()}")
                data: Any = await answer.json() if answer.content_length != 0 and answer.status != 204 else {}
                return data if isinstance(data, dict) else {}
        except (aiohttp.ClientError, TimeoutError, ValueError, TokenUnreadableError) as error:
            raise RolloutUnreachableError(f"{method} {self._url}: {error or type(error).__name__}") from error

    @contextlib.asynccontextmanager
    async def _answer(self, method: str, query: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """Sends the token; a pod that is behind or ahead in a rotation gets the other one."""
        token = self._tokens.tokens()[0]
        async with self._session.request(method, self._url, params=query, headers=bearer(token)) as answer:
            other = self._tokens.another(token) if answer.status == 401 else None
            if other is None:
                yield answer
                return
        async with self._session.request(method, self._url, params=query, headers=bearer(other)) as answer:
            yield answer
