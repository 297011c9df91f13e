"""Processes are told by the mark in their environment."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import cgroups, processes
from devcluster.components import Component
from devcluster.errors import DevclusterError
from devcluster.settings import Settings

PYTHON = os.path.realpath(sys.executable)
SLEEPER = Component(name="sleeper", command=(PYTHON, "-c", "import time; print('awake', flush=True); time.sleep(600)"))
CHILD = 'import time; print("child", flush=True); time.sleep(600)'
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""


def shell_executable() -> str:
    """The file that /bin/sh really is."""
    return os.path.realpath("/bin/sh")


@pytest.fixture
def settings() -> Iterator[Settings]:
    # Not pytest's own folder: its path is longer than a cache folder's may be.
    with tempfile.TemporaryDirectory(prefix="tlt-") as folder:
        yield Settings(cache=Path(folder))


def start(settings: Settings, component: Component) -> subprocess.Popen[bytes]:
    process = processes.start(settings, component)
    log = processes.log_file(settings, component.name)
    processes.wait_until(lambda: log.read_text() != "", what=component.name, seconds=30, process=process, log=log)
    return process


def test_a_started_component_is_found_and_ended(settings: Settings) -> None:
    process = start(settings, SLEEPER)
    found = processes.running(settings, SLEEPER)
    assert found is not None
    assert found.pid == process.pid
    processes.end([process.pid])
    assert process.wait() != 0
    assert processes.living(settings) == []


def test_a_cluster_does_not_see_the_processes_of_another(settings: Settings) -> None:
    with tempfile.TemporaryDirectory(prefix="tlt-") as folder:
        process = start(settings, SLEEPER)
        assert processes.living(Settings(cache=Path(folder))) == []
        processes.end([process.pid])
        process.wait()


def test_a_child_is_the_clusters_too_but_not_the_component(settings: Settings) -> None:
    parent = Component(name="parent", command=("/bin/sh", "-c", f"echo up; {PYTHON} -c '{CHILD}'; true"))
    process = start(settings, parent)
    log = processes.log_file(settings, "parent")
    processes.wait_until(lambda: "child" in log.read_text(), what="child", seconds=30, process=process, log=log)
    living = processes.living(settings)
    assert {found.component for found in living} == {"parent"}
    assert len(living) == 2
    running = processes.running(settings, Component(name="parent", command=(shell_executable(),)))
    assert running is not None
    assert running.pid == process.pid
    processes.end([found.pid for found in living])
    process.wait()


def test_what_ignores_a_request_to_end_is_killed(settings: Settings) -> None:
    process = start(settings, Component(name="deaf", command=(PYTHON, "-c", DEAF)))
    processes.end([process.pid], grace=0.2)
    assert process.wait() == -signal.SIGKILL


def test_waiting_stops_when_the_process_has_ended_and_shows_its_log(settings: Settings) -> None:
    broken = Component(name="broken", command=(PYTHON, "-c", "raise SystemExit('no such flag: --x')"))
    process = processes.start(settings, broken)
    log = processes.log_file(settings, "broken")
    with pytest.raises(DevclusterError, match=r"ended with status 1(.|\n)*no such flag: --x"):
        processes.wait_until(lambda: False, what="broken", seconds=30, process=process, log=log)


def test_cgroup_hierarchies_of_both_versions_are_found() -> None:
    mounted = (
        "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n"
        "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"
        "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
    )
    assert cgroups.hierarchies(mounted) == [
        (Path("/sys/fs/cgroup/cpu"), False),
        (Path("/sys/fs/cgroup/unified"), True),
    ]
