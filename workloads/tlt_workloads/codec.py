"""Payloads to JSON and back: dataclasses with snake_case fields, camelCase on the wire.  Standard library only."""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

Payload = TypeVar("Payload")
_LIMITS = "limits"  # key in the metadata of a field


class ContractError(ValueError):
    """A payload does not fit its type; the message names the field and what was expected."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a field must keep to beyond its type; a number with limits is finite.  Named as in JSON Schema."""

    minimum: float | None = None
    exclusive_minimum: float | None = None
    maximum: float | None = None
    min_length: int | None = None
    pattern: str | None = None

    def complaint(self, value: Any) -> str | None:
        """What is wrong with a value of the right type; None when nothing is."""
        if isinstance(value, float) and not math.isfinite(value):
            return "expected a finite number"
        if self.minimum is not None and value < self.minimum:
            return f"must be at least {self.minimum:g}"
        if self.exclusive_minimum is not None and value <= self.exclusive_minimum:
            return f"must be above {self.exclusive_minimum:g}"
        if self.maximum is not None and value > self.maximum:
            return f"must be at most {self.maximum:g}"
        if self.min_length is not None and len(value) < self.min_length:
            return "must not be empty"
        if self.pattern is not None and not re.fullmatch(self.pattern, value):
            return f"must match {self.pattern}"
        return None


def limits(
    *,
    minimum: float | None = None,
    exclusive_minimum: float | None = None,
    maximum: float | None = None,
    min_length: int | None = None,
    pattern: str | None = None,
) -> Mapping[str, Limits]:
    """`Limits` as the metadata of a dataclass field."""
    return {
        _LIMITS: Limits(
            minimum=minimum,
            exclusive_minimum=exclusive_minimum,
            maximum=maximum,
            min_length=min_length,
            pattern=pattern,
        )
    }


def limits_of(item: dataclasses.Field[Any]) -> Limits | None:
    """The limits of a field, None without any."""
    found: Limits | None = item.metadata.get(_LIMITS)
    return found


def encode(payload: Any) -> dict[str, Any]:
    """Turns a payload into JSON-ready data; field names become camelCase, as everywhere in Kubernetes."""
    names = wire_names(typing.cast(Any, type(payload)))
    return {name: _encode(getattr(payload, attribute)) for attribute, name in names.items()}


def decode(kind: type[Payload], data: Any, *, path: str = "") -> Payload:
    """Builds a payload from JSON data.

    Unknown fields are ignored, so that either side may be newer; missing fields take their default.

    Raises:
        ContractError: a field is missing, has the wrong type or is beyond its limits.
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
def wire_names(kind: type[Any]) -> Mapping[str, str]:
    """The fields of a payload type, each with its name on the wire."""
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
    if isinstance(value, Mapping):
        return {str(key): _encode(item) for key, item in value.items()}
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
    if origin is Mapping and arguments[1] is not Any:
        return _mapping_reader(arguments[1])
    if dataclasses.is_dataclass(hint):
        return _payload_reader(typing.cast(type[Any], hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _choice_reader(hint)
    if isinstance(hint, type):
        return _plain_reader(hint)
    return lambda value: value


def _payload_reader(kind: type[Any]) -> _Reader:
    hints, names = typing.get_type_hints(kind), wire_names(typing.cast(Any, kind))
    bounds = {item.name: limits_of(item) for item in dataclasses.fields(kind)}
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
            readers.extend(
                (attribute, name, _limited(_reader(hints[attribute]), bounds[attribute]))
                for attribute, name in names.items()
            )
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


def _limited(reader: _Reader, limits: Limits | None) -> _Reader:
    if limits is None:
        return reader

    def read(value: Any) -> Any:
        found = reader(value)
        if found is not None and (complaint := limits.complaint(found)):
            raise _MisfitError(complaint)
        return found

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


def _mapping_reader(kind: Any) -> _Reader:
    inner = _reader(kind)

    def read(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise _MisfitError(f"expected an object, got {type(value).__name__}")
        return {str(key): inner(item) for key, item in value.items()}

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
            if kind is str and not value.isascii():
                _check_characters(value)
            return value
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return _as_float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise _MisfitError(f"expected {kind.__name__}, got {type(value).__name__}")
        return value

    return read


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise _MisfitError("expected a finite number") from None


def _check_characters(value: str) -> None:
    """JSON can spell half a character, which then fits into no answer and no log."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _MisfitError("holds half a character (a lone surrogate)") from None
