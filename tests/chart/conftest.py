"""The chart as Helm renders it, without a cluster."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster.binaries import command_path
from devcluster.settings import node_settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "tlt-operator"
KUBERNETES_VERSION = "1.34.4"

Object = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RefusedError(Exception):
    """Helm did not render; `message` is what it said."""

    message: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Helm on this project's chart."""

    helm: Path

    def run(self, *arguments: str) -> str:
        """Runs helm and returns what it prints.

        Raises:
            RefusedError: helm failed.
        """
        answer = subprocess.run([str(self.helm), *arguments], capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            raise RefusedError(message=answer.stderr)
        return answer.stdout

    def render(self, values: Mapping[str, Any] | None = None, *, name: str = "tlt-operator") -> list[Object]:
        """Every object of a release in the namespace `tlt-system`."""
        where = ("--namespace", "tlt-system", "--kube-version", KUBERNETES_VERSION)
        answer = subprocess.run(
            [str(self.helm), "template", name, str(CHART), *where, "--values", "-"],
            input=yaml.safe_dump(dict(values or {})),
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode != 0:
            raise RefusedError(message=answer.stderr)
        return [item for item in yaml.safe_load_all(answer.stdout) if item]


def only(objects: list[Object], kind: str, *, ending: str = "") -> Object:
    """The one object of a kind whose name has this ending."""
    found = [item for item in objects if item["kind"] == kind and item["metadata"]["name"].endswith(ending)]
    assert len(found) == 1, f"expected one {kind} *{ending}, got {[item['metadata']['name'] for item in found]}"
    return found[0]


@pytest.fixture(scope="session")
def chart() -> Chart:
    helm = command_path(node_settings().binaries, "helm")
    assert helm.exists(), f"{helm} is missing: make tools"
    return Chart(helm=helm)


@pytest.fixture(scope="session")
def rendered(chart: Chart) -> list[Object]:
    """The release with the chart's own values."""
    return chart.render()
