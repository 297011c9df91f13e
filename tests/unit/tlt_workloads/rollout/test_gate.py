"""The door that generation requests pass."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tlt_workloads.rollout.gate import RequestGate


class Doorkeeper:
    def __init__(self) -> None:
        self.events: list[Any] = []

    async def admit(self) -> None:
        self.events.append("admit")

    def depart(self, *, failed: bool, aborted: bool) -> None:
        self.events.append({"failed": failed, "aborted": aborted})


def scope(path: str = "/v1/completions", method: str = "POST", root_path: str = "") -> dict[str, Any]:
    return {"type": "http", "method": method, "path": path, "root_path": root_path}


async def knock(
    application: Any, request: dict[str, Any], *, messages: list[dict[str, Any]] | None = None
) -> list[Any]:
    doorkeeper = Doorkeeper()
    incoming = iter(messages or [{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> dict[str, Any]:
        try:
            return next(incoming)
        except StopIteration:
            return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    async def seen(*arguments: Any) -> None:
        doorkeeper.events.append("engine")
        await application(*arguments)

    try:
        await RequestGate(seen, doorkeeper=lambda: doorkeeper)(request, receive, send)
    except RuntimeError:
        doorkeeper.events.append("raised")
    return doorkeeper.events


async def answer(_: Any, receive: Any, send: Any, *, status: int = 200) -> None:
    await receive()
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"{}", "more_body": False})


async def test_the_pod_hears_of_a_request_before_the_engine() -> None:
    assert await knock(answer, scope()) == ["admit", "engine", {"failed": False, "aborted": False}]


async def test_a_path_prefix_of_the_server_does_not_hide_a_request() -> None:
    assert "admit" in await knock(answer, scope("/prefix/v1/completions", root_path="/prefix"))


@pytest.mark.parametrize(
    ("path", "method"), [("/health", "GET"), ("/v1/models", "GET"), ("/metrics", "GET"), ("/resume", "POST")]
)
async def test_other_requests_do_not_count(path: str, method: str) -> None:
    assert await knock(answer, scope(path, method)) == ["engine"]


async def test_an_error_of_the_server_is_a_failure() -> None:
    async def broken(*arguments: Any) -> None:
        await answer(*arguments, status=500)

    assert (await knock(broken, scope()))[-1] == {"failed": True, "aborted": False}


async def test_a_mistake_of_the_caller_is_not() -> None:
    async def refusing(*arguments: Any) -> None:
        await answer(*arguments, status=400)

    assert (await knock(refusing, scope()))[-1] == {"failed": False, "aborted": False}


async def test_an_exception_is_a_failure_and_goes_on() -> None:
    async def raising(*_: Any) -> None:
        raise RuntimeError("engine died")

    assert await knock(raising, scope()) == ["admit", "engine", {"failed": True, "aborted": False}, "raised"]


async def test_a_caller_that_leaves_early_is_an_abort() -> None:
    async def abandoned(_: Any, receive: Any, send: Any) -> None:
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.start", "status": 500, "headers": []})

    assert (await knock(abandoned, scope()))[-1] == {"failed": False, "aborted": True}


async def test_leaving_after_the_last_byte_is_no_abort() -> None:
    async def lingering(request: Any, receive: Any, send: Any) -> None:
        await answer(request, receive, send)
        await receive()

    assert (await knock(lingering, scope()))[-1] == {"failed": False, "aborted": False}


async def test_a_cancelled_request_departs_too() -> None:
    async def waiting(*_: Any) -> None:
        await asyncio.Event().wait()

    doorkeeper = Doorkeeper()

    async def nothing(*_: Any) -> dict[str, Any]:
        return {"type": "http.request"}

    task = asyncio.ensure_future(RequestGate(waiting, doorkeeper=lambda: doorkeeper)(scope(), nothing, nothing))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(doorkeeper.events) == 2
