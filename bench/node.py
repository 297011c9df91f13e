"""Processes of pods, as the machine sees them on which the embedded cluster runs."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROCESSES = Path("/proc")
FORK_SERVER = "multiprocessing.forkserver"


@dataclass(frozen=True, kw_only=True)
class PodProcess:
    """A living process of a pod."""

    pid: int
    parent: int
    command: str

    def send(self, number: int) -> None:
        """Sends a signal.

        Raises:
            ProcessLookupError: it has ended.
        """
        send(self.pid, number)


def send(pid: int, number: int) -> None:
    """Sends a signal to a process of the machine.

    Raises:
        ProcessLookupError: it has ended.
    """
    os.kill(pid, number)


def pod_processes(uid: str, *, processes: Path = PROCESSES) -> Sequence[PodProcess]:
    """The processes of the pod with this uid, oldest first; the sandbox's own is left out."""
    marks = (uid, uid.replace("-", "_"))  # the kubelet's two drivers write it differently
    found = []
    for entry in processes.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            if not any(mark in (entry / "cgroup").read_text() for mark in marks):
                continue
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if fields[0] not in "ZX" and command and not command.startswith("/pause"):
            found.append(PodProcess(pid=int(entry.name), parent=int(fields[1]), command=command))
    return sorted(found, key=lambda process: process.pid)


def trainer_worker(uid: str, *, processes: Path = PROCESSES) -> PodProcess | None:
    """The process that trains in a trainer pod: what the fork server has forked.  None between windows."""
    found = pod_processes(uid, processes=processes)
    servers = {process.pid for process in found if FORK_SERVER in process.command}
    # A forked process keeps its parent's command line, so it looks like a server whose parent is one.
    return next((process for process in reversed(found) if process.parent in servers), None)


def main_process(uid: str, *, processes: Path = PROCESSES) -> PodProcess | None:
    """The first process of a pod's container."""
    found = pod_processes(uid, processes=processes)
    pids = {process.pid for process in found}
    return next((process for process in found if process.parent not in pids), None)


class Watch:
    """Learns of a process's death from the kernel."""

    def __init__(self, process: PodProcess) -> None:
        self._handle = os.pidfd_open(process.pid)

    def death(self, *, within: float) -> float | None:
        """Monotonic time at which the process has ended; None when it lives on."""
        try:
            ready, _, _ = select.select([self._handle], [], [], within)
            return time.monotonic() if ready else None
        finally:
            os.close(self._handle)
