"""A reverse proxy before the API server that passes everything through, and on command does not.

It speaks plain HTTP to its clients and uses the kubeconfig's credentials for the real server.  Calls are counted by
verb and resource, so that a storm of them shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import yaml
from aiohttp import web

from tlt_operator.clients.kube import Kubernetes

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
READS = frozenset({"get", "list"})
WATCH = frozenset({"watch"})
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}
_FORWARDED = ("Accept", "Content-Type")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The server answers with an error of its own instead of doing what was asked."""

    status: int
    retry_after: int | None = None  # seconds


@dataclass(frozen=True, kw_only=True)
class Reset:
    """The connection breaks before an answer; watches that are open break off."""


@dataclass(frozen=True, kw_only=True)
class Delay:
    """The answer comes late."""

    seconds: float


@dataclass(frozen=True, kw_only=True)
class Silence:
    """Watches stay open and tell nothing, as if the other end had lost its power.  They stay so after the fault."""


Fault = Answer | Reset | Delay | Silence


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which calls a fault meets; no verbs or resources mean all of them."""

    fault: Fault
    verbs: frozenset[str] = frozenset()
    resources: frozenset[str] = frozenset()
    share: float = 1.0

    def meets(self, verb: str, resource: str) -> bool:
        return (not self.verbs or verb in self.verbs) and (not self.resources or resource in self.resources)


@dataclass(kw_only=True)
class Call:
    """One call as it arrived; `at` on the steady clock, `failed` when a fault kept it from the server."""

    at: float
    verb: str
    resource: str
    failed: bool
    status: int = 0  # of the server's answer, 0 when there was none


def parse_path(method: str, path: str, *, watch: bool) -> tuple[str, str]:
    """Verb and resource of a call in the words of RBAC, a subresource as `pods/status`."""
    parts = [part for part in path.split("/") if part]
    parts = parts[2:] if parts[:1] == ["api"] else parts[3:]
    if parts[:1] == ["namespaces"] and len(parts) > 2:
        parts = parts[2:]
    resource = "/".join([*parts[:1], *parts[2:3]])
    named = len(parts) > 1
    if method == "GET":
        return ("watch" if watch else "get" if named or not parts else "list"), resource
    if method == "DELETE":
        return ("delete" if named else "deletecollection"), resource
    return _VERBS.get(method, method.lower()), resource


@dataclass(eq=False)
class _Stream:
    """A watch that is open."""

    request: web.Request
    verb: str
    resource: str
    silent: bool = False


@dataclass
class FaultProxy:
    """`start`, then `with proxy.failing(...)` around what should be disturbed."""

    kubeconfig: Path
    seed: int = 0
    calls: list[Call] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        self._rules: list[Rule] = []
        self._random = random.Random(self.seed)
        self._streams: set[_Stream] = set()
        self._host = ""

    async def start(self) -> None:
        connection = await Kubernetes.connect(kubeconfig=str(self.kubeconfig))
        configuration = connection.configuration
        self._host = configuration.host
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
        await connection.close()
        connector = aiohttp.TCPConnector(limit=0, ssl=context)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False, read_bufsize=1 << 21)
        app = web.Application(client_max_size=16 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        for stream in self._streams:
            _break(stream.request)
        await self._runner.cleanup()
        await self._session.close()
        await asyncio.sleep(0.1)  # the last words of its TLS connections

    def write_kubeconfig(self, folder: Path) -> Path:
        """A kubeconfig whose server is this proxy."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "nobody", "user": {}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "nobody"}}],
            "current-context": "proxy",
        }
        path = folder / f"proxy-{self.port}.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    @contextlib.contextmanager
    def failing(
        self,
        fault: Fault,
        *,
        verbs: frozenset[str] = frozenset(),
        resources: frozenset[str] = frozenset(),
        share: float = 1.0,
    ) -> Iterator[Rule]:
        """Injects a fault for as long as the block lasts; open watches that it meets are hit at once."""
        rule = Rule(fault=fault, verbs=verbs, resources=resources, share=share)
        self._rules.append(rule)
        for stream in [stream for stream in self._streams if rule.meets(stream.verb, stream.resource)]:
            if isinstance(fault, Silence):
                stream.silent = True
            elif isinstance(fault, Reset):
                _break(stream.request)
        try:
            yield rule
        finally:
            self._rules.remove(rule)

    def count(
        self,
        verbs: frozenset[str] = frozenset(),
        *,
        resource: str = "",
        since: float = 0.0,
        failed: bool | None = None,
        status: int | None = None,
    ) -> int:
        """How many calls of these verbs arrived since a moment of the steady clock."""
        return sum(
            (not verbs or call.verb in verbs)
            and (not resource or call.resource == resource)
            and (failed is None or call.failed is failed)
            and (status is None or call.status == status)
            and call.at >= since
            for call in self.calls
        )

    def summary(self, since: float = 0.0) -> dict[str, int]:
        """Calls by verb and resource, the most frequent first: what a failed assertion should show."""
        counts = Counter(f"{call.verb} {call.resource}" for call in self.calls if call.at >= since)
        return dict(counts.most_common())

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        watch = request.query.get("watch") in ("true", "1")
        verb, resource = parse_path(request.method, request.path, watch=watch)
        fault = self._fault(verb, resource)
        call = Call(at=time.monotonic(), verb=verb, resource=resource, failed=isinstance(fault, Answer | Reset))
        self.calls.append(call)
        match fault:
            case Answer():
                return _refusal(fault)
            case Reset():
                _break(request)
                return web.Response()
            case Delay():
                await asyncio.sleep(fault.seconds)
        if not watch:
            answer = await self._forward(request)
            call.status = answer.status
            return answer
        return await self._follow(_Stream(request, verb, resource, silent=isinstance(fault, Silence)))

    def _fault(self, verb: str, resource: str) -> Fault | None:
        for rule in self._rules:
            if rule.meets(verb, resource) and self._random.random() < rule.share:
                return rule.fault
        return None

    def _ask(self, request: web.Request, body: bytes) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        headers = {name: request.headers[name] for name in _FORWARDED if name in request.headers}
        return self._session.request(
            request.method,
            self._host + request.raw_path,
            headers=headers,
            data=body or None,
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        async with self._ask(request, await request.read()) as answer:
            return web.Response(status=answer.status, body=await answer.read(), headers=_type_of(answer))

    async def _follow(self, stream: _Stream) -> web.StreamResponse:
        async with self._ask(stream.request, b"") as answer:
            response = web.StreamResponse(status=answer.status, headers=_type_of(answer))
            await response.prepare(stream.request)
            self._streams.add(stream)
            try:
                async for data in answer.content.iter_any():
                    if not stream.silent:
                        await response.write(data)
                if stream.silent:
                    await asyncio.Event().wait()  # not even its end is told
            except (aiohttp.ClientError, ConnectionError):
                _break(stream.request)
            finally:
                self._streams.discard(stream)
            return response


def _type_of(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return {"Content-Type": answer.headers.get("Content-Type", "application/json")}


def _break(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _refusal(fault: Answer) -> web.Response:
    reasons = {409: "Conflict", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": f"injected {fault.status}",
        "reason": reasons.get(fault.status, "Unknown"),
        "code": fault.status,
    }
    headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    return web.json_response(body, status=fault.status, headers=headers)
