"""`make test`: every tier in order of cost, with progress while it runs and one summary at the end.

Standard library only, because its first stage makes the environment that everything else needs.  Stages that do not
need each other overlap: compiling Kubernetes wants the processors while the Python packages want the network.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOGS = ROOT / "build" / "test"
PYTHON = str(ROOT / ".venv" / "bin" / "python")
SYSTEM_PYTHON = sys.executable
PROGRESS_INTERVAL = 60.0  # seconds between signs of life of a long stage


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the suite; `expected` is minutes on two cores, first run and repeat."""

    name: str
    command: tuple[str, ...]
    expected: tuple[float, float]
    after: tuple[str, ...] = ()
    tests: bool = False  # the command is pytest: its counts go into the summary


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a stage ended; `passed`, `failed` and `skipped` count tests (a stage without tests counts as one)."""

    stage: Stage
    seconds: float
    code: int | None  # None: not run, because a stage that it needs failed
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    failures: tuple[str, ...] = ()  # a line for each failed test: where it is, and the first line of why


def pytest_stage(name: str, folder: str, *, expected: tuple[float, float], after: tuple[str, ...]) -> Stage:
    """A tier: one folder of tests, run by pytest."""
    command = (PYTHON, "-m", "pytest", "-q", "--durations=5", f"--junitxml={LOGS / name}.xml", folder)
    return Stage(name=name, command=command, expected=expected, after=after, tests=True)


STAGES = (
    Stage(name="tools", command=(SYSTEM_PYTHON, "-m", "devcluster", "tools"), expected=(2, 0.1)),
    Stage(name="binaries", command=(SYSTEM_PYTHON, "-m", "devcluster", "build"), expected=(11, 0.1), after=("tools",)),
    Stage(
        name="prometheus",
        command=(SYSTEM_PYTHON, "-m", "devcluster", "build", "prometheus"),
        expected=(2, 0.1),
        after=("binaries",),
    ),
    Stage(
        name="object-store",
        command=(SYSTEM_PYTHON, "-m", "devcluster", "build", "seaweedfs"),
        expected=(6, 0.1),
        after=("prometheus",),
    ),
    Stage(name="environment", command=("make", "venv"), expected=(6, 0.1)),
    Stage(name="lint", command=("make", "lint"), expected=(1, 0.5), after=("environment",)),
    pytest_stage("unit", "tests/unit", expected=(2, 2), after=("environment",)),
    Stage(name="images", command=(SYSTEM_PYTHON, "images/build.py"), expected=(10, 0.2), after=("tools", "unit")),
    pytest_stage("chart", "tests/chart", expected=(0.5, 0.5), after=("prometheus", "environment")),
    pytest_stage("store", "tests/store", expected=(1.5, 1.5), after=("object-store", "unit", "chart")),
    pytest_stage("api", "tests/api", expected=(9, 9), after=("prometheus", "store")),
    pytest_stage("engine", "tests/engine", expected=(6, 6), after=("api", "images")),
    pytest_stage("cluster", "tests/cluster", expected=(16, 14), after=("engine",)),
    # Replicas need a core each, or one waits in vain for the other.
    pytest_stage("elastic", "tests/elastic", expected=(2.5, 2.5), after=("cluster",)),
)

# Only when asked for by name: it takes long, and what it draws is for `make test-chaos` to tell.
ON_REQUEST = (
    Stage(
        name="chaos",
        command=(PYTHON, "-m", "pytest", "-q", "-s", f"--junitxml={LOGS}/chaos.xml", "tests/chaos"),
        expected=(20, 20),
        after=("images",),
        tests=True,
    ),
)


def counts(stage: Stage, code: int) -> tuple[int, int, int]:
    """Passed, failed and skipped of a stage, from pytest's own report."""
    report = LOGS / f"{stage.name}.xml"
    if not stage.tests or not report.exists():
        return (1, 0, 0) if code == 0 else (0, 1, 0)
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    total, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    if code != 0 and failed == 0:
        failed = 1  # pytest itself broke, or it found no test
    return max(0, total - failed - skipped), failed, skipped


def first_line(text: str) -> str:
    """The first line of a message, cut to what a terminal shows."""
    return next(iter(text.splitlines()), "")[:160]


def failures(stage: Stage) -> tuple[str, ...]:
    """A line for each failed test of a stage, so that the end of the output tells what failed."""
    report = LOGS / f"{stage.name}.xml"
    if not stage.tests or not report.exists():
        return ()
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return tuple(
        f"{case.get('classname', '')}::{case.get('name', '')}  {first_line(why.get('message', ''))}"
        for case in cases
        for why in (*case.findall("failure"), *case.findall("error"))
    )


def tail(path: Path, lines: int = 40) -> str:
    """The end of a log, where the reason of a failure stands."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


class Runner:
    """Runs stages as soon as what they need has passed."""

    def __init__(self, stages: tuple[Stage, ...]) -> None:
        self.stages = stages
        self.started = time.monotonic()
        self.lock = threading.Lock()
        self.futures: dict[str, Future[Outcome]] = {}

    def say(self, text: str) -> None:
        """One line with the time since the start."""
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        with self.lock:
            print(f"[{minutes:3d}:{seconds:02d}] {text}", flush=True)

    def run(self) -> list[Outcome]:
        """Runs everything; a stage whose need failed is reported as not run."""
        names = {stage.name for stage in self.stages}
        with ThreadPoolExecutor(len(self.stages)) as pool:
            for stage in self.stages:  # in order: what a stage needs has its future already
                needs = [self.futures[name] for name in stage.after if name in names]
                self.futures[stage.name] = pool.submit(self.run_stage, stage, needs)
        return [self.futures[stage.name].result() for stage in self.stages]

    def run_stage(self, stage: Stage, needs: list[Future[Outcome]]) -> Outcome:
        """Waits for the needs, then runs one command with its output in a log."""
        broken = [
            need.result().stage.name for need in needs if need.result().code != 0 and not need.result().stage.tests
        ]
        if broken:
            self.say(f"{stage.name:<12} not run: {', '.join(broken)} failed")
            return Outcome(stage=stage, seconds=0, code=None)
        log = LOGS / f"{stage.name}.log"
        (LOGS / f"{stage.name}.xml").unlink(missing_ok=True)
        first, repeat = stage.expected
        self.say(f"{stage.name:<12} starts (expected {repeat:g} min, {first:g} the first time)")
        began = time.monotonic()
        with log.open("w") as output:
            process = subprocess.Popen(
                stage.command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(),
            )
            while True:
                try:
                    code = process.wait(PROGRESS_INTERVAL)
                    break
                except subprocess.TimeoutExpired:
                    last = tail(log, 1)[:100]
                    self.say(f"{stage.name:<12} … {(time.monotonic() - began) / 60:.0f} min  {last}")
        passed, failed, skipped = counts(stage, code)
        outcome = Outcome(
            stage=stage,
            seconds=time.monotonic() - began,
            code=code,
            passed=passed,
            failed=failed,
            skipped=skipped,
            failures=failures(stage),
        )
        self.say(f"{stage.name:<12} {'passed' if code == 0 else 'FAILED'} in {outcome.seconds:.0f} s")
        if code != 0:
            self.say(f"the end of {log.relative_to(ROOT)}:\n{tail(log)}")
        return outcome


def environment() -> dict[str, str]:
    """The caller's environment; Python output unbuffered, so that progress shows at once."""
    return {**os.environ, "PYTHONUNBUFFERED": "1"}


def summarise(outcomes: list[Outcome], seconds: float) -> int:
    """Prints the table and the closing line; returns the exit status."""
    row = "{:<12} {:<8} {:>8} {:>7} {:>7} {:>8}"
    print("\n" + row.format("stage", "result", "seconds", "passed", "failed", "skipped"))
    for outcome in outcomes:
        result = "not run" if outcome.code is None else "passed" if outcome.code == 0 else "FAILED"
        figures = (outcome.passed, outcome.failed, outcome.skipped)
        print(row.format(outcome.stage.name, result, f"{outcome.seconds:.0f}", *figures))
    for outcome in outcomes:
        for failure in outcome.failures:
            print(f"FAILED in {outcome.stage.name}: {failure}")
    missing = sum(outcome.code is None for outcome in outcomes)
    passed = sum(outcome.passed for outcome in outcomes)
    failed = sum(outcome.failed for outcome in outcomes)
    skipped = sum(outcome.skipped for outcome in outcomes)
    print(f"\n{seconds / 60:.1f} minutes; logs and reports in {LOGS.relative_to(ROOT)}/")
    print(f"{passed} passed, {failed + missing} failed, {skipped} skipped")
    return 1 if failed + missing else 0


def main() -> int:
    """Runs all stages of `make test`, or those named (with no regard to what they need)."""
    known = (*STAGES, *ON_REQUEST)
    parser = argparse.ArgumentParser(prog="python -m tests.run", description=__doc__)
    parser.add_argument("stage", nargs="*", help=f"only these stages: {', '.join(stage.name for stage in known)}")
    chosen = parser.parse_args().stage
    if unknown := set(chosen) - {stage.name for stage in known}:
        parser.error(f"no such stage: {', '.join(sorted(unknown))}")
    LOGS.mkdir(parents=True, exist_ok=True)
    runner = Runner(tuple(stage for stage in known if stage.name in chosen) if chosen else STAGES)
    return summarise(runner.run(), time.monotonic() - runner.started)


if __name__ == "__main__":
    sys.exit(main())
