"""The desk: for holders of the token only, bounded, and its closing is a message."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

from tests.support.eventually import eventually
from tlt_workloads.codec import encode
from tlt_workloads.contract import TEAM_KNOCK_ROUTE, TEAM_LINE_ROUTE, TEAM_STATE_ROUTE
from tlt_workloads.tokens import TokenFile
from tlt_workloads.trainer.progress import ShardProgress, TrainingProgress
from tlt_workloads.trainer.team.desk import LARGEST_BODY, Desk
from tlt_workloads.trainer.team.membership import Formation, Member, form
from tlt_workloads.trainer.team.peers import PeerError, fetch_state, is_there, knock, open_line
from tlt_workloads.trainer.team.state import PackedState, StateError, pack_state, unpack_state

STATE = {"model.fc.weight": torch.randn(3, 4), "exp_avg.fc.weight": torch.randn(3, 4)}
PROGRESS = TrainingProgress(trained_tokens=12, steps=3, shards={"a": ShardProgress(trained_rows={0: 5}, fresh_rows=7)})


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    (tmp_path / "token").write_text("secret")
    return TokenFile(tmp_path / "token")


@pytest.fixture
def desk(tokens: TokenFile) -> Iterator[Desk]:
    one = Desk(address="127.0.0.1", port=0, tokens=tokens)
    yield one
    one.close()


def member(number: int, url: str = "http://127.0.0.1:1") -> Member:
    name = f"{number:032x}"
    return Member(replica=name, url=url, knock=name, lineage=name, steps=0, tokens=0)


def team_of(desk: Desk, guest: Member) -> Formation:
    return form("f" * 32, member(1, desk.url), [guest])


def ask(desk: Desk, method: str, path: str, *, token: str | None = "secret", body: bytes = b"") -> tuple[int, bytes]:
    where = urlsplit(desk.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=5)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with contextlib.closing(connection):
        connection.request(method, path, body=body, headers=headers)
        with connection.getresponse() as answer:
            return answer.status, answer.read()


@pytest.mark.parametrize("token", [None, "another"])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", TEAM_KNOCK_ROUTE), ("GET", TEAM_STATE_ROUTE), ("POST", TEAM_LINE_ROUTE)]
)
def test_nobody_gets_in_without_the_token(desk: Desk, method: str, path: str, token: str | None) -> None:
    desk.hand_out(team_of(desk, member(2)), pack_state(PROGRESS, STATE))
    assert ask(desk, method, f"{path}?formation={'f' * 32}", token=token)[0] == 401


def test_what_is_not_a_member_is_refused(desk: Desk) -> None:
    assert ask(desk, "POST", TEAM_KNOCK_ROUTE, body=b"{}")[0] == 422
    assert ask(desk, "POST", TEAM_KNOCK_ROUTE, body=b" " * (LARGEST_BODY + 1))[0] == 413
    spoofed = encode(member(2)) | {"url": "file:///etc/passwd"}
    assert ask(desk, "POST", TEAM_KNOCK_ROUTE, body=json.dumps(spoofed).encode())[0] == 422
    assert ask(desk, "GET", "/tlt/v1/elsewhere")[0] == 404
    assert desk.present() == []


def test_who_knocks_is_told_of_its_formation_and_of_no_other(desk: Desk, tokens: TokenFile) -> None:
    guest = member(2)
    assert knock(desk.url, guest, tokens) is None
    assert desk.present() == [guest]
    formation = team_of(desk, guest)
    desk.publish(formation)
    assert desk.present() == [], "it has its answer"
    assert knock(desk.url, guest, tokens) == formation
    again = replace(guest, knock="9" * 32)
    assert knock(desk.url, again, tokens) is None, "that was about an earlier attempt"


def test_a_state_arrives_as_it_was_bit_for_bit(desk: Desk, tokens: TokenFile) -> None:
    formation = team_of(desk, member(2))
    assert fetch_state(desk.url, formation, tokens, like=STATE) is None
    desk.hand_out(formation, pack_state(PROGRESS, STATE))
    found = fetch_state(desk.url, formation, tokens, like=STATE)
    assert found is not None
    progress, tensors = found
    assert progress == PROGRESS
    assert tensors.keys() == STATE.keys()
    assert all(torch.equal(tensors[name], STATE[name]) for name in STATE)
    desk.withdraw()
    assert fetch_state(desk.url, formation, tokens, like=STATE) is None


def test_a_state_that_was_changed_on_the_way_is_refused(desk: Desk, tokens: TokenFile) -> None:
    formation = team_of(desk, member(2))
    *head, body = pack_state(PROGRESS, STATE).parts
    desk.hand_out(formation, PackedState((*head, body[:-1] + bytes([body[-1] ^ 1]))))
    with pytest.raises(PeerError, match="digest"):
        fetch_state(desk.url, formation, tokens, like=STATE)


def test_a_state_that_is_not_this_drafters_is_refused() -> None:
    data = b"".join(pack_state(PROGRESS, STATE).parts)
    for like in (
        {"model.fc.weight": torch.zeros(4, 3)},
        {"model.fc.weight": STATE["model.fc.weight"], "model.norm.weight": torch.zeros(3)},
        {"model.other": torch.zeros(3, 4)},
    ):
        with pytest.raises(StateError):
            unpack_state(reader(data), size=len(data), like=like)
    with pytest.raises(StateError, match="more than"):
        unpack_state(reader(data), size=1 << 40, like=STATE)
    huge = (1 << 60).to_bytes(8, "big") + data[8:]
    with pytest.raises(StateError, match="head"):
        unpack_state(reader(huge), size=len(data), like=STATE)


def test_a_line_carries_bytes_one_way(desk: Desk, tokens: TokenFile) -> None:
    formation = team_of(desk, member(2))
    sending = open_line(desk.url, formation, tokens)
    receiving = desk.line(formation, patience=5.0)
    assert receiving is not None
    sending.sendall(b"here")
    assert receiving.recv(4) == b"here"
    sending.close()
    assert receiving.recv(4) == b""
    receiving.close()


def test_a_closed_desk_refuses_so_that_others_know(desk: Desk, tokens: TokenFile) -> None:
    assert is_there(desk.url) is True
    desk.close()
    eventually(lambda: is_there(desk.url) is False, reason="a refusal")
    with pytest.raises(PeerError):
        knock(desk.url, member(2), tokens)


def reader(data: bytes):  # type: ignore[no-untyped-def]
    position = 0

    def read(count: int) -> bytes:
        nonlocal position
        position += count
        return data[position - count : position]

    return read
