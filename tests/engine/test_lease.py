"""State and lease of a real server."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.engine.conftest import PROMPTS
from tests.support.eventually import eventually
from tests.support.rollout_server import TOKEN, RolloutServer

ROUTES = [
    ("GET", "/tlt/v1/state"),
    ("GET", "/tlt/v1/lease"),
    ("POST", "/tlt/v1/lease"),
    ("DELETE", "/tlt/v1/lease?holder=x"),
    ("POST", "/tlt/v1/drafter"),
    ("DELETE", "/tlt/v1/drafter"),
    ("POST", "/tlt/v1/speculation"),
    ("POST", "/tlt/v1/config"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("token", [None, "guess"])
def test_no_control_route_opens_without_the_token(
    server: RolloutServer, method: str, path: str, token: str | None
) -> None:
    status, answer = server.call(method, path, {}, token=token)
    assert status == 401
    assert answer["error"]["reason"] == "Unauthorized"


def test_a_token_is_replaced_while_a_lease_is_held(server: RolloutServer) -> None:
    """Both tokens open during the overlap, only the new one after it, and the lease goes through all of it."""
    assert server.call("POST", "/tlt/v1/lease", {"holder": "trainer/1", "ttl": 60})[0] == 201
    folder = server.log.parent
    replace_token(folder, {"token": TOKEN, "token-next": "another"})
    assert [server.call("GET", "/tlt/v1/state", token=token)[0] for token in (TOKEN, "another")] == [200, 200]
    replace_token(folder, {"token": "another", "token-previous": TOKEN})
    assert [server.call("GET", "/tlt/v1/state", token=token)[0] for token in (TOKEN, "another")] == [200, 200]
    replace_token(folder, {"token": "another"})
    assert [server.call("GET", "/tlt/v1/state", token=token)[0] for token in (TOKEN, "another")] == [401, 200]
    state = server.call("GET", "/tlt/v1/lease?holder=trainer/1", token="another")[1]
    assert state["lease"]["phase"] == "Granted"
    replace_token(folder, {"token": TOKEN})
    assert server.state()["lease"]["holder"] == "trainer/1"


def replace_token(folder: Path, files: Mapping[str, str]) -> None:
    """Each file by a rename; the ones not named go."""
    for name, text in files.items():
        (folder / f".{name}").write_text(text)
        os.replace(folder / f".{name}", folder / name)
    for name in {"token", "token-next", "token-previous"} - set(files):
        (folder / name).unlink(missing_ok=True)


def test_a_body_that_does_not_fit_names_the_field(server: RolloutServer) -> None:
    status, answer = server.call("POST", "/tlt/v1/lease", {"holder": 7})
    assert status == 400
    assert "holder" in answer["error"]["message"]


def test_a_request_takes_a_lent_gpu_back(server: RolloutServer) -> None:
    status, lease = server.call("POST", "/tlt/v1/lease", {"holder": "trainer/1", "ttl": 60})
    assert (status, lease["phase"]) == (201, "Granted")
    seq = server.state()["seq"]
    answers: list[dict[str, object]] = []
    watcher = threading.Thread(
        target=lambda: answers.append(server.call("GET", f"/tlt/v1/lease?holder=trainer/1&seq={seq}&wait=30")[1])
    )
    watcher.start()
    server.generate(PROMPTS[:1], max_tokens=4)
    watcher.join(30)
    assert answers[0]["lease"]["phase"] == "Revoking"  # type: ignore[index]
    assert answers[0]["lease"]["reason"] == "Request"  # type: ignore[index]
    assert server.call("POST", "/tlt/v1/lease", {"holder": "trainer/2"})[1]["error"]["reason"] == "Held"
    status, state = server.call("DELETE", "/tlt/v1/lease?holder=trainer/1")
    assert (status, state["lease"], state["lastLease"]["reason"]) == (200, None, "Request")


def test_a_busy_pod_is_not_lent_and_the_edge_is_seen_by_a_long_poll(server: RolloutServer) -> None:
    with server.generating(PROMPTS, max_tokens=200):
        status, answer = server.call("POST", "/tlt/v1/lease", {"holder": "trainer/1"})
        assert (status, answer["error"]["reason"]) == (409, "NotIdle")
        state = server.state()
    deadline = time.monotonic() + 120
    while not state["idle"]:  # as an operator does: one open poll after the other
        assert time.monotonic() < deadline, state
        state = server.call("GET", f"/tlt/v1/state?seq={state['seq']}&wait=20")[1]
    assert (state["running"], state["waiting"]) == (0, 0)
    assert state["idleFor"] >= 0.2


def test_the_operator_can_ask_back_and_a_silent_holder_loses_the_lease(server: RolloutServer) -> None:
    server.call("POST", "/tlt/v1/lease", {"holder": "trainer/1", "ttl": 1.0})
    server.call("DELETE", "/tlt/v1/lease?revoke=Operator")
    assert server.state()["lease"]["reason"] == "Operator"
    eventually(lambda: server.state()["lease"] is None, deadline=30, reason="the lease ends")
    assert server.state()["lastLease"]["reason"] == "Operator"


def test_metrics_tell_the_same(server: RolloutServer) -> None:
    server.generate(PROMPTS[:1], max_tokens=4)
    status, page = server.call("GET", "/metrics")
    assert status == 200
    lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if line.startswith("tlt:"))
    assert float(lines["tlt:lent"]) == 0
    assert float(lines["tlt:busy_seconds_total"]) > 0
    assert float(lines["tlt:draft_length"]) == 3
