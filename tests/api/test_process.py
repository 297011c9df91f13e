"""The operator as the process that the image runs: probes, metrics, signals, and no word when it is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.api.conftest import ROOT, World
from tests.support.eventually import eventually, eventually_async
from tlt_operator.clients.kube import JOB


@dataclass
class Process:
    """`python -m tlt_operator` against the control plane, for one namespace."""

    kubeconfig: Path
    namespace: str
    log: Path
    probes: int
    metrics: int
    process: subprocess.Popen[bytes] | None = None

    def start(self, **variables: str) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}/operator:{ROOT}/workloads",
            "KUBECONFIG": str(self.kubeconfig),
            "TLT_WATCH_NAMESPACES": self.namespace,
            "TLT_WORKLOADS_IMAGE": "workloads:test",
            "TLT_OPERATOR_IMAGE": "operator:test",
            "TLT_PROBE_PORT": str(self.probes),
            "TLT_METRICS_PORT": str(self.metrics),
            "TLT_STATUS_INTERVAL": "0.2",
            **variables,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tlt_operator"], env=environment, stdout=log, stderr=log
            )

    def get(self, port: int, path: str) -> requests.Response | None:
        try:
            return requests.get(f"http://127.0.0.1:{port}{path}", timeout=5)
        except requests.ConnectionError:
            return None

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        answer = self.get(self.probes, "/readyz")
        return answer is not None and answer.status_code == 200

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def operator_process(kubeconfig: Path, namespace: str, log: Path) -> Iterator[Process]:
    found = Process(kubeconfig, namespace, log, free_port(), free_port())
    try:
        yield found
    finally:
        if found.process is not None and found.process.poll() is None:
            found.process.kill()
            found.process.wait()


@pytest.fixture
def process(kubeconfig: Path, namespace: str, tmp_path: Path) -> Iterator[Process]:
    with operator_process(kubeconfig, namespace, tmp_path / "operator.log") as found:
        yield found


@pytest.fixture
def standby(kubeconfig: Path, namespace: str, tmp_path: Path) -> Iterator[Process]:
    with operator_process(kubeconfig, namespace, tmp_path / "standby.log") as found:
        yield found


async def test_it_looks_after_jobs_answers_probes_and_ends_on_sigterm(world: World, process: Process) -> None:
    await world.stop_operator()
    process.start()
    eventually(process.is_ready, deadline=60, every=0.1, reason="readiness")
    await world.apply_job()
    busy, idle = await world.add_rollout("rollout-0"), await world.add_rollout("rollout-1")
    busy.generate()
    idle.finish(captured=1000)
    await eventually_async(lambda: idle.lease, deadline=60, reason="a lease")
    await world.until_condition("Harvesting", "True", "LeaseHeld")
    health = process.get(process.probes, "/healthz")
    assert health is not None
    assert health.status_code == 200
    job = f"{world.namespace}/demo"

    def metrics() -> bool:
        answer = process.get(process.metrics, "/metrics")
        assert answer is not None
        assert f'tlt_gpus{{job="{job}",state="Lent"}} 1.0' in answer.text
        assert f'tlt_lease_total{{job="{job}",result="granted"}} 1.0' in answer.text
        assert f'tlt_gpu_seconds_total{{job="{job}",state="busy"}}' in answer.text
        return True

    eventually(metrics, reason="the metrics")
    body = await world.kube.get(JOB, namespace=world.namespace, name="demo")
    assert not body["metadata"].get("finalizers")
    assert not body["metadata"].get("annotations")
    assert process.end() == 0
    assert idle.lease is not None, "a lease outlives the operator"
    assert "Traceback" not in process.log.read_text()


async def test_killed_in_the_middle_of_a_lease_the_next_one_goes_on(world: World, process: Process) -> None:
    await world.stop_operator()
    process.start()
    eventually(process.is_ready, deadline=60, every=0.1, reason="readiness")
    await world.apply_job()
    busy, idle = await world.add_rollout("rollout-0"), await world.add_rollout("rollout-1")
    busy.generate()
    idle.finish(captured=1000)
    await eventually_async(lambda: idle.lease, deadline=60, reason="a lease")
    process.end(signal.SIGKILL)
    busy.finish()
    process.start()
    await eventually_async(lambda: idle.last_lease, deadline=60, reason="the end of the adopted lease")
    assert idle.last_lease is not None
    assert idle.last_lease.reason == "WindowEnd"


async def test_of_two_operators_one_acts_and_the_other_takes_over(
    world: World, process: Process, standby: Process
) -> None:
    await world.stop_operator()
    election = {"TLT_LEADER_LEASE": "tlt-operator", "TLT_LEADER_NAMESPACE": world.namespace}
    process.start(**election)
    eventually(process.is_ready, deadline=60, every=0.1, reason="readiness")
    await world.apply_job()
    busy, idle = await world.add_rollout("rollout-0"), await world.add_rollout("rollout-1")
    busy.generate()
    standby.start(**election)
    eventually(standby.is_ready, deadline=60, every=0.1, reason="readiness of the one that stands by")
    idle.finish(captured=1000)
    await eventually_async(lambda: idle.lease, deadline=60, reason="a lease")
    job = f'job="{world.namespace}/demo"'
    passive = standby.get(standby.metrics, "/metrics")
    assert passive is not None
    assert job not in passive.text, "the one that stands by looks after the job"
    process.end(signal.SIGKILL)
    busy.finish()
    await eventually_async(lambda: idle.last_lease, deadline=60, reason="the end of the adopted lease")
    assert idle.last_lease is not None
    assert idle.last_lease.reason == "WindowEnd"
    active = standby.get(standby.metrics, "/metrics")
    assert active is not None
    assert job in active.text
    assert standby.end() == 0


def test_option_that_cannot_be_used_is_named(process: Process) -> None:
    process.start(TLT_TICK="soon")
    assert process.process is not None
    assert process.process.wait(timeout=60) == 2
    assert "TLT_TICK" in process.log.read_text()
