"""The control routes as OpenAPI tells of them: schemas made from the contract's payload types.

The routes read bodies themselves, because the contract's codec answers in the contract's words; FastAPI would know
nothing about them otherwise.  Unknown fields are allowed, as in the codec: either side may be newer.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tlt_workloads.codec import Limits, encode, limits_of, wire_names

PLAIN = {int: "integer", float: "number", bool: "boolean", str: "string"}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["reason", "message"],
            "properties": {"reason": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}
ALWAYS = {
    400: "BadRequest: the request does not fit; the message names the field",
    401: "Unauthorized: no token, or a wrong one",
    429: "TooManyAttempts: too many calls without a valid token; `Retry-After` says when to come again",
    503: "Starting: the engine is not up yet",
}
TOO_LARGE = {413: "BodyTooLarge"}
_LIMIT_NAMES = {
    "minimum": "minimum",
    "exclusive_minimum": "exclusiveMinimum",
    "maximum": "maximum",
    "min_length": "minLength",
}


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One query parameter."""

    name: str
    schema: Mapping[str, Any]
    meaning: str


def schema_of(hint: Any) -> dict[str, Any]:
    """The JSON Schema of a type: a payload, an enumeration, a list of them, or a plain value."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        return {"anyOf": [schema_of(item) for item in arguments]}
    if hint is type(None):
        return {"type": "null"}
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return {"type": "array", "items": schema_of(arguments[0])}
        return {"type": "array", "prefixItems": [schema_of(item) for item in arguments], "minItems": len(arguments)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": schema_of(arguments[1])}
    if dataclasses.is_dataclass(hint):
        return _payload(typing.cast(type[Any], hint))
    if issubclass(hint, enum.Enum):
        return {"type": "string", "enum": [item.value for item in hint]}
    return {"type": PLAIN[hint]}


def documented(
    *,
    answer: Any,
    body: type[Any] | None = None,
    query: tuple[Parameter, ...] = (),
    status: int = 200,
    refusals: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """What FastAPI is told of a route that reads its body itself; keyword arguments of the route's decorator.

    Args:
        answer: the type of a good answer, or a schema.
        body: the type of the request's body.
        query: the parameters in the URL.
        status: of a good answer.
        refusals: status and meaning of answers that only this route gives.
    """
    told = {**ALWAYS, **(TOO_LARGE if body is not None else {}), **(refusals or {})}
    extra: dict[str, Any] = {
        "responses": {
            str(status): {"content": _json(answer if isinstance(answer, dict) else schema_of(answer))},
            **{str(code): {"description": meaning, "content": _json(ERROR)} for code, meaning in told.items()},
        }
    }
    if query:
        extra["parameters"] = [
            {"name": item.name, "in": "query", "schema": dict(item.schema), "description": item.meaning}
            for item in query
        ]
    if body is not None:
        extra["requestBody"] = {"required": True, "content": _json(schema_of(body))}
    return {"openapi_extra": extra, "status_code": status}


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _payload(kind: type[Any]) -> dict[str, Any]:
    hints, names = typing.get_type_hints(kind), wire_names(typing.cast(Any, kind))
    properties, required = {}, []
    for item in dataclasses.fields(kind):
        name = names[item.name]
        properties[name] = {**schema_of(hints[item.name]), **_limits(limits_of(item))}
        if item.default is not dataclasses.MISSING:
            properties[name]["default"] = _plain(item.default)
        elif item.default_factory is dataclasses.MISSING:
            required.append(name)
    return {
        "type": "object",
        "title": kind.__name__,
        "description": inspect.cleandoc(kind.__doc__ or ""),
        "properties": properties,
        **({"required": required} if required else {}),
    }


def _limits(limits: Limits | None) -> dict[str, Any]:
    if limits is None:
        return {}
    found = {word: getattr(limits, name) for name, word in _LIMIT_NAMES.items() if getattr(limits, name) is not None}
    if limits.pattern is not None:
        found["pattern"] = f"^{limits.pattern}$"  # JSON Schema searches, the codec matches the whole
    return found


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return encode(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, enum.Enum) else value
