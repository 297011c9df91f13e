"""A real Prometheus that scrapes targets and evaluates the chart's alerts, quickly."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import yaml

from devcluster.binaries import command_path
from devcluster.preflight import free_port
from devcluster.settings import node_settings

CHART = Path(__file__).parents[2] / "charts" / "tlt-operator"
INTERVAL = "500ms"  # of scrapes and evaluations


@dataclass(frozen=True, kw_only=True)
class Prometheus:
    """What a test asks the server."""

    url: str

    def value(self, expression: str) -> float | None:
        """The value of the one series that an expression yields now; None when it yields none."""
        found = self._get("query", query=expression)["result"]
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def firing(self) -> dict[str, dict[str, Any]]:
        """The alerts that fire now, by name."""
        alerts = self._get("alerts")["alerts"]
        return {alert["labels"]["alertname"]: alert for alert in alerts if alert["state"] == "firing"}

    def _get(self, route: str, **query: str) -> dict[str, Any]:
        try:
            answer = requests.get(f"{self.url}/api/v1/{route}", params=query, timeout=5)
        except requests.ConnectionError as error:
            raise AssertionError(f"Prometheus does not answer: {error}") from error
        assert answer.status_code == 200, answer.text
        data: dict[str, Any] = answer.json()["data"]
        return data


def alert_rules(rules: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The chart's alerts as a rule file, with these settings of `alerts.rules`."""
    values = {"alerts": {"prometheusRule": {"enabled": True}, "rules": rules}}
    helm = command_path(node_settings().binaries, "helm")
    command = [str(helm), "template", "tlt", str(CHART), "--kube-version", "1.34.4", "--values", "-"]
    answer = subprocess.run(
        [*command, "--show-only", "templates/alerts.yaml"],
        input=yaml.safe_dump(values),
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    found: dict[str, Any] = yaml.safe_load(answer.stdout)["spec"]
    return found


@contextmanager
def prometheus(
    folder: Path, *, target: str, rules: Mapping[str, Any], others: Mapping[str, str] | None = None
) -> Iterator[Prometheus]:
    """A server that scrapes the operator at `target` ("host:port") and keeps its data and log in `folder`.

    Args:
        others: further targets by the name of their scrape.
    """
    binary = command_path(node_settings().binaries, "prometheus")
    assert binary.exists(), f"{binary} is missing: make prometheus"
    (folder / "rules.yaml").write_text(yaml.safe_dump(dict(rules)))
    configuration = {
        "global": {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {"job_name": name, "honor_labels": True, "static_configs": [{"targets": [address]}]}
            for name, address in {"tlt-operator": target, **(others or {})}.items()
        ],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
    port = free_port()
    options = (
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([str(binary), *options], stdout=log, stderr=log)
    try:
        yield Prometheus(url=f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(timeout=30)
