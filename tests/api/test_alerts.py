"""The alerts in a real Prometheus that scrapes a real operator process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster.preflight import free_port
from tests.api.conftest import World
from tests.api.test_process import Process
from tests.support.eventually import eventually_async
from tests.support.prometheus import alert_rules, prometheus

IDLE, STALE = "TLTGpusNotHarvested", "TLTOperatorStale"
QUICK = {IDLE: {"window": "3s", "for": "1s"}, STALE: {"seconds": 5, "for": "1s"}}


@pytest.fixture
def processes(kubeconfig: Path, namespace: str, tmp_path: Path) -> Iterator[tuple[Process, Process]]:
    """Two operators that have not been started."""
    found = tuple(
        Process(kubeconfig, namespace, tmp_path / f"operator-{number}.log", free_port(), free_port())
        for number in range(2)
    )
    yield found[0], found[1]
    for process in found:
        if process.process is not None and process.process.poll() is None:
            process.process.kill()
            process.process.wait()


async def test_idle_gpus_alert_while_lending_is_suspended_and_a_dead_operator_is_noticed(
    world: World, processes: tuple[Process, Process], tmp_path: Path
) -> None:
    process, _ = processes
    await world.stop_operator()
    process.start()
    await eventually_async(process.is_ready, deadline=60, every=0.1, reason="readiness")
    await world.apply_job()
    busy, idle = await world.add_rollout("rollout-0"), await world.add_rollout("rollout-1")
    busy.generate()
    idle.finish(captured=1000)
    await eventually_async(lambda: idle.lease, deadline=60, reason="a lease")

    def healthy() -> bool:
        """What the kubelet does in a cluster: ask whether all jobs are looked after."""
        answer = process.get(process.probes, "/healthz")
        return answer is not None and answer.status_code == 200

    target = f"127.0.0.1:{process.metrics}"
    with prometheus(tmp_path, target=target, rules=alert_rules(QUICK)) as server:

        def lent_in_peace() -> bool:
            assert healthy()
            assert server.value(f'sum(tlt_gpus{{job="{world.namespace}/demo",state="Lent"}})') == 1
            assert not server.firing()
            return True

        await eventually_async(lent_in_peace, deadline=60, every=0.2, reason="a scraped lease and no alert")

        await world.apply_job(suspend=True)
        fired = await eventually_async(
            lambda: healthy() and server.firing().get(IDLE), deadline=60, every=0.2, reason=f"{IDLE} firing"
        )
        assert fired["labels"]["job"] == f"{world.namespace}/demo"
        summary = rf"{world.namespace}/demo: [01]\.\d idle GPUs are not harvested"
        assert re.fullmatch(summary, fired["annotations"]["summary"]), fired["annotations"]["summary"]
        assert f"kubectl --namespace {world.namespace} describe tltjob demo" in fired["annotations"]["description"]

        await world.apply_job(suspend=False)
        await eventually_async(
            lambda: healthy() and idle.lease and not server.firing(), deadline=60, every=0.2, reason="alert resolved"
        )

        process.end()
        await eventually_async(lambda: STALE in server.firing(), deadline=60, every=0.2, reason=f"{STALE} firing")


async def test_the_heartbeat_is_that_of_the_operator_that_acts(
    world: World, processes: tuple[Process, Process]
) -> None:
    await world.stop_operator()

    def heartbeat(process: Process) -> float:
        health, answer = process.get(process.probes, "/healthz"), process.get(process.metrics, "/metrics")
        assert health is not None
        assert health.status_code == 200
        assert answer is not None
        (line,) = re.findall(r"^tlt_heartbeat_timestamp_seconds (\S+)$", answer.text, re.MULTILINE)
        return float(line)

    acts, stands_by = processes
    variables = {"TLT_LEADER_LEASE": "operator", "TLT_LEADER_NAMESPACE": world.namespace}
    acts.start(**variables)
    await eventually_async(lambda: acts.is_ready() and heartbeat(acts), deadline=60, every=0.1, reason="a heartbeat")
    stands_by.start(**variables)
    await eventually_async(stands_by.is_ready, deadline=60, every=0.1, reason="readiness of the second")
    assert heartbeat(stands_by) == 0
    acts.end()
    await eventually_async(
        lambda: heartbeat(stands_by), deadline=60, every=0.1, reason="a heartbeat after the take-over"
    )
