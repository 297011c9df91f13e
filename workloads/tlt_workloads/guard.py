"""Who may call a control route: one with the job's token, and one that has not just tried many others.

A refused call is cheap, but not free, and it happens in the process that serves the rollout.  So an address that sends
wrong tokens all the time is turned away before anything is read or compared.  A caller with the right token is never
limited: long polls and heartbeats must not be late.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from tlt_workloads.tokens import TokenFile, UnauthorizedError

BURST = 20  # wrong tokens that an address may send at once; a token that is being replaced costs one or two
PER_SECOND = 1.0  # wrong tokens that it may send in the long run
REMEMBERED = 1024  # addresses; the one that was refused longest ago is forgotten first


class TooManyAttemptsError(Exception):
    """An address has sent too many wrong tokens; `retry_after` is in whole seconds, as in the header of that name."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many calls without a valid token; try again in {retry_after} s")
        self.retry_after = retry_after


@dataclass
class _Bucket:
    """A token bucket (https://en.wikipedia.org/wiki/Token_bucket): what is left of the burst, as of a moment."""

    left: float
    at: float


class Guard:
    """The token of the job and the record of those who did not have it; `clock` is steady, in seconds."""

    def __init__(self, tokens: TokenFile, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens = tokens
        self._clock = clock
        self._refused: OrderedDict[str, _Bucket] = OrderedDict()

    def check(self, authorization: str | None, *, address: str) -> None:
        """Lets a caller with `Authorization: Bearer <token>` pass.

        Raises:
            TooManyAttemptsError: this address has been refused too often lately.
            UnauthorizedError: see `TokenFile.check`.
        """
        bucket = self._refilled(address)
        if bucket is not None and bucket.left < 1:
            raise TooManyAttemptsError(max(1, math.ceil((1 - bucket.left) / PER_SECOND)))
        try:
            self._tokens.check(authorization)
        except UnauthorizedError:
            self._count(address)
            raise

    def _refilled(self, address: str) -> _Bucket | None:
        bucket = self._refused.get(address)
        if bucket is not None:
            now = self._clock()
            bucket.left = min(float(BURST), bucket.left + (now - bucket.at) * PER_SECOND)
            bucket.at = now
        return bucket

    def _count(self, address: str) -> None:
        bucket = self._refused.setdefault(address, _Bucket(left=float(BURST), at=self._clock()))
        bucket.left -= 1
        self._refused.move_to_end(address)
        if len(self._refused) > REMEMBERED:
            self._refused.popitem(last=False)
