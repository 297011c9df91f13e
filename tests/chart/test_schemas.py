"""The CRDs say what every field is for, and the examples are valid.  Rules in CEL are tried in tests/api."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.chart.conftest import ROOT

Schema = dict[str, Any]
CRDS = {
    crd["spec"]["names"]["kind"]: crd
    for crd in (yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml")))
}
EXAMPLES = [
    (path, body)
    for path in sorted((ROOT / "examples").rglob("*.yaml"))
    for body in yaml.safe_load_all(path.read_text())
    if body and str(body.get("apiVersion", "")).startswith("tlt.dev/")
]


def schema_of(kind: str) -> Schema:
    found: Schema = CRDS[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def strict(schema: Schema) -> Schema:
    """The schema with unknown fields refused, as the API server does for `kubectl apply`."""
    result = dict(schema)
    if "properties" in schema:
        result["properties"] = {name: strict(item) for name, item in schema["properties"].items()}
        result["additionalProperties"] = False
    elif schema.get("type") == "object" and not isinstance(schema.get("additionalProperties"), dict):
        result.pop("additionalProperties", None)  # metadata: the API server checks it itself
    if "items" in schema:
        result["items"] = strict(schema["items"])
    return result


def fields(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Every named field below a schema, list items included."""
    for name, item in schema.get("properties", {}).items():
        yield f"{path}.{name}", item
        yield from fields(item, f"{path}.{name}")
    if "items" in schema:
        yield from fields(schema["items"], f"{path}[]")


FIELDS = [
    (path, item) for kind in CRDS for path, item in fields(schema_of(kind), kind) if not path.endswith(".metadata")
]


@pytest.mark.parametrize(("path", "schema"), FIELDS, ids=[path for path, _ in FIELDS])
def test_each_field_is_described_and_typed(path: str, schema: Schema) -> None:
    assert re.match(r"^[A-Z\"].*\.$", schema.get("description", ""), re.DOTALL), f"{path} needs a sentence"
    assert "type" in schema or schema.get("x-kubernetes-int-or-string"), path
    assert "x-kubernetes-preserve-unknown-fields" not in schema, path


@pytest.mark.parametrize(("path", "schema"), FIELDS, ids=[path for path, _ in FIELDS])
def test_each_default_fits_its_own_field(path: str, schema: Schema) -> None:
    if "default" in schema:
        jsonschema.Draft4Validator(schema).validate(schema["default"])


def test_the_kinds_have_status_columns_and_short_names() -> None:
    columns = {
        kind: [
            column["name"]
            for column in crd["spec"]["versions"][0]["additionalPrinterColumns"]
            if "priority" not in column
        ]
        for kind, crd in CRDS.items()
    }
    assert columns["TLTJob"] == ["Phase", "Idle", "Lent", "Revision", "Accept", "Harvested", "Age"]
    assert columns["DrafterRevision"] == ["Job", "Phase", "Offline", "Live", "Loaded", "Tokens", "Age"]
    for crd in CRDS.values():
        names = crd["spec"]["names"]
        assert crd["spec"]["versions"][0]["subresources"]["status"] == {}
        assert not set(names["shortNames"]) & set(names["categories"]), "kubectl takes a category first"


@pytest.mark.parametrize("kind", CRDS)
def test_columns_point_at_fields_that_exist(kind: str) -> None:
    known = {path.removeprefix(kind) for path, _ in FIELDS if path.startswith(kind)} | {".metadata.creationTimestamp"}
    for column in CRDS[kind]["spec"]["versions"][0]["additionalPrinterColumns"]:
        assert column["jsonPath"] in known, column["name"]


def test_conditions_are_lists_of_their_type() -> None:
    for kind in CRDS:
        conditions = schema_of(kind)["properties"]["status"]["properties"]["conditions"]
        assert conditions["x-kubernetes-list-type"] == "map"
        assert conditions["x-kubernetes-list-map-keys"] == ["type"]


def test_there_are_examples() -> None:
    assert {path.parent.name for path, _ in EXAMPLES} >= {"minimal", "full"}


@pytest.mark.parametrize(("path", "body"), EXAMPLES, ids=[str(path.relative_to(ROOT)) for path, _ in EXAMPLES])
def test_examples_are_valid(path: Path, body: dict[str, Any]) -> None:
    jsonschema.Draft4Validator(strict(schema_of(body["kind"]))).validate(body)


def test_the_full_example_shows_every_field() -> None:
    (text,) = ((ROOT / "examples" / "full" / "tltjob.yaml").read_text(),)
    shown = set(re.findall(r"([A-Za-z]+):", text))
    inner = {"items", "key", "operator", "values", "value", "effect", "tolerationSeconds"}  # of Kubernetes' own types
    spec = schema_of("TLTJob")["properties"]["spec"]
    missing = {path for path, _ in fields(spec, "spec") if path.rsplit(".", 1)[1] not in shown | inner}
    assert not missing


def test_shown_defaults_are_the_real_ones() -> None:
    """The full example says that its values are the defaults unless a comment says otherwise."""
    lines = {}
    for line in (ROOT / "examples" / "full" / "tltjob.yaml").read_text().splitlines():
        if (match := re.match(r"^\s+(\w+): ([^#{\[]+?)\s*(?:#(.*))?$", line)) and "default" not in (match[3] or ""):
            lines.setdefault(match[1], []).append(yaml.safe_load(match[2]))
    checked = 0
    spec = schema_of("TLTJob")["properties"]["spec"]
    for path, schema in fields(spec, "spec"):
        name = path.rsplit(".", 1)[1]
        if schema.get("default") not in (None, {}) and ".pool." not in path and name in lines:
            assert schema["default"] in lines[name], f"{path}: default {schema['default']!r}, shown {lines[name]!r}"
            checked += 1
    assert checked > 20
