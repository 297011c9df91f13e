"""The operator against 10, 100 and 1,000 rollout pods on a real API server, and against a scraper that does its job.

The pods exist in the API server and answer on loopback addresses (`fleet.py`); the operator is the process that the
image runs.  Measured from outside: the time from a pod's idle edge to the operator's line about it, processor time and
memory from /proc, writes from the operator's own counter.  The peer (`scraper.py`) watches the same pods afterwards:
all of them by a regular expression, and by the standard parser as many as one core can parse; its processor time for
all of them is that for these, times their number.

python -m bench.operator_scale [--pods 10 100 1000] [--seconds 60]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import results, tables
from bench.operator_scale.fleet import PORT, address_of, name_of
from bench.operator_scale.passes import pass_seconds
from tlt_operator.clients.kube import POD, Kubernetes

ROOT = Path(__file__).resolve().parents[2]
PLANE = ("--control-plane", "--name", "bench-scale")
NAMESPACE = "fleet"
PROBES, METRICS = 18180, 19190
AT_ONCE = 16  # pods that are made at one time
PASS_ONLY = (10000,)  # numbers of pods for which only the decision is measured
PARSED = 25  # pods whose pages are parsed as a whole, each once a second
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Listener:
    """A child process whose lines are stamped as they arrive."""

    process: subprocess.Popen[str]
    lines: list[tuple[float, dict[str, Any]]] = field(default_factory=list)

    def listen(self) -> None:
        """Reads until the process ends; what is not JSON is left out."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            now = time.time()
            try:
                self.lines.append((now, json.loads(line)))
            except ValueError:
                continue

    def cpu_seconds(self) -> float:
        """Processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS

    def memory_mb(self) -> float:
        """Resident memory now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found[1]) / 1024 if found else 0.0


@contextmanager
def child(*arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[Listener]:
    """Runs a Python module and kills it at the end."""
    variables = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/operator:{ROOT}/workloads", **(environment or {})}
    with tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=complaints, text=True,
        )  # fmt: skip
        listener = Listener(process)
        thread = threading.Thread(target=listener.listen, daemon=True)
        thread.start()
        try:
            yield listener
            if process.poll() is not None:
                complaints.seek(0)
                raise RuntimeError(f"{arguments[0]} ended with {process.returncode}:\n{complaints.read()[-3000:]}")
        finally:
            process.kill()
            process.wait()
            thread.join()


def devcluster(*arguments: str) -> str:
    """One verb of the control plane."""
    answer = subprocess.run(
        [sys.executable, "-m", "devcluster", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if answer.returncode != 0:
        raise RuntimeError(f"devcluster {' '.join(arguments)}: {answer.stderr or answer.stdout}")
    return answer.stdout.strip()


async def populate(kubeconfig: str, count: int) -> None:
    """Makes a namespace with a TLTJob and its rollout pods, running and ready; the ones of before are deleted."""
    kube = await Kubernetes.connect(kubeconfig=kubeconfig, request_timeout=60)
    turn = asyncio.Semaphore(AT_ONCE)

    async def make(number: int) -> None:
        async with turn:
            name, address = name_of(number), address_of(number)
            if await kube.find(POD, namespace=NAMESPACE, name=name) is None:
                await kube.create(pod_body(name))
            status = {
                "phase": "Running",
                "podIP": address,
                "podIPs": [{"ip": address}],
                "conditions": [{"type": "Ready", "status": "True"}],
            }
            await kube.patch_status(POD, namespace=NAMESPACE, name=name, status=status)

    await asyncio.gather(*(make(number) for number in range(count)))
    await kube.apply(JOB_BODY)
    await kube.close()


def pod_body(name: str) -> dict[str, Any]:
    """A rollout pod with a claim."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": "rollout"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "resourceClaims": [{"name": "gpu", "resourceClaimName": f"{name}-gpu"}],
            "containers": [
                {"name": "vllm", "image": "vllm", "resources": {"claims": [{"name": "gpu", "request": "gpu-0"}]}}
            ],
        },
    }


JOB_BODY: dict[str, Any] = {
    "apiVersion": "tlt.dev/v1alpha1",
    "kind": "TLTJob",
    "metadata": {"name": "scale", "namespace": NAMESPACE},
    "spec": {
        "target": {"model": "/models/policy"},
        "rollout": {"selector": {"matchLabels": {"app": "rollout"}}},
        "port": PORT,
        "gateway": {"enabled": False},
        "idle": {"after": "50ms", "minWindow": "5s", "scope": "Tail"},
        "store": {"url": "file:///tlt", "volumeClaim": "tlt"},
    },
}


def operator_environment(kubeconfig: str) -> dict[str, str]:
    """The operator's defaults, but for addresses."""
    return {
        "KUBECONFIG": kubeconfig,
        "TLT_WATCH_NAMESPACES": NAMESPACE,
        "TLT_WORKLOADS_IMAGE": "workloads:bench",
        "TLT_OPERATOR_IMAGE": "operator:bench",
        "TLT_PROBE_PORT": str(PROBES),
        "TLT_METRICS_PORT": str(METRICS),
    }


def counter(name: str) -> float:
    """The sum of one of the operator's counters over all labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{METRICS}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", page, re.MULTILINE))


def reactions(
    edges: Sequence[tuple[float, Mapping[str, Any]]],
    lines: Sequence[tuple[float, Mapping[str, Any]]],
    *,
    begin: float,
    end: float,
) -> tuple[list[float], int]:
    """Seconds from each idle edge within [begin, end] to the next line about that pod's rest, and edges without one."""
    told: dict[str, list[float]] = {}
    for moment, line in lines:
        if line.get("kind") == "worker" and line.get("to") in ("Idle", "Lent"):
            told.setdefault(line["pod"], []).append(moment)
    found, missed = [], 0
    for _, edge in edges:
        if begin <= edge.get("at", float("-inf")) <= end:
            after = next((moment for moment in told.get(edge["pod"], ()) if moment >= edge["at"]), None)
            if after is None:
                missed += 1
            else:
                found.append(after - edge["at"])
    return found, missed


def observe(watcher: Listener, fleet: Listener, *, seconds: float) -> dict[str, float]:
    """Watches a watcher for a while."""
    begin, cpu = time.time(), watcher.cpu_seconds()
    time.sleep(seconds)
    end = time.time()
    used = (watcher.cpu_seconds() - cpu) / (end - begin)
    time.sleep(3)  # for the lines about the last edges
    found, missed = reactions(list(fleet.lines), list(watcher.lines), begin=begin, end=end)
    return {
        "edges": len(found) + missed,
        "missed": missed,
        "p50": statistics.median(found) if found else float("nan"),
        "p99": results.percentile(found, 0.99) or float("nan"),
        "cpu": used,
        "memory": watcher.memory_mb(),
    }


def wait_until_watched(operator: Listener, count: int) -> None:
    """Returns when every pod has been seen at work."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        seen = {line["pod"] for _, line in list(operator.lines) if line.get("kind") == "worker"}
        if len(seen) >= count and operator.process.poll() is None:
            return
        time.sleep(1)
    raise RuntimeError(f"the operator has not seen all {count} pods")


def measure(kubeconfig: str, count: int, *, seconds: float) -> tuple[dict[str, float], dict[str, float]]:
    """Operator and peer with so many pods."""
    asyncio.run(populate(kubeconfig, count))
    with child("bench.operator_scale.fleet", str(count)) as fleet:
        with child("tlt_operator", environment=operator_environment(kubeconfig)) as operator:
            wait_until_watched(operator, count)
            time.sleep(10)
            writes = counter("tlt_api_writes_total")
            ours = observe(operator, fleet, seconds=seconds)
            ours["writes"] = (counter("tlt_api_writes_total") - writes) / (seconds + 3)
        with child("bench.operator_scale.scraper", str(count), "--expression") as scraper:
            time.sleep(10)
            theirs = observe(scraper, fleet, seconds=seconds)
        parsed = min(PARSED, count)
        with child("bench.operator_scale.scraper", str(parsed)) as scraper:
            time.sleep(10)
            theirs["parsing"] = observe(scraper, fleet, seconds=seconds)["cpu"] * count / parsed
    return ours, theirs


def show(name: str, count: int, found: Mapping[str, float]) -> None:
    """One line for a person."""
    times = f"edge to decision p50 {found['p50'] * 1000:7.1f} ms, p99 {found['p99'] * 1000:7.1f} ms"
    missed = f"{found['missed']:.0f} of {found['edges']:.0f} edges missed"
    costs = f"{found['cpu']:.3f} cores, {found['memory']:.0f} MB"
    writes = f", {found['writes']:.2f} writes/s" if "writes" in found else ""
    writes += f"; {found['parsing']:.1f} cores with the standard parser" if "parsing" in found else ""
    print(f"  {name:<9} {count:5d} pods: {times}; {missed}; {costs}{writes}", flush=True)


def main() -> int:
    """Measures, writes bench/results/operator_scale.json and the page that is made from it."""
    parser = argparse.ArgumentParser(prog="python -m bench.operator_scale", description=__doc__)
    parser.add_argument("--pods", type=int, nargs="+", default=[10, 100, 1000], help="numbers of pods to try")
    parser.add_argument("--seconds", type=float, default=60.0, help="to watch each of them (default 60)")
    options = parser.parse_args()
    metrics: dict[str, float | int | None] = {}
    devcluster("up", *PLANE)
    try:
        kubeconfig = devcluster("kubeconfig", *PLANE).splitlines()[-1]
        kubectl = Path(devcluster("path")) / "kubectl"
        environment = {**os.environ, "KUBECONFIG": kubeconfig}
        for arguments in (("create", "namespace", NAMESPACE), ("apply", "--server-side", "-f", str(ROOT / "crds"))):
            subprocess.run([str(kubectl), *arguments], env=environment, check=True, capture_output=True)
        for count in sorted(options.pods):
            ours, theirs = measure(kubeconfig, count, seconds=options.seconds)
            show("operator", count, ours)
            show("scraper", count, theirs)
            metrics |= {
                f"pass_{count}_pods_ms": pass_seconds(count, job_body=JOB_BODY, pod_body=pod_body) * 1000,
                f"cpu_cores_{count}_pods": ours["cpu"],
                f"memory_mb_{count}_pods": ours["memory"],
                f"edge_to_decision_p50_{count}_pods_s": ours["p50"],
            }
            metrics |= {
                "pods": count,
                "edge_to_decision_p50_s": ours["p50"],
                "edge_to_decision_p99_s": ours["p99"],
                "missed_edges": int(ours["missed"]),
                "cpu_cores": ours["cpu"],
                "memory_mb": ours["memory"],
                "api_writes_per_s": ours["writes"],
                "poll_cpu_ratio": theirs["parsing"] / ours["cpu"],
                "expression_poll_cpu_ratio": theirs["cpu"] / ours["cpu"],
                "poll_missed_edges": int(theirs["missed"]),
                "poll_latency_ratio": theirs["p50"] / ours["p50"],
            }
        for count in PASS_ONLY:
            cost = pass_seconds(count, job_body=JOB_BODY, pod_body=pod_body) * 1000
            metrics[f"pass_{count}_pods_ms"] = cost
            print(f"  operator  {count:5d} pods: one decision takes {cost:.1f} ms", flush=True)
    finally:
        devcluster("down", *PLANE)
    command = f"python -m bench.operator_scale {' '.join(sys.argv[1:])}".strip()
    print(f"figures: {results.write('operator_scale', command=command, metrics=metrics)}")
    tables.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
