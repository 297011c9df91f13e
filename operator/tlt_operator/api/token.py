"""The token of a job's control routes, as its Secret holds it."""

from __future__ import annotations

import base64
import binascii
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tlt_operator.api.names import FIELD_MANAGER, MANAGED_BY, ROTATE_ANNOTATION, ROTATED_AT_ANNOTATION
from tlt_operator.errors import InvalidSpecError
from tlt_workloads.contract import TOKEN_KEY, TOKEN_NEXT_KEY, TOKEN_PREVIOUS_KEY


class TokenStage(enum.StrEnum):
    """How far a rotation is; `tlt_workloads.tokens` says what pods make of each."""

    STEADY = "Steady"
    ANNOUNCED = "Announced"  # a new token is accepted, the old one is still sent
    SWITCHED = "Switched"  # the new one is sent, the old one is still accepted


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokens of a job; at most one of `following` and `previous` is set."""

    current: str  # the one that is sent
    following: str | None = None
    previous: str | None = None
    changed_at: float  # seconds since 1970 of the last step
    request: str = ""  # value of the job's annotation that was met last
    is_ours: bool = True  # the operator made the Secret

    @property
    def stage(self) -> TokenStage:
        """Where a rotation stands."""
        if self.following is not None:
            return TokenStage.ANNOUNCED
        return TokenStage.STEADY if self.previous is None else TokenStage.SWITCHED

    @property
    def known(self) -> tuple[str, ...]:
        """The token to send, then the other one that counts during a rotation."""
        return tuple(token for token in (self.current, self.following, self.previous) if token is not None)


def parse_tokens(body: Mapping[str, Any]) -> Tokens:
    """Reads the Secret.

    Raises:
        InvalidSpecError: it has no token, or one that no header can carry.
    """
    metadata = body["metadata"]
    annotations = metadata.get("annotations") or {}
    data = body.get("data") or {}
    current = _token(data, TOKEN_KEY, secret=metadata["name"])
    if current is None:
        raise InvalidSpecError(
            f"Secret {metadata['name']}", f"it has no key {TOKEN_KEY!r}; delete it, and it is made anew"
        )
    return Tokens(
        current=current,
        following=_token(data, TOKEN_NEXT_KEY, secret=metadata["name"]),
        previous=_token(data, TOKEN_PREVIOUS_KEY, secret=metadata["name"]),
        changed_at=_seconds(annotations.get(ROTATED_AT_ANNOTATION) or metadata.get("creationTimestamp")),
        request=annotations.get(ROTATE_ANNOTATION, ""),
        is_ours=(metadata.get("labels") or {}).get(MANAGED_BY) == FIELD_MANAGER,
    )


def rfc3339(seconds: float) -> str:
    """A point in time as Kubernetes writes it."""
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _token(data: Mapping[str, str], key: str, *, secret: str) -> str | None:
    try:
        token = base64.b64decode(data.get(key) or "").decode("ascii").strip()
    except (binascii.Error, UnicodeDecodeError):
        raise InvalidSpecError(f"Secret {secret}", f"key {key!r} is not plain ASCII text") from None
    if token and not token.isprintable():
        raise InvalidSpecError(f"Secret {secret}", f"key {key!r} has more than one line")
    return token or None


def _seconds(text: str | None) -> float:
    """A time that cannot be read counts as long ago: what is under way then goes on."""
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except ValueError:
        return 0.0
