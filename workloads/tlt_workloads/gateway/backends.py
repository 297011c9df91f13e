"""The rollout pods behind the name: found by DNS, probed, brought to the policy in force, then let in."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tlt_workloads.gateway.errors import PodRefusedError, PodUnreachableError
from tlt_workloads.gateway.exchange import Exchange
from tlt_workloads.gateway.pods import PodAnswer, PodClient
from tlt_workloads.gateway.policy import Admission, Policy, PolicyLedger
from tlt_workloads.gateway.settings import GatewaySettings
from tlt_workloads.tokens import TokenFile, TokenUnreadableError, bearer

logger = logging.getLogger(__name__)


@dataclass
class Backend:
    """One pod."""

    address: str
    last_answer: float  # event loop's clock
    healthy: bool = False  # its last probe or request went well
    admitted: bool = False  # it has the policy in force
    listed: bool = True  # its name resolves to it
    trouble: str = "not probed yet"

    @property
    def serves(self) -> bool:
        """Whether it takes new work."""
        return self.healthy and self.admitted and self.listed


class Backends:
    """Follows the pods.  `refresh` is one pass; `run` passes for ever."""

    def __init__(
        self,
        *,
        settings: GatewaySettings,
        pods: PodClient,
        exchange: Exchange,
        ledger: PolicyLedger,
        tokens: TokenFile,
    ) -> None:
        self.policy_change = asyncio.Lock()  # held while a pod catches up and while an update starts
        self.last_pass = asyncio.get_running_loop().time()
        self._settings = settings
        self._pods = pods
        self._tokens = tokens
        self._exchange = exchange
        self._ledger = ledger
        self._known: dict[str, Backend] = {}
        self._hurry = asyncio.Event()

    def all(self) -> list[Backend]:
        """Every pod that is known, in a stable order."""
        return [self._known[address] for address in sorted(self._known, key=_order)]

    def healthy(self) -> list[str]:
        """Addresses of the pods that answer, admitted or not."""
        return [backend.address for backend in self.all() if backend.healthy and backend.listed]

    def suspect(self, address: str, reason: str) -> None:
        """A request to the pod failed: no new work before its next good probe, and it must show its policy again."""
        backend = self._known.get(address)
        if backend is not None and backend.healthy:
            logger.warning("rollout pod %s is out: %s", address, reason)
            backend.healthy = backend.admitted = False
            backend.trouble = reason
            self._ledger.leave(address)
            self._publish()
            self._hurry.set()

    def admit(self, addresses: Iterable[str]) -> None:
        """These pods took part in an update to its end."""
        for address in addresses:
            if address in self._known:
                self._known[address].admitted = True
        self._publish()

    async def run(self) -> None:
        """Passes until cancelled; soon again after a pod fell under suspicion."""
        while True:
            try:
                await self.refresh()
            except Exception:  # the edge of the loop: the next pass starts afresh
                logger.exception("a pass over the rollout pods failed")
            self._hurry.clear()
            try:
                async with asyncio.timeout(self._settings.refresh):
                    await self._hurry.wait()
                await asyncio.sleep(self._settings.refresh / 4)
            except TimeoutError:
                pass

    async def refresh(self) -> None:
        """One pass: names, probes, admissions."""
        now = asyncio.get_running_loop().time()
        self.last_pass = now
        addresses = await self._resolve()
        if addresses is not None:
            for address in addresses - self._known.keys():
                logger.info("rollout pod %s appeared", address)
                self._known[address] = Backend(address, last_answer=now)
            for backend in self._known.values():
                backend.listed = backend.address in addresses
        await asyncio.gather(*(self._probe(backend) for backend in self._known.values()))
        newcomers = [backend for backend in self.all() if backend.healthy and backend.listed and not backend.admitted]
        if newcomers:
            await self._let_in(newcomers)
        self._forget_the_lost()
        self._publish()

    async def _resolve(self) -> set[str] | None:
        """The addresses behind all names; None when the resolver itself has trouble."""
        loop = asyncio.get_running_loop()
        found: set[str] = set()
        for entry in self._settings.backend.split(","):
            host, _, port = entry.strip().rpartition(":")
            try:
                results = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
            except socket.gaierror as failure:
                if failure.errno == socket.EAI_AGAIN:
                    logger.warning("cannot resolve %s for now: %s", host, failure)
                    return None
                continue  # no such name: no pod is ready
            found |= {_join(str(result[4][0]), int(result[4][1])) for result in results}
        return found

    async def _probe(self, backend: Backend) -> None:
        try:
            answer = await self._pods.request("GET", backend.address, "/health", limit=self._settings.probe_timeout)
        except PodUnreachableError as failure:
            self.suspect(backend.address, failure.reason)
            backend.trouble = failure.reason
            return
        if answer.status != 200:
            self.suspect(backend.address, f"/health says {answer.status}")
            backend.trouble = f"/health says {answer.status}: {answer.message}"
            return
        backend.last_answer = asyncio.get_running_loop().time()
        backend.healthy, backend.trouble = True, ""

    async def _let_in(self, newcomers: list[Backend]) -> None:
        async with self.policy_change:
            versions = await asyncio.gather(*(self._version(backend.address) for backend in newcomers))
            self._ledger.recognise(versions)
            await asyncio.gather(*map(self._let_in_one, newcomers, versions))

    async def _let_in_one(self, backend: Backend, version: str | None) -> None:
        admission = self._ledger.admission(version)
        if admission is Admission.WAIT:
            backend.trouble = f"has policy {version}, waits for the next policy update"
            return
        if admission is Admission.REPLAY and self._ledger.policy is not None:
            try:
                await self._replay(self._ledger.policy, backend.address)
            except (PodUnreachableError, PodRefusedError) as failure:
                self.suspect(backend.address, f"did not take the policy in force: {failure}")
                return
            logger.info("rollout pod %s caught up with %s", backend.address, self._ledger.policy.version)
        backend.admitted = True
        logger.info("rollout pod %s serves", backend.address)

    async def _version(self, address: str) -> str | None:
        """The policy that a pod says it has; None when it cannot say."""
        try:
            answer = await self._request_with_token("GET", address, "/weight_info", limit=self._settings.probe_timeout)
        except PodUnreachableError:
            return None
        data = answer.json() if answer.status == 200 else None
        return data.get("weight_version") if isinstance(data, dict) else None

    async def _replay(self, policy: Policy, address: str) -> None:
        """Brings one pod to a policy that came by file."""
        steps: list[tuple[str, dict[str, Any]]] = [
            ("/start_weight_update", {}),
            ("/update_weights", {"update_info": policy.update_info}),
            ("/finish_weight_update", {"weight_version": policy.version}),
        ]
        if policy.init_info is not None:
            steps.insert(0, ("/init_weight_transfer_engine", {"init_info": policy.init_info}))
        for path, body in steps:
            answer = await self._request_with_token("POST", address, path, body=body)
            if answer.status != 200:
                raise PodRefusedError(address, path, status=answer.status, message=answer.message)

    async def _request_with_token(
        self, method: str, address: str, path: str, *, body: Any = None, limit: float | None = None
    ) -> PodAnswer:
        """Pods may protect their weights with the job's token; during a rotation there are two."""
        try:
            token = self._tokens.tokens()[0]
        except TokenUnreadableError:
            return await self._pods.request(method, address, path, body=body, limit=limit)
        answer = await self._pods.request(method, address, path, body=body, headers=bearer(token), limit=limit)
        if answer.status == 401 and (other := self._tokens.another(token)) is not None:
            answer = await self._pods.request(method, address, path, body=body, headers=bearer(other), limit=limit)
        return answer

    def _forget_the_lost(self) -> None:
        now = asyncio.get_running_loop().time()
        for backend in list(self._known.values()):
            if not backend.healthy and now - backend.last_answer > self._settings.lost_after:
                self._exchange.give_up(backend.address)
            if not backend.listed and not self._exchange.dispatcher.outstanding_at(backend.address):
                logger.info("rollout pod %s is gone", backend.address)
                del self._known[backend.address]

    def _publish(self) -> None:
        self._exchange.serve(backend.address for backend in self.all() if backend.serves)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ipaddress.ip_address(host).version == 6 else f"{host}:{port}"


def _order(address: str) -> tuple[int, int, int]:
    host, _, port = address.rpartition(":")
    ip = ipaddress.ip_address(host.strip("[]"))
    return ip.version, int(ip), int(port)
