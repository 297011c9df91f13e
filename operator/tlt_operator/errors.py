"""What may go wrong between the layers, in our own words.

Two kinds of failure cross a boundary: `TemporaryError` (the same call may work later) and `FinalError` (it will not,
until a person or another object changes something).  Clients rename foreign errors to these; only the edge of a loop
catches broadly.
"""

from __future__ import annotations


class OperatorError(Exception):
    """The root of all errors that the operator raises on purpose."""


class TemporaryError(OperatorError):
    """The call may work later."""


class UnreachableError(TemporaryError):
    """No answer: refused, timed out, or broken off."""


class NotServedError(UnreachableError):
    """The API server does not know the kind, for ever or while its definition is changed."""


class OverloadedError(TemporaryError):
    """The API server wants fewer calls (HTTP 429, 503 or 504), the next one not before `after` seconds."""

    def __init__(self, message: str, *, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class BusyError(TemporaryError):
    """A pod answered that it cannot do so now (HTTP 409, 429 or 503); `reason` is its own word for why."""

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class ConflictError(TemporaryError):
    """An object was changed or made by somebody else in between."""


class FinalError(OperatorError):
    """The call will not work until something else changes; the message says what."""


class NotFoundError(FinalError):
    """The object or route does not exist."""


class UnauthorizedError(FinalError):
    """The token or the service account was refused."""


class RefusedError(FinalError):
    """The other side understood and refused (HTTP 4xx)."""


class IncompatibleError(FinalError):
    """The answer does not fit the contract: another program or another version answered."""


class InvalidSpecError(FinalError):
    """A field of a TLTJob cannot be used; `field` is its path."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class InvalidSettingsError(FinalError):
    """An environment variable of the operator cannot be used."""
