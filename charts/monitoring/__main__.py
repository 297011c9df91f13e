"""Writes the files that monitoring reads, so that none of them can say something else than its source.

python -m charts.monitoring            writes them
python -m charts.monitoring --check    fails when one is out of date
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from charts.monitoring.dashboard import dashboard
from devcluster.binaries import command_path
from devcluster.settings import node_settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "tlt-operator"
DASHBOARD = CHART / "files" / "dashboards" / "tlt-operator.json"
RULES = ROOT / "examples" / "monitoring" / "prometheus-rules.yaml"
GRAFANA = ROOT / "examples" / "monitoring" / "grafana-alerts.yaml"
NOTE = "# Made from the chart's files/alerts.yaml and its own values by `python -m charts.monitoring`.\n"


def made() -> dict[Path, str]:
    """Every file with its text."""
    rules, grafana = _alerts()
    return {
        DASHBOARD: json.dumps(dashboard(), indent=2) + "\n",
        RULES: NOTE + _text(rules["spec"]),
        GRAFANA: NOTE + _text(yaml.safe_load(grafana["data"]["tlt-operator.yaml"])),
    }


def _alerts() -> tuple[Any, Any]:
    """PrometheusRule and ConfigMap as Helm renders them with the chart's own values."""
    helm = command_path(node_settings().binaries, "helm")
    if not helm.exists():
        raise SystemExit(f"{helm} is missing: make tools")
    switches = ("--set", "alerts.prometheusRule.enabled=true,alerts.grafana.enabled=true")
    command = [str(helm), "template", "tlt", str(CHART), "--show-only", "templates/alerts.yaml", *switches]
    rendered = subprocess.run([*command, "--kube-version", "1.34.4"], check=True, capture_output=True, text=True).stdout
    objects = {item["kind"]: item for item in yaml.safe_load_all(rendered) if item}
    return objects["PrometheusRule"], objects["ConfigMap"]


def _text(content: Any) -> str:
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
    return text


class _Dumper(yaml.SafeDumper):
    """Writes expressions of several lines as such."""


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent)


def main() -> int:
    """Writes or checks all files."""
    stale = []
    for path, text in made().items():
        if "--check" not in sys.argv:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(str(path.relative_to(ROOT)))
    if stale:
        print(f"out of date: {', '.join(stale)}; run python -m charts.monitoring", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
