"""How large the body of a control call may be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tlt_workloads.contract import LEASE_ROUTE
from tlt_workloads.rollout.body_limit import LARGEST_CONTROL_BODY, LARGEST_WEIGHTS_BODY, BodyLimit, limit_of


async def call(path: str, *pieces: bytes) -> tuple[int, bytes]:
    """Status and body of the answer of an application that sends back what it got."""
    incoming = [
        {"type": "http.request", "body": piece, "more_body": index + 1 < len(pieces)}
        for index, piece in enumerate(pieces)
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return incoming.pop(0) if incoming else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    async def echo(_scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        assert (await receive())["type"] == "http.disconnect", "what comes after the body is passed on"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    await BodyLimit(echo)({"type": "http", "path": path}, receive, send)
    assert incoming == [] or sent[0]["status"] == 413
    return sent[0]["status"], sent[1]["body"]


async def test_a_body_within_the_limit_arrives_whole_however_it_was_cut() -> None:
    assert await call(LEASE_ROUTE, b'{"holder": ', b'"a"}') == (200, b'{"holder": "a"}')
    assert await call(LEASE_ROUTE, b"x" * LARGEST_CONTROL_BODY) == (200, b"x" * LARGEST_CONTROL_BODY)


@pytest.mark.parametrize("path", [LEASE_ROUTE, "/update_weights"])
async def test_a_larger_one_is_refused_before_it_has_been_read(path: str) -> None:
    limit = limit_of(path)
    assert limit is not None
    status, body = await call(path, b"x" * limit, b"x", b"never asked for")
    assert status == 413
    assert json.loads(body)["error"]["reason"] == "BodyTooLarge"
    assert str(limit) in json.loads(body)["error"]["message"]


async def test_requests_for_answers_are_none_of_its_business() -> None:
    assert limit_of("/v1/completions") is None
    large = b"x" * (LARGEST_WEIGHTS_BODY + 1)
    assert await call("/v1/completions", large) == (200, large)
