"""Asks the desks of other replicas."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

import torch

from tlt_workloads.codec import decode, encode
from tlt_workloads.contract import TEAM_KNOCK_ROUTE, TEAM_LINE_ROUTE, TEAM_STATE_ROUTE
from tlt_workloads.tokens import TokenFile, TokenUnreadableError, bearer
from tlt_workloads.trainer.progress import TrainingProgress
from tlt_workloads.trainer.team.desk import LARGEST_BODY
from tlt_workloads.trainer.team.membership import LARGEST_TEAM, Formation, Member
from tlt_workloads.trainer.team.state import StateError, unpack_state

ANSWER_LIMIT = 1.0  # s for a short answer
SILENCE_LIMIT = 5.0  # s without a byte of a long one
_LONGEST_HEAD = 4096  # bytes
_FAILURES = (OSError, ValueError, KeyError, TypeError, http.client.HTTPException, TokenUnreadableError)


class PeerError(Exception):
    """Another replica cannot be reached, or does not answer as one."""


def knock(url: str, member: Member, tokens: TokenFile) -> Formation | None:
    """Says that we are there; returns the formation that we belong to, once there is one.

    Raises:
        PeerError: no usable answer.
    """
    with _asked("POST", url, TEAM_KNOCK_ROUTE, tokens, body=json.dumps(encode(member)).encode()) as answer:
        if answer.status != 200:
            raise PeerError(f"{url}: {answer.status}")
        found = json.loads(answer.read(LARGEST_BODY * LARGEST_TEAM))["formation"]
        return None if found is None else decode(Formation, found)


def fetch_state(
    url: str, formation: Formation, tokens: TokenFile, *, like: Mapping[str, torch.Tensor]
) -> tuple[TrainingProgress, dict[str, torch.Tensor]] | None:
    """The state that a formation begins with; None while it is not there yet.

    Raises:
        PeerError: no usable answer.
    """
    path = f"{TEAM_STATE_ROUTE}?formation={formation.id}"
    with _asked("GET", url, path, tokens, patience=SILENCE_LIMIT) as answer:
        if answer.status == 404:
            return None
        if answer.status != 200 or answer.length is None:
            raise PeerError(f"{url}: {answer.status}")

        def read(count: int) -> bytes:
            data = answer.read(count)
            if len(data) != count:
                raise StateError("cut off")
            return data

        return unpack_state(read, size=answer.length, like=like)


def open_line(url: str, formation: Formation, tokens: TokenFile) -> socket.socket:
    """A connection on which bytes for the member at `url` can be sent.

    Raises:
        PeerError: no usable answer.
    """
    where = urlsplit(url)
    path = f"{TEAM_LINE_ROUTE}?formation={formation.id}"
    try:
        for token in tokens.tokens():
            line = socket.create_connection((where.hostname, where.port), timeout=ANSWER_LIMIT)
            status = _upgrade(line, path, token)
            if status == 101:
                return line
            line.close()
            if status != 401:
                break
    except _FAILURES as error:
        raise PeerError(f"{url}: {error}") from error
    raise PeerError(f"{url}: {status}")


def is_there(url: str) -> bool | None:
    """Whether a desk answers; None when nobody says so, be it the network or a machine that hangs or is off."""
    where = urlsplit(url)
    try:
        with socket.create_connection((where.hostname, where.port), timeout=ANSWER_LIMIT) as line:
            line.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return True if line.recv(1) else None
    except ConnectionRefusedError:
        return False
    except OSError:
        return None


@contextlib.contextmanager
def _asked(
    method: str, url: str, path: str, tokens: TokenFile, *, body: bytes | None = None, patience: float = ANSWER_LIMIT
) -> Iterator[http.client.HTTPResponse]:
    """An answer, by the other token of a rotation when the first one is refused.  All that goes wrong is PeerError."""
    where = urlsplit(url)
    try:
        for token in tokens.tokens():
            connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=patience)
            with contextlib.closing(connection):
                connection.request(method, path, body=body, headers=bearer(token))
                with connection.getresponse() as answer:
                    if answer.status != 401:
                        yield answer
                        return
    except _FAILURES as error:
        raise PeerError(f"{url}: {error}") from error
    raise PeerError(f"{url}: 401")


def _upgrade(line: socket.socket, path: str, token: str) -> int:
    """Asks for a line and reads no byte beyond the answer's head; returns the status."""
    headers = "".join(f"{name}: {value}\r\n" for name, value in bearer(token).items())
    line.sendall(f"POST {path} HTTP/1.1\r\nHost: team\r\nContent-Length: 0\r\n{headers}\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = line.recv(1)
        if not byte or len(head) > _LONGEST_HEAD:
            raise ValueError("no answer")
        head += byte
    return int(head.split(b" ", 2)[1])
