"""The page about the control routes, made from the contract's payload types and the routes' own descriptions."""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import io
import re
import tokenize
import types
import typing
from collections.abc import Iterator
from typing import Any

from tlt_workloads import contract
from tlt_workloads.codec import limits_of, wire_names

HEAD = """# Control API of a rollout pod

Made from `tlt_workloads.contract` by `python docs/reference/generate.py`. The same is served as `/openapi.json` by each
rollout pod. Every route asks for `Authorization: Bearer <token>` with the token of the job's Secret
`<job>-tlt-control`. Unknown fields are ignored, missing ones take their default. Errors are
`{"error": {"reason": CamelCase, "message": sentence}}`.

| route | body or query | answer | refusals |
|---|---|---|---|
"""
ROUTES: tuple[tuple[str, str, type[Any] | str, type[Any] | str, str], ...] = (
    ("GET", contract.STATE_ROUTE, "`seq`, `wait`", contract.RolloutState, ""),
    ("POST", contract.LEASE_ROUTE, contract.LeaseRequest, contract.LeaseView, "409"),
    ("GET", contract.LEASE_ROUTE, "`holder`, `seq`, `wait`", "`seq`, `boot`, `lease`", ""),
    ("DELETE", contract.LEASE_ROUTE, "`holder` or `revoke`", contract.RolloutState, "409"),
    ("POST", contract.DRAFTER_ROUTE, contract.DrafterLoad, contract.DrafterLoaded, "409, 422, 502"),
    ("POST", contract.SPECULATION_ROUTE, contract.SpeculationSettings, contract.RolloutState, ""),
    ("GET", contract.SPECULATION_ROUTE, "", contract.SpeculationReport, ""),
    ("POST", contract.CONFIG_ROUTE, contract.RolloutConfig, "`configDigest`, `warnings`", ""),
)
PAYLOADS = (
    *(contract.LeaseRequest, contract.LeaseView, contract.EndedLease, contract.DrafterLoad, contract.DrafterLoaded),
    *(contract.SpeculationSettings, contract.RolloutConfig, contract.CaptureSettings, contract.RolloutState),
    *(contract.CaptureCounters, contract.AcceptanceCounters, contract.Drafting, contract.SpeculationReport),
    *(contract.BucketReport, contract.ArmReport),
)
COMMON = """
Any of them may answer 400 (the message names the field), 401 (no token, or a wrong one), 413 (the body is too large),
429 (too many wrong tokens; see `Retry-After`) and 503 (the engine is not up yet). Long polls (`seq`, `wait`) answer at
the next change, or when `wait` seconds are over.
"""


def control_api_page() -> str:
    """The whole page."""
    lines = [HEAD.rstrip("\n")]
    for method, path, body, answer, refusals in ROUTES:
        lines.append(f"| `{method} {path}` | {_link(body)} | {_link(answer)} | {refusals} |")
    lines += [COMMON.rstrip("\n")]
    for kind in PAYLOADS:
        lines += ["", f"## {kind.__name__}", "", _prose(kind), "", "| field | type | default | meaning |"]
        lines += ["|---|---|---|---|", *_rows(kind)]
    lines += [
        "",
        "## Why a drafter is refused",
        "",
        "Reasons of 422 from `POST drafter`; `StoreUnavailable` comes with 502: ask again.",
        "",
    ]
    lines += ["| reason | meaning |", "|---|---|", *_members(contract.DrafterRefusal)]
    return "\n".join(lines) + "\n"


def _link(what: type[Any] | str) -> str:
    return what if isinstance(what, str) else f"[{what.__name__}](#{what.__name__.lower()})"


def _prose(kind: type[Any]) -> str:
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split())


def _rows(kind: type[Any]) -> Iterator[str]:
    hints, names, comments = typing.get_type_hints(kind), wire_names(kind), _comments(kind)
    for item in dataclasses.fields(kind):
        default = "required"
        if item.default is not dataclasses.MISSING:
            default = f"`{item.default}`"
        elif item.default_factory is not dataclasses.MISSING:
            default = ""
        meaning = "; ".join(filter(None, [comments.get(item.name, ""), _limits(item)]))
        yield f"| `{names[item.name]}` | {_type(hints[item.name])} | {default} | {_sentence(meaning)} |"


def _members(kind: type[enum.Enum]) -> Iterator[str]:
    comments = _comments(kind)
    for item in kind:
        yield f"| `{item.value}` | {_sentence(comments.get(item.name, ''))} |"


def _limits(item: dataclasses.Field[Any]) -> str:
    limits = limits_of(item)
    if limits is None:
        return ""
    words = {
        "at least {}": limits.minimum,
        "above {}": limits.exclusive_minimum,
        "at most {}": limits.maximum,
        "`{}`": limits.pattern,
    }
    found = [word.format(value) for word, value in words.items() if value is not None]
    return ", ".join([*found, *(["not empty"] if limits.min_length else [])])


def _type(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        return " or ".join("null" if item is type(None) else _type(item) for item in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if dataclasses.is_dataclass(hint):
        return _link(typing.cast(type[Any], hint)) if hint in PAYLOADS else hint.__name__
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return ", ".join(f"`{item.value}`" for item in hint)
    plain = {int: "integer", float: "number", bool: "boolean", str: "string"}
    return plain.get(hint, "map of reason to integer")


def _comments(kind: type[Any]) -> dict[str, str]:
    """The remark behind each field, from the source: there is no other place for it."""
    source = inspect.getsource(kind)
    remarks = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for statement in definition.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        if isinstance(target, ast.Name) and statement.end_lineno in remarks:
            found[target.id] = remarks[statement.end_lineno]
    return found


def _sentence(text: str) -> str:
    safe = re.sub(r"([|<>])", r"\\\1", text)
    return safe[:1].upper() + safe[1:]
