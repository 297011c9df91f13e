"""Who may use the control routes: callers that know the job's token.

The token is a mounted Secret, which Kubernetes replaces in place; it is read again whenever the file changes.
Without a readable token nobody gets in.
"""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from tlt_workloads.contract import TOKEN_FILE_DEFAULT, TOKEN_FILE_VARIABLE


class UnauthorizedError(Exception):
    """The caller may not use the route; the message says why."""


class TokenFile:
    """The token behind a path."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._token = b""

    @classmethod
    def from_environment(cls) -> TokenFile:
        """The file that `TLT_TOKEN_FILE` names."""
        return cls(Path(os.environ.get(TOKEN_FILE_VARIABLE) or TOKEN_FILE_DEFAULT))

    def check(self, authorization: str | None) -> None:
        """Lets a caller with `Authorization: Bearer <token>` pass.

        Raises:
            UnauthorizedError: no header, another token, or no token to compare with.
        """
        expected = self._read()
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise UnauthorizedError("send Authorization: Bearer <token of the job>")
        if not hmac.compare_digest(given.strip().encode(), expected):
            raise UnauthorizedError("the token is not this job's")

    def _read(self) -> bytes:
        try:
            status = self._path.stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            if stamp != self._stamp:
                self._token = self._path.read_bytes().strip()
                self._stamp = stamp
        except OSError as error:
            raise UnauthorizedError(f"{TOKEN_FILE_VARIABLE}: {self._path} cannot be read: {error.strerror}") from error
        if not self._token:
            raise UnauthorizedError(f"{TOKEN_FILE_VARIABLE}: {self._path} is empty")
        return self._token
