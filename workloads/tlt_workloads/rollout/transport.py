"""What a learner says about how its weights come: by file or by NCCL.

A message names its transport (`transport`: `file` or `nccl`); without that word an address means NCCL and a path means
a file, so that learners written for vLLM's own engines work unchanged.  Read twice: in the API process, which refuses
what makes no sense before the engine is touched, and in the workers.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NCCL_FIELDS = ("names", "dtype_names", "shapes")  # newer and older learners send more; vLLM 0.32 takes these
_INIT_NUMBERS = {"master_port": (1, 65535), "rank_offset": (1, 1 << 20), "world_size": (2, 1 << 20)}
_DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)


class TransportError(ValueError):
    """A message cannot be understood; the text names the field."""


class Transport(enum.StrEnum):
    """How weights come."""

    FILE = "file"
    NCCL = "nccl"


@dataclass(frozen=True, kw_only=True)
class Introduction:
    """`init_info`: how the learner will send the policy."""

    transport: Transport
    nccl: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Part:
    """`update_info`: one part of the policy's weights."""

    transport: Transport
    path: str = ""  # of the file transport: a safetensors file or a folder of them
    nccl: Mapping[str, Any] = field(default_factory=dict)


def read_introduction(message: Mapping[str, Any]) -> Introduction:
    """Reads `init_info`: `{}` or `{"transport": "file"}`, or NCCL's own fields.

    Raises:
        TransportError: names the field.
    """
    fields = dict(message)
    transport = _transport(fields.pop("transport", Transport.NCCL if "world_size" in fields else Transport.FILE))
    if transport is Transport.FILE:
        if fields:
            raise TransportError(f"init_info: {sorted(fields)} mean nothing to the file transport")
        return Introduction(transport=transport)
    if not isinstance(fields.get("master_address"), str) or not fields["master_address"]:
        raise TransportError("init_info.master_address: expected the learner's address")
    for name, (least, most) in _INIT_NUMBERS.items():
        value = fields.get(name)
        if type(value) is not int or not least <= value <= most:
            raise TransportError(f"init_info.{name}: {value!r} is not a whole number from {least} to {most}")
    return Introduction(transport=transport, nccl=fields)


def read_part(message: Mapping[str, Any]) -> Part:
    """Reads `update_info`: `{"transport": "file", "path": ...}`, or NCCL's own fields.

    Raises:
        TransportError: names the field.
    """
    transport = _transport(message.get("transport", Transport.FILE if "path" in message else Transport.NCCL))
    if transport is Transport.FILE:
        path = message.get("path")
        if not isinstance(path, str) or not path:
            raise TransportError('update_info.path: the file transport needs {"transport": "file", "path": "..."}')
        return Part(transport=transport, path=path)
    lists = {name: message.get(name) for name in NCCL_FIELDS}
    for name, value in lists.items():
        if not isinstance(value, list) or not value:
            raise TransportError(f"update_info.{name}: expected a list with one entry per tensor")
    if len({len(value) for value in lists.values() if value is not None}) > 1:
        raise TransportError(f"update_info: {', '.join(NCCL_FIELDS)} differ in length")
    _check_entries(**lists)
    return Part(transport=transport, nccl=lists)


def _check_entries(names: Any, dtype_names: Any, shapes: Any) -> None:
    if not all(isinstance(name, str) for name in names):
        raise TransportError("update_info.names: expected strings")
    for name in dtype_names:
        if name not in _DTYPES:
            raise TransportError(f"update_info.dtype_names: {name!r} is not one of {', '.join(_DTYPES)}")
    for shape in shapes:
        if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 1 << 40 for size in shape):
            raise TransportError(f"update_info.shapes: {shape!r} is not a list of sizes")


def _transport(word: object) -> Transport:
    try:
        return Transport(word)  # type: ignore[arg-type]  # whatever the learner has sent
    except ValueError:
        raise TransportError(f"transport: {word!r} is not one of {', '.join(Transport)}") from None
