"""The processes of pods, found on this very machine."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from bench.node import PodProcess, Watch, main_process, pod_processes, trainer_worker

UID = "6f0d1c52-9f0e-4f59-8f5e-0a3f0d0c8b11"


def process(folder: Path, pid: int, *, parent: int, command: str, uid: str = UID, state: str = "S") -> None:
    entry = folder / str(pid)
    entry.mkdir()
    (entry / "cgroup").write_text(f"4:cpu:/kubepods/burstable/pod{uid}/abc\n")
    (entry / "cmdline").write_bytes(command.replace(" ", "\0").encode())
    (entry / "stat").write_text(f"{pid} (python) {state} {parent} 1 1 0")


def test_a_worker_is_what_the_fork_server_has_forked(tmp_path: Path) -> None:
    server = "python -c from multiprocessing.forkserver import main"
    process(tmp_path, 10, parent=1, command="python -m tlt_workloads.trainer")
    process(tmp_path, 12, parent=10, command=server)
    assert trainer_worker(UID, processes=tmp_path) is None
    process(tmp_path, 15, parent=12, command=server)
    process(tmp_path, 16, parent=12, command=server, uid="another-pod")
    found = trainer_worker(UID, processes=tmp_path)
    assert found is not None
    assert found.pid == 15


def test_the_main_process_is_the_one_whose_parent_is_not_in_the_pod(tmp_path: Path) -> None:
    process(tmp_path, 9, parent=1, command="/pause")
    process(tmp_path, 10, parent=2, command="vllm serve")
    process(tmp_path, 11, parent=10, command="VLLM::EngineCore")
    found = main_process(UID, processes=tmp_path)
    assert found is not None
    assert found.pid == 10


def test_the_dead_and_other_pods_are_left_out_whichever_way_the_uid_is_written(tmp_path: Path) -> None:
    process(tmp_path, 10, parent=1, command="python", uid=UID.replace("-", "_"))
    process(tmp_path, 11, parent=1, command="python", state="Z")
    process(tmp_path, 12, parent=1, command="python", uid="other")
    assert [found.pid for found in pod_processes(UID, processes=tmp_path)] == [10]


def test_a_death_is_noticed_and_a_life_is_not_taken_for_one() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        alive = PodProcess(pid=child.pid, parent=0, command="")
        assert Watch(alive).death(within=0.0) is None
        watch, before = Watch(alive), time.monotonic()
        child.kill()
        died = watch.death(within=30.0)
        assert died is not None
        assert died >= before
