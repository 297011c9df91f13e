"""What is left of the demo: tables on the screen, the picture, and bench/results/demo.json."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import results, tables
from bench.demo import picture, summary
from bench.demo.cluster import ROOT
from bench.demo.console import Console
from bench.demo.recording import Recording

FOLDER = ROOT / "build" / "demo"
PICTURE = FOLDER / "timeline.png"
PUBLISHED_PICTURE = ROOT / "docs" / "images" / "demo-timeline.png"
PUBLISHED_TABLE = ROOT / "docs" / "images" / "demo-steps.md"
MINUTES = ("first_run_minutes", "rerun_minutes")


def command(arguments: Sequence[str]) -> str:
    """What repeats the run that is reported."""
    kept = [argument for argument in arguments if argument != "--report"]
    return " ".join(["python -m bench.demo", *kept]) if kept else "make demo"


def make(
    *,
    console: Console,
    demo: Recording,
    baseline: Recording | None,
    measured: Mapping[str, float | int | None],
    publish: bool,
) -> None:
    """Prints the tables, draws the picture and writes the result file.

    Args:
        measured: metrics that the recordings do not hold: probes and the demo's own minutes.
        publish: copies picture and table into docs/ as well.
    """
    steps = summary.rows(demo)
    print(f"\nWith TLT\n{summary.table(steps)}")
    metrics: dict[str, float | int | None] = {**_kept_minutes(), **summary.metrics(demo)}
    if baseline is not None and baseline.steps:
        baseline_steps = summary.rows(baseline)
        print(f"\nBaseline, no speculation\n{summary.table(baseline_steps)}")
        metrics |= summary.comparison(steps, baseline_steps)
    metrics |= measured
    print("\nIn all")
    for name, value in metrics.items():
        print(f"  {name:<36} {'not measured' if value is None else results.rounded(value)}")
    print("  An accelerator of the embedded cluster stands for one processor core; see docs/concepts.md.\n")
    picture.draw(demo, baseline, PICTURE)
    console.say(f"timeline picture: {PICTURE}")
    console.say(f"figures: {results.write('demo', command=command(sys.argv[1:]), metrics=metrics)}")
    tables.write()
    if publish:
        PUBLISHED_PICTURE.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PICTURE, PUBLISHED_PICTURE)
        PUBLISHED_TABLE.write_text(summary.markdown(steps) + "\n")
        console.say(f"published: {PUBLISHED_PICTURE}")


def load(name: str) -> Recording | None:
    """A recording of an earlier run, None when there is none."""
    path: Path = FOLDER / f"{name}.json"
    return Recording.load(path) if path.exists() else None


def _kept_minutes() -> dict[str, float | int | None]:
    """A run is either the first or a repeat; the other figure stays what it was on this kind of machine."""
    before = results.read("demo")
    same_machine = before.get("machine") == results.machine()
    return {name: before["metrics"].get(name) if same_machine else None for name in MINUTES}
