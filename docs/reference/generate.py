"""Writes the reference from the CRDs and the operator's tables, so that no page can say something else than they do.

python docs/reference/generate.py            writes docs/reference/*.md
python docs/reference/generate.py --check    fails when a page is out of date
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "operator"), str(ROOT / "workloads")]  # this checkout, whatever is installed

from control_api_page import control_api_page  # noqa: E402
from metrics_page import metrics_page  # noqa: E402

from tlt_operator.api.reasons import (  # noqa: E402
    EXPLANATIONS,
    QUESTIONS,
    REVISION_EXPLANATIONS,
    REVISION_QUESTIONS,
)
from tlt_operator.plan.worker import MEANINGS, MOVES, WorkerState  # noqa: E402

KINDS = {"tltjobs.yaml": "tltjob.md", "drafterrevisions.yaml": "drafterrevision.md"}


def rows(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    """One table row per field, depth first, in the order of the schema."""
    required = set(schema.get("required", ()))
    for name, field in schema.get("properties", {}).items():
        here = f"{path}.{name}"
        kind = field.get("type", "integer or string")
        inner = field
        if kind == "array":
            inner, kind = field["items"], f"list of {field['items']['type']}"
            here += "[]"
        elif "additionalProperties" in field:
            kind = "map"
        default = "" if "default" not in field or field["default"] == {} else f"`{field['default']}`"
        if name in required:
            default = "required"
        choices = f" One of {', '.join(f'`{choice}`' for choice in field['enum'])}." if "enum" in field else ""
        text = " ".join(field.get("description", "").split()).replace("|", "\\|")
        yield f"| `{here}` | {kind} | {default} | {text}{choices} |"
        yield from rows(inner, here)


def rules(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    """What is refused, in the words that the API server uses."""
    for rule in schema.get("x-kubernetes-validations", ()):
        yield f"- {rule['message']}"
    for name, field in schema.get("properties", {}).items():
        yield from rules(field, f"{path}.{name}")
    if "items" in schema:
        yield from rules(schema["items"], path)


def page(definition: Mapping[str, Any]) -> str:
    """The whole page of one kind."""
    names, version = definition["spec"]["names"], definition["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    group = definition["spec"]["group"]
    lines = [
        f"# {names['kind']}",
        "",
        f"`apiVersion: {group}/{version['name']}`, short name `{', '.join(names.get('shortNames', ()))}`. "
        "Made from the CRD by `python docs/reference/generate.py`.",
        "",
        " ".join(schema["description"].split()),
    ]
    for part in ("spec", "status"):
        lines += ["", f"## {part}", "", "| field | type | default | meaning |", "|---|---|---|---|"]
        lines += rows(schema["properties"][part], part)
    lines += ["", "## What is refused", "", *dict.fromkeys(rules(schema, ""))]
    return "\n".join(lines) + "\n"


def worker_states() -> str:
    """States of a rollout pod, and the table of moves: once to read, once as a diagram."""
    lines = [
        "# Worker states",
        "",
        "What a rollout pod does, as the operator sees it. Made from `tlt_operator.plan.worker` by "
        "`python docs/reference/generate.py`.",
        "",
        "| state | meaning |",
        "|---|---|",
        *(f"| {state.value} | {MEANINGS[state]} |" for state in reversed(WorkerState)),
        "",
        "## Moves",
        "",
        "Every pair of answers that may follow each other. A move that is not here is counted in",
        "`tlt_unexpected_moves_total` and logged. Such a move is always a lease on a pod that was not seen idle:",
        "somebody else granted it, or a grant was under way for long. It counts as held, so the device is lent to",
        "nobody else, and it is asked back unless its holder is a trainer of the job.",
        "",
        "| from | to | when |",
        "|---|---|---|",
        *(f"| {_list(move.before)} | {_list(move.after)} | {move.cause} |" for move in MOVES),
        "",
        "## The cycle",
        "",
        "Steps of a pod that answers, without those that two answers may skip:",
        "",
        "```mermaid",
        "stateDiagram-v2",
    ]
    silent = {WorkerState.UNKNOWN, WorkerState.UNAVAILABLE}
    lines += [
        f"    {before.value} --> {after.value}: {move.cause.replace('`', '').replace(':', ',')}"
        for move in MOVES
        if not move.skips and not silent & {*move.before, *move.after}
        for before in move.before
        for after in move.after
    ]
    return "\n".join([*lines, "```"]) + "\n"


def conditions() -> str:
    """The conditions of both kinds, and every reason that each may have."""
    lines = [
        "# Conditions",
        "",
        "The conditions in the status of a TLTJob and of a [DrafterRevision](#drafterrevision), and every reason that "
        "each may have. Made from `tlt_operator.api.reasons` by `python docs/reference/generate.py`.",
    ]
    for kind, reasons in EXPLANATIONS.items():
        lines += ["", f"## {kind.value}", "", QUESTIONS[kind], "", "| reason | meaning |", "|---|---|"]
        lines += [f"| {reason.value} | {meaning} |" for reason, meaning in reasons.items()]
    lines += ["", "# DrafterRevision"]
    for fact, listed in REVISION_EXPLANATIONS.items():
        lines += ["", f"## {fact.value}", "", REVISION_QUESTIONS[fact], "", "| reason | meaning |", "|---|---|"]
        lines += [f"| {item.value} | {meaning} |" for item, meaning in listed.items()]
    return "\n".join(lines) + "\n"


def _list(states: tuple[WorkerState, ...]) -> str:
    return ", ".join(state.value for state in states)


def pages() -> Iterator[tuple[str, str]]:
    """Name and text of every page."""
    for source, name in KINDS.items():
        yield name, page(yaml.safe_load((ROOT / "crds" / source).read_text()))
    yield "metrics.md", metrics_page()
    yield "control-api.md", control_api_page()
    yield "worker-states.md", worker_states()
    yield "conditions.md", conditions()


def main() -> int:
    """Writes or checks all pages."""
    stale = []
    for name, text in pages():
        target = ROOT / "docs" / "reference" / name
        if "--check" not in sys.argv:
            target.write_text(text)
        elif not target.exists() or target.read_text() != text:
            stale.append(name)
    if stale:
        print(f"out of date: {', '.join(stale)}; run python docs/reference/generate.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
