"""Grafana's JSON for the few kinds of panel that the dashboard has, laid out row by row.

The model is Grafana's own: https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH = 24  # columns of Grafana's grid
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Query:
    """One PromQL expression and how its series are called (`{{label}}` stands for a label)."""

    expression: str
    legend: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel; `width` in columns, `height` in grid rows, `unit` one of Grafana's unit ids."""

    title: str
    queries: Sequence[Query]
    kind: str = "timeseries"
    help: str = ""
    unit: str = "short"
    width: int = 8
    height: int = 8
    stacked: bool = False
    at_least: float | None = 0  # lower end of the axis; None lets Grafana choose
    at_most: float | None = None
    red_from: float | None = None  # a single number from which it is shown in red


@dataclass(frozen=True, kw_only=True)
class Row:
    """A heading and the panels below it, from left to right, wrapped at the grid's width."""

    title: str
    panels: Sequence[Panel] = field(default_factory=tuple)


def lay_out(rows: Sequence[Row]) -> list[Json]:
    """All panels with their places and numbers."""
    placed: list[Json] = []
    top = 0
    for row in rows:
        placed.append(_heading(row.title, number=len(placed) + 1, top=top))
        top, left, height = top + 1, 0, 0
        for panel in row.panels:
            if left + panel.width > WIDTH:
                top, left, height = top + height, 0, 0
            place = {"h": panel.height, "w": panel.width, "x": left, "y": top}
            placed.append(_panel(panel, number=len(placed) + 1, place=place))
            left, height = left + panel.width, max(height, panel.height)
        top += height
    return placed


def _heading(title: str, *, number: int, top: int) -> Json:
    place = {"h": 1, "w": WIDTH, "x": 0, "y": top}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}


def _panel(panel: Panel, *, number: int, place: Json) -> Json:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "editorMode": "code",
                "expr": query.expression,
                "legendFormat": query.legend,
                "range": panel.kind == "timeseries",
                "instant": panel.kind != "timeseries",
                "format": "table" if panel.kind == "table" else "time_series",
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def _field(panel: Panel) -> Json:
    steps: list[Json] = [{"color": "green", "value": None}]
    if panel.red_from is not None:
        steps.append({"color": "red", "value": panel.red_from})
    found: Json = {
        "unit": panel.unit,
        "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if panel.kind == "timeseries":
        found["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 60 if panel.stacked else 5,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
        if panel.at_least is not None:
            found["min"] = panel.at_least
        if panel.at_most is not None:
            found["max"] = panel.at_most
    return found


_OPTIONS: dict[str, Json] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "colorMode": "value",
        "graphMode": "none",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    },
    "table": {"showHeader": True},
}
