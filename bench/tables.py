"""Writes docs/performance.md from the result files, so that a table can show measured figures only.

python -m bench.tables            writes the page
python -m bench.tables --check    fails when the page is out of date
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Any

from bench.results import FOLDER, ROOT, Metrics, read, rounded
from bench.results import write as write_result

DATA = "--data"  # names a folder
PAGE = ROOT / "docs" / "performance.md"
HEAD = """# Performance

Made from `bench/results/*.json` by `python -m bench.tables`. Names that end in `_ratio` compare with a named baseline
in the same run; above 1 is better for us. An accelerator of the embedded cluster stands for one CPU core
([how](concepts.md#emulated-accelerators)).
"""


def section(result: dict[str, Any]) -> str:
    """One benchmark: the command, the machine, and a row per figure."""
    machine = result["machine"]
    hardware = f"{machine['cpu']} ({', '.join(machine['isa'])})"
    lines = [
        f"## {result['benchmark']}",
        "",
        f"`{result['command']}` at commit {result['commit']}, {result['date'][:10]}, on {hardware}, "
        f"{machine['cores']} cores, {machine['memory_gib']:g} GiB.",
        "",
        "| figure | value |",
        "|---|---:|",
        *(f"| `{name}` | {value:g} |" for name, value in result["metrics"].items()),
    ]
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page, benchmarks by name."""
    return "\n".join([HEAD, *(section(read(file.stem)) for file in sorted(FOLDER.glob("*.json")))])


def write() -> None:
    """Makes the page anew, after a result file has changed."""
    PAGE.write_text(page())


def command(name: str, arguments: Sequence[str]) -> str:
    """What repeats a result; not where this machine keeps its data, without which a benchmark makes its own."""
    kept: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == DATA:
            next(left, None)
        elif not argument.startswith(f"{DATA}="):
            kept.append(argument)
    return shlex.join(["python", "-m", f"bench.{name}", *kept])


def publish(name: str, metrics: Metrics, *, dry: bool = False, file: str | None = None) -> None:
    """Shows what `python -m bench.<name>` has measured, and unless `dry` keeps it (`file` is another name for that)
    and makes the page anew.
    """
    width = max(map(len, metrics))
    for metric, value in metrics.items():
        print(f"  {metric:<{width}} {'not measured' if value is None else rounded(value)}")
    if not dry:
        print(f"figures: {write_result(file or name, command=command(name, sys.argv[1:]), metrics=metrics)}")
        write()


def main() -> int:
    """Writes or checks the page."""
    if "--check" not in sys.argv:
        write()
        return 0
    if PAGE.exists() and PAGE.read_text() == page():
        return 0
    print("docs/performance.md is out of date; run python -m bench.tables", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
