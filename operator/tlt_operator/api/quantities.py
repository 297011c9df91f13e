"""Durations ("500ms", "1h30m") and sizes ("8Gi") as users write them."""

from __future__ import annotations

import re
from decimal import Decimal

from tlt_operator.errors import InvalidSpecError

_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(k|M|G|T|Ki|Mi|Gi|Ti)?")
_BYTES = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}


def parse_duration(text: object, *, field: str) -> float:
    """Seconds of a duration such as `500ms` or `1h30m`.

    Raises:
        InvalidSpecError: the text is no duration.
    """
    parts = list(_DURATION_PART.finditer(text)) if isinstance(text, str) else []
    if not parts or "".join(part.group(0) for part in parts) != text:
        raise InvalidSpecError(field, f"{text!r} is no duration; write for example 500ms, 5s, 10m or 1h30m")
    return sum(float(part.group(1)) * _SECONDS[part.group(2)] for part in parts)


def parse_size(text: object, *, field: str) -> int:
    """Bytes of a size such as `8Gi`; a plain number is bytes.

    Raises:
        InvalidSpecError: the text is no size.
    """
    found = _SIZE.fullmatch(str(text))
    if not found or isinstance(text, bool):
        raise InvalidSpecError(field, f"{text!r} is no size; write for example 512Mi or 8Gi")
    return int(Decimal(found.group(1)) * _BYTES[found.group(2) or ""])
