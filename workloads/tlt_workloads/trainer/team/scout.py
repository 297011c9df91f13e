"""Looks for other replicas in the background: tells the lighthouse of us, and hears of the others.

Whatever happens to the lighthouse happens to these threads only.  The training thread reads what they found and never
waits for them.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from tlt_workloads.tokens import TokenFile, TokenUnreadableError
from tlt_workloads.trainer.team.extension import coordination
from tlt_workloads.trainer.team.membership import Introduction, read_introductions, signed

HEARTBEAT_INTERVAL = 0.2  # s
QUESTION_INTERVAL = 0.3  # s between questions who else is there
QUESTION_LIMIT = 3.0  # s that the lighthouse may take for an answer
CONNECT_LIMIT = 1.0  # s
RETRY_PAUSE = 1.0  # s after the lighthouse did not answer
_log = logging.getLogger(__name__)


class Scout:
    """Two threads from `start` to `close`."""

    def __init__(
        self,
        lighthouse_url: str,
        *,
        introduce: Callable[[], Introduction],
        tokens: TokenFile,
    ) -> None:
        """Does nothing yet.

        Args:
            lighthouse_url: `http://host:port`.
            introduce: who we are now; called from a thread.
            tokens: of the job.
        """
        self._url = lighthouse_url
        self._introduce = introduce
        self._tokens = tokens
        self._closed = threading.Event()
        self._answer: tuple[float, tuple[Introduction, ...]] | None = None

    def start(self) -> None:
        """Begins to look."""
        for work, name in ((self._beat, "heartbeat"), (self._look, "scout")):
            threading.Thread(target=self._repeat, args=(work,), name=name, daemon=True).start()

    def close(self) -> None:
        """Says nothing more to anybody; what is under way is not waited for."""
        self._closed.set()

    def known(self, *, since: float) -> tuple[Introduction, ...] | None:
        """Who was there at the last answer that came after a moment of the monotonic clock; None without one."""
        answer = self._answer
        return answer[1] if answer is not None and answer[0] >= since else None

    def _repeat(self, work: Callable[[Any], None]) -> None:
        """Works with a connection, which finds a lighthouse again that was away for a while."""
        client = None
        while not self._closed.is_set():
            try:
                client = client or self._connect()
                work(client)
            except (RuntimeError, TimeoutError, OSError, TokenUnreadableError, ImportError) as error:
                _log.debug("lighthouse %s: %s", self._url, error)
                self._closed.wait(RETRY_PAUSE)

    def _connect(self) -> Any:
        where = urlsplit(self._url)
        # torchft writes a line for each of its own tries.
        socket.create_connection((where.hostname, where.port), timeout=CONNECT_LIMIT).close()
        return coordination().LighthouseClient(self._url, connect_timeout=timedelta(seconds=CONNECT_LIMIT))

    def _beat(self, client: Any) -> None:
        client.heartbeat(self._introduce().replica, timeout=timedelta(seconds=CONNECT_LIMIT))
        self._closed.wait(HEARTBEAT_INTERVAL)

    def _look(self, client: Any) -> None:
        own, tokens = self._introduce(), self._tokens.tokens()
        quorum = client.quorum(
            own.replica,
            timedelta(seconds=QUESTION_LIMIT),
            address=own.url,
            data=signed(own, tokens[0]),
        )
        found = read_introductions((member.data for member in quorum.participants if member.data), tokens)
        self._answer = time.monotonic(), found
        self._closed.wait(QUESTION_INTERVAL)
