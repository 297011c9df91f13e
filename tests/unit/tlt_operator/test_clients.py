"""Foreign errors become ours."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from tlt_operator.clients.kube import DEPLOYMENT, POD, _renamed
from tlt_operator.clients.pods import LARGEST_ANSWER, PodClient
from tlt_operator.errors import (
    BusyError,
    ConflictError,
    IncompatibleError,
    NotFoundError,
    NotServedError,
    OverloadedError,
    RefusedError,
    UnauthorizedError,
    UnreachableError,
)
from tlt_workloads.contract import DrafterLoaded


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, RefusedError),
        (401, UnauthorizedError),
        (403, UnauthorizedError),
        (404, NotFoundError),
        (409, ConflictError),
        (422, RefusedError),
        (429, OverloadedError),
        (500, UnreachableError),
        (503, OverloadedError),
    ],
)
def test_api_servers_answers(status: int, error: type[Exception]) -> None:
    found = _renamed(status, "GET /x", '{"kind": "Status", "message": "why", "details": {"name": "x"}}', {})
    assert type(found) is error
    assert str(found) == "GET /x: why"
    assert "HTTP" in str(_renamed(status, "GET /x", b"<html>", {}))


def test_kind_that_is_not_served_for_a_moment_is_no_missing_object() -> None:
    body = '{"kind": "Status", "reason": "NotFound", "message": "the server could not find the requested resource"}'
    for answer in (body, b"404 page not found\n"):
        assert type(_renamed(404, "GET /x", answer, {})) is NotServedError


def test_overloaded_server_says_how_long_to_wait() -> None:
    found = _renamed(429, "GET /x", "{}", {"Retry-After": "7"})
    assert isinstance(found, OverloadedError)
    assert found.after == 7.0


def test_paths_of_objects() -> None:
    assert POD.path("n", "p") == "/api/v1/namespaces/n/pods/p"
    assert DEPLOYMENT.path(None) == "/apis/apps/v1/deployments"
    assert POD.path("n", "p", "status") == "/api/v1/namespaces/n/pods/p/status"


class Server:
    """One route that answers as the test says."""

    def __init__(self) -> None:
        self.status, self.text = 200, "{}"
        self.authorization = ""
        self.accepted = ""
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.authorization = request.headers.get("Authorization", "")
        if self.accepted not in ("", self.authorization):
            return web.Response(status=401)
        return web.Response(status=self.status, text=self.text)


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    found = Server()
    app = web.Application()
    app.router.add_route("*", "/x", found.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}/x"
    yield found
    await runner.cleanup()


@pytest_asyncio.fixture
async def pods() -> AsyncIterator[PodClient]:
    async with aiohttp.ClientSession() as session:
        yield PodClient(session, tokens=("secret",), request_timeout=5.0)


async def test_a_pod_that_is_a_step_behind_in_a_rotation_gets_the_other_token(server: Server, pods: PodClient) -> None:
    pods.tokens = ("new", "old")
    server.accepted = "Bearer old"
    assert await pods.call("GET", server.url) == {}
    server.accepted = "Bearer another"
    with pytest.raises(UnauthorizedError):
        await pods.call("GET", server.url)


async def test_without_any_token_nothing_is_sent(server: Server, pods: PodClient) -> None:
    pods.tokens = ()
    with pytest.raises(UnauthorizedError):
        await pods.call("GET", server.url)
    assert server.authorization == ""


async def test_token_is_sent(server: Server, pods: PodClient) -> None:
    assert await pods.call("GET", server.url) == {}
    assert server.authorization == "Bearer secret"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, UnauthorizedError),
        (404, NotFoundError),
        (405, NotFoundError),
        (409, BusyError),
        (422, RefusedError),
        (502, UnreachableError),  # its store does not answer, which is no refusal
        (503, BusyError),
        (500, UnreachableError),
        (302, UnreachableError),
    ],
)
async def test_pods_answers(server: Server, pods: PodClient, status: int, error: type[Exception]) -> None:
    server.status, server.text = status, '{"error": {"reason": "NotIdle", "message": "two requests run"}}'
    with pytest.raises(error, match="two requests run") as raised:
        await pods.call("POST", server.url)
    if isinstance(raised.value, BusyError):
        assert raised.value.reason == "NotIdle"


@pytest.mark.parametrize("text", ["<html>", '{"seq": 1}', "[]", "x" * (LARGEST_ANSWER + 1)])
async def test_what_does_not_fit_the_contract(server: Server, pods: PodClient, text: str) -> None:
    server.text = text
    with pytest.raises(IncompatibleError):
        await pods.poll(DrafterLoaded, server.url, seq=0, wait=0.0)


async def test_plain_server_without_the_route(server: Server, pods: PodClient) -> None:
    server.status, server.text = 404, "Not Found"
    with pytest.raises(NotFoundError):
        await pods.call("GET", server.url)


async def test_nobody_there(pods: PodClient) -> None:
    with pytest.raises(UnreachableError):
        await pods.call("GET", "http://127.0.0.1:9/x")
