"""Starts, finds and ends the cluster's processes.

A process belongs to a cluster when its environment says so (``TLT_DEVCLUSTER=<state folder>``): children such as
container shims inherit the mark, it needs no file that could be stale, and nothing else on the machine carries it.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from devcluster.components import Component
from devcluster.errors import DevclusterError
from devcluster.settings import Settings

CLUSTER_MARK = "TLT_DEVCLUSTER"
COMPONENT_MARK = "TLT_DEVCLUSTER_COMPONENT"
LOOK_AGAIN_SECONDS = 0.05

Condition = Callable[[], bool]


@dataclass(frozen=True)
class Process:
    """A living process of a cluster."""

    pid: int
    component: str
    """Name of the component that it is, or that started it."""
    executable: str


def living(settings: Settings, *, processes: Path = Path("/proc")) -> list[Process]:
    """Every process that carries the cluster's mark, children of components among them."""
    mark = f"{CLUSTER_MARK}={settings.state}".encode()
    found = []
    for pid in _pids(processes):
        try:
            environment = (processes / str(pid) / "environ").read_bytes().split(b"\0")
            if mark not in environment:
                continue
            executable = os.readlink(processes / str(pid) / "exe").removesuffix(" (deleted)")
        except OSError:
            continue  # ended meanwhile, or another user's
        name = next((entry for entry in environment if entry.startswith(f"{COMPONENT_MARK}=".encode())), b"=")
        found.append(Process(pid, name.split(b"=", 1)[1].decode(), executable))
    return found


def running(settings: Settings, component: Component) -> Process | None:
    """The process that is `component` itself, not one of its children."""
    # The name of the executable tells the component from the shims that it started; a newer build keeps the name.
    executable = Path(component.command[0]).name
    return next(
        (
            process
            for process in living(settings)
            if process.component == component.name and Path(process.executable).name == executable
        ),
        None,
    )


def start(settings: Settings, component: Component, *, inside: int | None = None) -> subprocess.Popen[bytes]:
    """Start a component in its own session, so that it outlives this program.

    Args:
        inside: a process whose mounts the component shall see, or None for this machine's.
    """
    command = list(component.command)
    if inside is not None:
        command = ["nsenter", f"--mount=/proc/{inside}/ns/mnt", "--", *command]
    marks = {CLUSTER_MARK: str(settings.state), COMPONENT_MARK: component.name}
    settings.logs.mkdir(parents=True, exist_ok=True)
    with log_file(settings, component.name).open("ab") as log:
        return subprocess.Popen(
            command,
            cwd="/",
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": "/root", **component.environment, **marks},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def log_file(settings: Settings, component: str) -> Path:
    return settings.logs / f"{component}.log"


def end(pids: Iterable[int], *, grace: float = 0.0, deadline: float = 10.0) -> None:
    """End processes: SIGTERM and up to `grace` seconds, then SIGKILL until they are gone.

    Raises:
        DevclusterError: one is still there `deadline` seconds after SIGKILL (stuck in the kernel).
    """
    left = list(pids)
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, deadline)):
        if seconds <= 0:
            continue
        for pid in left:
            _send(pid, number)
        until = time.monotonic() + seconds
        while left := [pid for pid in left if is_alive(pid)]:
            if time.monotonic() > until:
                break
            time.sleep(LOOK_AGAIN_SECONDS)
    if left:
        raise DevclusterError(f"processes {left} do not end; `ps -o pid,stat,wchan,args -p {left[0]}` tells why")


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not yet collected by its parent does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rsplit(")", 1)[1].split()[0] not in "ZX"


def wait_until(
    ready: Condition, *, what: str, seconds: float, process: subprocess.Popen[bytes] | None = None, log: Path
) -> None:
    """Wait for `ready`, and stop at once when the process that should make it so has ended.

    Raises:
        DevclusterError: not ready in time, or the process ended; with the last lines of its log.
    """
    until = time.monotonic() + seconds
    while not ready():
        if process is not None and process.poll() is not None:
            raise DevclusterError(f"{what}: the process ended with status {process.returncode}\n{tail(log)}")
        if time.monotonic() > until:
            raise DevclusterError(f"{what}: not ready after {seconds:.0f} s\n{tail(log)}")
        time.sleep(LOOK_AGAIN_SECONDS)


def tail(log: Path, *, lines: int = 8) -> str:
    try:
        text = log.read_text(errors="replace")
    except OSError:
        text = ""
    return "\n".join([f"  log: {log}", *(f"  | {line[:300]}" for line in text.splitlines()[-lines:])])


def _pids(processes: Path) -> Iterator[int]:
    return (int(entry.name) for entry in processes.iterdir() if entry.name.isdecimal())


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
