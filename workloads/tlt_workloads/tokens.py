"""The job's token as a mounted Secret: who sends it, who accepts it, and how it is replaced without a restart.

A rotation has three states of the Secret, each kept until every kubelet has brought it into its pods:

1. `token` old, `token-next` new: everybody accepts both and sends the old one.
2. `token` new, `token-previous` old: everybody accepts both and sends the new one.
3. `token` new.

Two pods that are at most one state apart understand each other.  Without a readable `token` nobody gets in.
"""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from tlt_workloads.contract import (
    TOKEN_FILE_DEFAULT,
    TOKEN_FILE_VARIABLE,
    TOKEN_KEY,
    TOKEN_NEXT_KEY,
    TOKEN_PREVIOUS_KEY,
)

Stamp = tuple[tuple[int, int, int] | None, ...]


class UnauthorizedError(Exception):
    """The caller may not use the route; the message says why and never holds a token."""


class TokenUnreadableError(Exception):
    """There is no token to send or to compare with; the message names the variable and the file."""


class TokenFile:
    """The token behind a path and its neighbours, read again whenever one of them changes.

    The kubelet replaces all files of a mounted Secret at once, by a symbolic link, so each look costs three `stat`s.  A
    file mounted by `subPath` is never replaced.
    """

    def __init__(self, path: Path) -> None:
        suffixes = (key.removeprefix(TOKEN_KEY) for key in (TOKEN_KEY, TOKEN_NEXT_KEY, TOKEN_PREVIOUS_KEY))
        self._paths = tuple(path.with_name(path.name + suffix) for suffix in suffixes)
        self._stamp: Stamp | None = None
        self._tokens: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls) -> TokenFile:
        """The file that `TLT_TOKEN_FILE` names."""
        return cls(Path(os.environ.get(TOKEN_FILE_VARIABLE) or TOKEN_FILE_DEFAULT))

    def tokens(self) -> tuple[str, ...]:
        """The token to send, then the other one that counts during a rotation.

        Raises:
            TokenUnreadableError: the file is not there or empty.
        """
        path = self._paths[0]
        try:
            stamp = tuple(_stamp_of(path) for path in self._paths)
            if stamp != self._stamp:
                # What changes between the stamp and the reading is read again at the next look.
                self._tokens = (_read(path), *filter(None, map(_read_if_there, self._paths[1:])))
                self._stamp = stamp
        except OSError as error:
            raise TokenUnreadableError(f"{TOKEN_FILE_VARIABLE}: {path} cannot be read: {error.strerror}") from error
        if not self._tokens[0]:
            raise TokenUnreadableError(f"{TOKEN_FILE_VARIABLE}: {path} is empty")
        return self._tokens

    def another(self, refused: str) -> str | None:
        """What to try once after a 401; None when nothing else is known.

        Raises:
            TokenUnreadableError: as `tokens`.
        """
        return next((token for token in self.tokens() if token != refused), None)

    def check(self, authorization: str | None) -> None:
        """Lets a caller with `Authorization: Bearer <token>` pass.

        Raises:
            UnauthorizedError: no header, another token, or no token to compare with.
        """
        try:
            accepted = self.tokens()
        except TokenUnreadableError as error:
            raise UnauthorizedError(str(error)) from error
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise UnauthorizedError("send Authorization: Bearer <token of the job>")
        # All comparisons are made, so that the time does not tell which token was met.
        matches = [hmac.compare_digest(given.strip().encode(), token.encode()) for token in accepted]
        if not any(matches):
            raise UnauthorizedError("the token is not this job's")


def bearer(token: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"Authorization": f"Bearer {token}"}


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: Path) -> str:
    return path.read_text().strip()


def _read_if_there(path: Path) -> str:
    try:
        return _read(path)
    except FileNotFoundError:
        return ""
