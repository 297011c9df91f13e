"""Sums a vector over a team: a ring of connections, in which every number is added up in one place only.

The ring all-reduce of Patarasuk and Yuan (2009): a vector is cut into as many parts as there are members; each part
travels once around the ring while it is added up, and once more as it is.  Every member sends and receives about twice
the vector, however many there are, and all end with the same bits.

Plain connections rather than a library's process group, for one reason: a device that is wanted back must be free in
milliseconds, in the middle of a sum, and closing a connection tells all the others at once.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable
from typing import Any

import torch

LOOK = 0.01  # s between looks at the wish to stop, while nothing arrives
BUFFER_BYTES = 4 << 20
UNACKNOWLEDGED_LIMIT_MS = 3000  # that sent bytes may stay unanswered by the other machine's kernel


class RingBrokenError(Exception):
    """A member has left or cannot be reached; the vector holds nothing of use."""


class Ring:
    """One member's end: it sends to the member after it and receives from the one before."""

    def __init__(self, *, rank: int, size: int, sending: socket.socket, receiving: socket.socket) -> None:
        self._rank, self._size = rank, size
        self._sending, self._receiving = sending, receiving
        for line in (sending, receiving):
            line.setblocking(False)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_LIMIT_MS)
        sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        receiving.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)

    def sum(self, vector: torch.Tensor, *, wait: Callable[[float], None]) -> None:
        """Replaces a vector by its sum over all members; all of them call this with equally long ones.

        Args:
            vector: float32 [numbers] in the host's memory.
            wait: called with the seconds since anything moved, at least every `LOOK` seconds; raises to leave.

        Raises:
            RingBrokenError: a member is gone.
        """
        parts = list(torch.tensor_split(vector, self._size))
        room = torch.empty_like(max(parts, key=len))
        for turn in range(self._size - 1):
            given = parts[(self._rank - turn) % self._size]
            taken = parts[(self._rank - turn - 1) % self._size]
            self._move(given, room[: len(taken)], wait)
            taken += room[: len(taken)]
        for turn in range(self._size - 1):
            self._move(parts[(self._rank - turn + 1) % self._size], parts[(self._rank - turn) % self._size], wait)

    def check(self) -> None:
        """Raises RingBrokenError when the member before has closed its end."""
        try:
            if self._receiving.recv(1, socket.MSG_PEEK) == b"":
                raise RingBrokenError("the member before has left")
        except BlockingIOError:
            return
        except OSError as error:
            raise RingBrokenError(str(error)) from error

    def close(self) -> None:
        """Lets the others know at once that no more will come."""
        for line in (self._sending, self._receiving):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()

    def _move(self, given: torch.Tensor, taken: torch.Tensor, wait: Callable[[float], None]) -> None:
        """Sends one part while another one arrives."""
        out, into = _bytes(given), _bytes(taken)
        moved = time.monotonic()
        while out or into:
            wait(time.monotonic() - moved)
            try:
                readable, writable, _ = select.select(
                    [self._receiving] if into else [], [self._sending] if out else [], [], LOOK
                )
                if readable:
                    count = self._receiving.recv_into(into)
                    if count == 0:
                        raise RingBrokenError("the member before has left")
                    into = into[count:]
                if writable:
                    out = out[self._sending.send(out) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise RingBrokenError(str(error)) from error
            if readable or writable:
                moved = time.monotonic()


def _bytes(part: torch.Tensor) -> memoryview:
    numbers: Any = part.numpy()
    return memoryview(numbers).cast("B")
