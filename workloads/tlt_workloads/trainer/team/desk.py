"""Where a replica is met by the others of its job: one port, the job's token, bounded requests.

`POST /tlt/v1/team/knock` brings a `Member` and answers with the `Formation` it belongs to, once there is one.
`GET /tlt/v1/team/state?formation=F` hands out the state that members of F heal from; 404 until it is there.
`POST /tlt/v1/team/line?formation=F` turns its connection into a line of F's ring (101), for bytes in one direction.

The desk is open while its replica can be part of a team.  That it refuses connections is how the others learn that a
replica has left or died, long before any time limit.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tlt_workloads.codec import ContractError, decode, encode
from tlt_workloads.contract import TEAM_KNOCK_ROUTE, TEAM_LINE_ROUTE, TEAM_STATE_ROUTE
from tlt_workloads.tokens import TokenFile, UnauthorizedError
from tlt_workloads.trainer.team.membership import LARGEST_TEAM, Formation, Member
from tlt_workloads.trainer.team.state import PackedState

LARGEST_BODY = 1 << 14  # bytes of a request
IDLE_LIMIT = 5.0  # s that a connection may be silent
_PIECE = 1 << 20  # bytes
PRESENT_LIMIT = 0.5  # s after its last knock that somebody still counts as being there
_log = logging.getLogger(__name__)


@dataclass
class _Book:
    """What requests and the training thread tell each other; guarded by `changed`."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    knocks: dict[str, tuple[Member, float]] = field(default_factory=dict)  # by replica
    formation: Formation | None = None
    state: tuple[str, PackedState] | None = None  # for members of this formation
    lines: dict[str, socket.socket] = field(default_factory=dict)  # by formation
    connections: set[socket.socket] = field(default_factory=set)
    handed_over: set[socket.socket] = field(default_factory=set)  # a ring owns what is behind these


class Desk:
    """Answers in threads of its own from construction to `close`."""

    def __init__(self, *, address: str, port: int, tokens: TokenFile) -> None:
        """Listens.

        Args:
            address: of this replica, as others reach it.
            port: 0 takes a free one.
            tokens: of the job.

        Raises:
            OSError: the port is taken or the address is not this machine's.
        """
        self._book = _Book()
        self._server = _Server((address, port), _handler(self._book, tokens), self._book)
        host = f"[{address}]" if ":" in address else address
        self.url = f"http://{host}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="desk", daemon=True).start()

    def present(self) -> list[Member]:
        """Those that knock now and have not been answered yet."""
        with self._book.changed:
            now, formation = time.monotonic(), self._book.formation
            answered = {member.knock for member in formation.members} if formation else set()
            return [
                member
                for member, at in self._book.knocks.values()
                if now - at < PRESENT_LIMIT and member.knock not in answered
            ]

    def publish(self, formation: Formation) -> None:
        """Answers those who knock and belong to it."""
        with self._book.changed:
            self._book.formation = formation

    def hand_out(self, formation: Formation, state: PackedState) -> None:
        """Lets members of a formation fetch a state, until the next one is handed out or it is withdrawn."""
        with self._book.changed:
            self._book.state = formation.id, state

    def withdraw(self) -> None:
        """Forgets the state."""
        with self._book.changed:
            self._book.state = None

    def line(self, formation: Formation, *, patience: float) -> socket.socket | None:
        """The connection by which the member before us will send; None when it does not come in time."""
        with self._book.changed:
            self._book.changed.wait_for(lambda: formation.id in self._book.lines, patience)
            return self._book.lines.pop(formation.id, None)

    def close(self) -> None:
        """Refuses everybody from now on and cuts off whoever is there."""
        with contextlib.suppress(OSError):  # a blocked `accept` is woken by this, and nothing is accepted after it
            self._server.socket.shutdown(socket.SHUT_RDWR)
        self._server.socket.close()
        with self._book.changed:
            for line in self._book.lines.values():
                line.close()
            self._book.lines.clear()
            self._book.state = None
            for connection in self._book.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        threading.Thread(target=self._server.shutdown, daemon=True).start()  # its loop ends within its poll


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], book: _Book) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._book = book
        super().__init__(address, handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        with self._book.changed:
            if len(self._book.connections) >= 2 * LARGEST_TEAM:
                return False
            self._book.connections.add(request)
            return True

    def shutdown_request(self, request: Any) -> None:
        with self._book.changed:
            self._book.connections.discard(request)
            if request in self._book.handed_over:
                self._book.handed_over.discard(request)
                request.detach()  # the ring has the same connection under the same number
                return
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("a request from %s broke off", client_address, exc_info=True)


def _handler(book: _Book, tokens: TokenFile) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = IDLE_LIMIT

        def do_POST(self) -> None:
            path, query = self._asked()
            if path == TEAM_KNOCK_ROUTE and self._is_allowed():
                self._knock()
            elif path == TEAM_LINE_ROUTE and self._is_allowed():
                self._line(query.get("formation", ""))

        def do_GET(self) -> None:
            path, query = self._asked()
            if path == TEAM_STATE_ROUTE and self._is_allowed():
                self._state(query.get("formation", ""))

        def _asked(self) -> tuple[str, dict[str, str]]:
            asked = urlsplit(self.path)
            if asked.path not in (TEAM_KNOCK_ROUTE, TEAM_LINE_ROUTE, TEAM_STATE_ROUTE):
                self._refuse(404, "NotFound", "no such route")
            return asked.path, {name: values[-1] for name, values in parse_qs(asked.query).items()}

        def _is_allowed(self) -> bool:
            try:
                tokens.check(self.headers.get("Authorization"))
            except UnauthorizedError as error:
                self._refuse(401, "Unauthorized", str(error))
                return False
            return True

        def _knock(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal() or int(length) > LARGEST_BODY:
                self._refuse(413, "TooLarge", f"send at most {LARGEST_BODY} bytes")
                return
            try:
                member = decode(Member, json.loads(self.rfile.read(int(length))))
            except (ValueError, ContractError) as error:
                self._refuse(422, "BadMember", str(error))
                return
            with book.changed:
                now = time.monotonic()
                book.knocks = {name: one for name, one in book.knocks.items() if now - one[1] < PRESENT_LIMIT}
                if len(book.knocks) < LARGEST_TEAM or member.replica in book.knocks:
                    book.knocks[member.replica] = member, now
                formation = book.formation
                book.changed.notify_all()
            belongs = formation is not None and any(one.knock == member.knock for one in formation.members)
            self._answer({"formation": encode(formation) if formation is not None and belongs else None})

        def _state(self, formation: str) -> None:
            with book.changed:
                found = book.state
            if found is None or found[0] != formation:
                self._refuse(404, "NotReady", "no state of that formation is there")
                return
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(found[1].size))
            self.end_headers()
            for part in found[1].parts:
                for start in range(0, len(part), _PIECE):  # the time limit is one for each piece
                    self.wfile.write(memoryview(part)[start : start + _PIECE])

        def _line(self, formation: str) -> None:
            self.send_response(101)
            self.send_header("Connection", "Upgrade")
            self.send_header("Upgrade", "tlt-line")
            self.end_headers()
            self.close_connection = True
            with book.changed:
                while len(book.lines) >= LARGEST_TEAM:
                    book.lines.pop(next(iter(book.lines))).close()
                book.handed_over.add(self.connection)
                book.lines[formation] = socket.socket(fileno=self.connection.fileno())
                book.changed.notify_all()

        def _answer(self, data: dict[str, Any], *, status: int = 200) -> None:
            body = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _refuse(self, status: int, reason: str, message: str) -> None:
            self.close_connection = True  # its body is not read
            self._answer({"error": {"reason": reason, "message": message}}, status=status)

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class's name
            """Knocks come twenty times a second."""

    return Handler
