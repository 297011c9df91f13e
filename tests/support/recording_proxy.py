"""Stands between a client and the API server, passes everything on, and writes down what was asked for."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

HOP_BY_HOP = frozenset({"connection", "host", "content-length", "transfer-encoding", "content-encoding"})


@dataclass(frozen=True, order=True)
class Right:
    """What a rule of a role grants, and what a request needs; `resource` is `group/plural[/subresource]`."""

    resource: str
    verb: str


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request below `/api` or `/apis/<group>`; no namespace means the whole cluster."""

    right: Right
    namespace: str | None
    status: int


def read_request(method: str, path: str, query: str, *, patch: str, status: int) -> list[Asked]:
    """What a request needed, in the words of RBAC; nothing for one that asks for no resource.

    See https://kubernetes.io/docs/reference/access-authn-authz/authorization/#determine-the-request-verb.  Server-side
    apply that makes an object needs `create` besides `patch`.
    """
    parts = path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else ("/".join(parts[1:2]), parts[3:])
    if parts[0] not in ("api", "apis") or not rest:
        return []
    namespace = None
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    resource = "/".join([rest[0], *rest[2:]])
    named = len(rest) > 1
    verbs = {
        "GET": ["get"] if named else ["watch" if "watch=true" in query else "list"],
        "POST": ["create"],
        "PUT": ["update"],
        "PATCH": ["patch"] + (["create"] if "apply-patch" in patch and status == 201 else []),
        "DELETE": ["delete" if named else "deletecollection"],
    }[method]
    return [
        Asked(right=Right(f"{group}/{resource}".lstrip("/"), verb), namespace=namespace, status=status)
        for verb in verbs
    ]


@dataclass
class RecordingProxy:
    """`url` speaks HTTP without TLS; the caller's own token goes on to the API server."""

    server: str
    trust: ssl.SSLContext
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    _session: aiohttp.ClientSession | None = None

    def rights(self) -> set[Right]:
        """Everything that was needed so far."""
        return {asked.right for asked in self.asked}

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        assert self._session is not None
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        async with self._session.request(
            request.method,
            self.server + request.path_qs,
            data=await request.read() or None,  # aiohttp would give an empty one a content type
            headers=headers,
            ssl=self.trust,
        ) as upstream:
            self.asked += read_request(
                request.method,
                request.path,
                request.query_string,
                patch=request.headers.get("Content-Type", ""),
                status=upstream.status,
            )
            kept = {name: value for name, value in upstream.headers.items() if name.lower() not in HOP_BY_HOP}
            answer = web.StreamResponse(status=upstream.status, headers=kept)
            await answer.prepare(request)
            with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                async for chunk in upstream.content.iter_any():
                    await answer.write(chunk)
                await answer.write_eof()
            return answer


def _proxy_for(config: dict[str, Any]) -> RecordingProxy:
    cluster = config["clusters"][0]["cluster"]
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    return RecordingProxy(cluster["server"], ssl.create_default_context(cadata=authority))


@contextlib.asynccontextmanager
async def recording_proxy(kubeconfig: Path) -> AsyncIterator[RecordingProxy]:
    """A proxy in front of the kubeconfig's API server."""
    proxy = _proxy_for(yaml.safe_load(await asyncio.to_thread(kubeconfig.read_text)))
    app = web.Application(client_max_size=16 << 20)
    app.router.add_route("*", "/{path:.*}", proxy._pass_on)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=timeout, auto_decompress=False
    ) as session:
        proxy._session = session
        try:
            yield proxy
        finally:
            await runner.cleanup()
