"""The stages of `make demo`, in order."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bench.demo import deploy, probes, report
from bench.demo.cluster import ROOT, Cluster
from bench.demo.console import Console, StageError, run_logged
from bench.demo.follow import Follower, Run
from bench.demo.recording import Recording

DEMO, BASELINE = "demo", "baseline"
LOGS = ROOT / "build" / "demo" / "logs"
PROBES_FILE = report.FOLDER / "probes.json"
FIRST_RUN_SECONDS = 120.0  # binaries and images take a second or two when they are there
LEARNER_LIMIT_SECONDS = 1800.0
STEP_SECONDS = 80.0  # expected


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line."""

    steps: int
    baseline_steps: int  # 0: no baseline
    probes: bool
    publish: bool


def main() -> int:
    """Runs the demo, or removes it, or makes the report again; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.demo", description=__doc__)
    parser.add_argument("--down", action="store_true", help="remove what the demo started")
    parser.add_argument("--report", action="store_true", help="make the report of the last run again")
    parser.add_argument("--steps", type=int, default=6, help="RL steps of the run (default 6)")
    parser.add_argument(
        "--baseline-steps", type=int, default=3, help="RL steps of the run without speculation, 0 for none (default 3)"
    )
    parser.add_argument("--no-probes", action="store_true", help="without the measurements after the run")
    parser.add_argument("--publish", action="store_true", help="copy picture and table into docs/")
    parsed = parser.parse_args()
    if parsed.steps < 1:
        parser.error(f"--steps: {parsed.steps} is less than 1")
    if parsed.baseline_steps < 0:
        parser.error(f"--baseline-steps: {parsed.baseline_steps} is less than 0")
    options = Options(
        steps=parsed.steps,
        baseline_steps=parsed.baseline_steps,
        probes=not parsed.no_probes,
        publish=parsed.publish,
    )
    console = Console()
    try:
        if parsed.down:
            take_down(console)
        elif parsed.report:
            report_again(console, options)
        else:
            Demo(console, options).run()
    except StageError as failure:
        print(f"\nThe demo stopped: {failure.message}", file=sys.stderr)
        if failure.evidence:
            print(f"\n{failure.evidence}", file=sys.stderr)
        print(f"\nWhat to do: {failure.advice}\nLogs: {LOGS}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; `make demo` goes on from what is built, `make demo-down` removes it", file=sys.stderr)
        return 130
    return 0


class Demo:
    """One demo from nothing, or from what is there."""

    def __init__(self, console: Console, options: Options) -> None:
        self._console = console
        self._options = options
        self._embedded = is_embedded()
        self._choices = deploy.Choices.read()
        self._built_something = False

    def run(self) -> None:
        """All stages."""
        cluster = self._cluster()
        with self._console.stage("operator: helm upgrade --install", expected=25):
            deploy.check_classes(cluster, self._choices)
            deploy.install_operator(cluster, self._choices)
        runs = self._runs()
        demo = self._follow(cluster, runs[DEMO], title="GRPO with TLT")
        measured: dict[str, float | int | None] = {}
        if self._options.probes:
            with self._console.stage("probes on the same pods", expected=180):
                measured = probes.measure(console=self._console, cluster=cluster, run=runs[DEMO])
                PROBES_FILE.write_text(json.dumps(measured, indent=1))
        with self._console.stage("the first run's pods end", expected=20):
            deploy.free_devices(cluster, runs[DEMO])
        baseline = None
        if self._options.baseline_steps:
            baseline = self._follow(cluster, runs[BASELINE], title="GRPO without speculation")
            cluster.delete_namespaces(runs[BASELINE].namespace)
        minutes = (time.monotonic() - self._console.began) / 60
        measured |= {report.MINUTES[0 if self._built_something else 1]: minutes}
        report.make(
            console=self._console, demo=demo, baseline=baseline, measured=measured, publish=self._options.publish
        )
        print(cluster.kubectl("get", "tltjob,drafterrevision", "-n", runs[DEMO].namespace, "-o", "wide"))
        self._console.say(f"done in {minutes:.1f} minutes; `make demo-down` removes it")

    def _runs(self) -> dict[str, Run]:
        steps = {DEMO: self._options.steps, BASELINE: self._options.baseline_steps}
        return {name: Run(name=name, namespace=f"grpo-{name}", steps=count) for name, count in steps.items()}

    def _cluster(self) -> Cluster:
        if not self._embedded:
            cluster = Cluster.named()
            self._console.say(f"cluster: the context {cluster.context} of your kubeconfig")
            return cluster
        self._step(
            "tools", "devcluster", "tools", expected=5, from_nothing=60, advice="run it as root on Debian or Ubuntu"
        )
        began = time.monotonic()
        with ThreadPoolExecutor(2) as pool:
            builds = [
                pool.submit(
                    self._step,
                    "binaries",
                    "devcluster",
                    "build",
                    expected=5,
                    from_nothing=1200,
                    advice="see the log it names",
                ),
                pool.submit(self._images),
            ]
            for build in builds:
                build.result()
        self._built_something = time.monotonic() - began > FIRST_RUN_SECONDS
        self._step("cluster", "devcluster", "up", expected=15, advice="`make demo-down`, then `make demo`")
        images = (self._choices.operator_image, self._choices.workloads_image)
        self._step(
            "images to the node",
            "devcluster",
            "load",
            *images,
            expected=5,
            from_nothing=150,
            advice="`make images` first",
        )
        return Cluster.embedded()

    def _images(self) -> None:
        log = LOGS / "images.log"
        log.unlink(missing_ok=True)
        with self._console.stage("images", expected=5, from_nothing=900, log=log):
            run_logged(
                [sys.executable, "images/build.py", "operator", "workloads"],
                log=log,
                folder=ROOT,
                advice="the log says which step failed; `make images` tries again",
            )

    def _step(
        self, name: str, module: str, *arguments: str, expected: float, advice: str, from_nothing: float | None = None
    ) -> None:
        log = LOGS / f"{name.replace(' ', '-')}.log"
        log.unlink(missing_ok=True)
        with self._console.stage(name, expected=expected, from_nothing=from_nothing, log=log):
            run_logged([sys.executable, "-m", module, *arguments], log=log, folder=ROOT, advice=advice)

    def _follow(self, cluster: Cluster, run: Run, *, title: str) -> Recording:
        with self._console.stage(f"{title}: rollout pods", expected=90):
            deploy.apply_example(cluster, run, self._choices, steps=run.steps)
            deploy.wait_for_pods(cluster, run)
        with (
            self._console.stage(f"{title}: {run.steps} RL steps", expected=run.steps * STEP_SECONDS + 60),
            cluster.proxy() as api,
        ):
            follower = Follower(console=self._console, cluster=cluster, api=api, run=run)
            recording = follower.follow(limit=LEARNER_LIMIT_SECONDS)
        recording.save(report.FOLDER)
        return recording


def report_again(console: Console, options: Options) -> None:
    """The report of the recordings that are there."""
    demo = report.load(DEMO)
    if demo is None:
        raise StageError("there is no recording", advice="run `make demo` first")
    measured = json.loads(PROBES_FILE.read_text()) if PROBES_FILE.exists() else {}
    report.make(console=console, demo=demo, baseline=report.load(BASELINE), measured=measured, publish=options.publish)


def take_down(console: Console) -> None:
    """Removes the embedded cluster with everything in it, or the demo from the named cluster."""
    if is_embedded():
        subprocess.run([sys.executable, "-m", "devcluster", "down"], cwd=ROOT, check=True)
        return
    with console.stage("removing operator and example", expected=60):
        runs = (Run(name=name, namespace=f"grpo-{name}", steps=1) for name in (DEMO, BASELINE))
        deploy.remove(Cluster.named(), *runs)


def is_embedded() -> bool:
    """Whether the demo runs on the cluster of its own."""
    return os.environ.get("CLUSTER", "embedded") == "embedded"


if __name__ == "__main__":
    sys.exit(main())
