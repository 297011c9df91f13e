"""Payloads to JSON and back: dataclasses with snake_case fields, camelCase on the wire.  Standard library only."""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Payload = TypeVar("Payload")


class ContractError(ValueError):
    """A payload does not fit its type; the message names the field and what was expected."""


def encode(payload: Any) -> dict[str, Any]:
    """Turns a payload into JSON-ready data; field names become camelCase, as everywhere in Kubernetes."""
    names = _names(typing.cast(Any, type(payload)))
    return {name: _encode(getattr(payload, attribute)) for attribute, name in names.items()}


def decode(kind: type[Payload], data: Any, *, path: str = "") -> Payload:
    """Builds a payload from JSON data.

    Unknown fields are ignored, so that either side may be newer; missing fields take their default.

    Raises:
        ContractError: a field is missing or has the wrong type.
    """
    try:
        return typing.cast(Payload, _reader(typing.cast(Any, kind))(data))
    except _MisfitError as error:
        where = error.where.removeprefix(".") if not path else path + error.where
        raise ContractError(f"{where or kind.__name__}: {error.what}") from None


class _MisfitError(Exception):
    """A value does not fit; `where` grows from the inside out: ".field" and "[3]"."""

    def __init__(self, what: str, *, where: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where


@functools.cache
def _names(kind: type[Any]) -> Mapping[str, str]:
    return {item.name: _camel(item.name) for item in dataclasses.fields(kind)}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return encode(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [_encode(item) for item in value]
    return value


# An operator reads hundreds of states a second, and resolving type hints costs more than all else.  So the reader of
# a type is made once, and where a value stands is spelled out only when it does not fit.
_Reader = Callable[[Any], Any]


@functools.cache
def _reader(hint: Any) -> _Reader:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        inner = _reader(next(item for item in arguments if item is not type(None)))
        if type(None) not in arguments:
            return inner
        return lambda value: None if value is None else inner(value)
    if origin is tuple:
        return _tuple_reader(arguments)
    if dataclasses.is_dataclass(hint):
        return _payload_reader(typing.cast(type[Any], hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _choice_reader(hint)
    if isinstance(hint, type):
        return _plain_reader(hint)
    return lambda value: value


def _payload_reader(kind: type[Any]) -> _Reader:
    hints, names = typing.get_type_hints(kind), _names(typing.cast(Any, kind))
    # Made at first use, because a type may contain itself.
    readers: list[tuple[str, str, _Reader]] = []
    required = [
        names[item.name]
        for item in dataclasses.fields(kind)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]

    def read(data: Any) -> Any:
        if not isinstance(data, Mapping):
            raise _MisfitError(f"expected an object, got {type(data).__name__}")
        if not readers:
            readers.extend((attribute, name, _reader(hints[attribute])) for attribute, name in names.items())
        values: dict[str, Any] = {}
        name = ""
        try:
            for attribute, name, reader in readers:
                if name in data:
                    values[attribute] = reader(data[name])
        except _MisfitError as error:
            error.where = f".{name}{error.where}"
            raise
        for name in required:
            if name not in data:
                raise _MisfitError("required field is missing", where=f".{name}")
        return kind(**values)

    return read


def _tuple_reader(arguments: tuple[Any, ...]) -> _Reader:
    open_ended = arguments[-1] is Ellipsis

    def read(value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise _MisfitError(f"expected a list, got {type(value).__name__}")
        inner = arguments[:1] * len(value) if open_ended else arguments
        if len(inner) != len(value):
            raise _MisfitError(f"expected {len(inner)} items, got {len(value)}")
        index = 0
        try:
            found = []
            for index, (kind, item) in enumerate(zip(inner, value, strict=True)):  # noqa: B007 - told below
                found.append(_reader(kind)(item))
        except _MisfitError as error:
            error.where = f"[{index}]{error.where}"
            raise
        return tuple(found)

    return read


def _choice_reader(kind: type[enum.Enum]) -> _Reader:
    def read(value: Any) -> Any:
        try:
            return kind(value)
        except ValueError:
            choices = ", ".join(str(item.value) for item in kind)
            raise _MisfitError(f"{value!r} is not one of {choices}") from None

    return read


def _plain_reader(kind: type[Any]) -> _Reader:
    def read(value: Any) -> Any:
        if type(value) is kind:
            return value
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise _MisfitError(f"expected {kind.__name__}, got {type(value).__name__}")
        return value

    return read
