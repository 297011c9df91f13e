"""The cgroups of the node's pods, on hosts with version 1, version 2 or both."""

import time
from collections.abc import Iterator
from pathlib import Path

from devcluster.errors import DevclusterError
from devcluster.processes import end
from devcluster.settings import Settings

SECONDS_TO_EMPTY = 10.0
PROCESSOR_WEIGHTS = {"cpu.shares": "16384", "cpu.weight": "1000"}
"""Version 1 and 2. By default the whole cluster would weigh as much as one ordinary process of this machine, and an
emulated accelerator would be as slow as the machine is busy."""


def hierarchies(mounts: str) -> list[tuple[Path, bool]]:
    """Mounted cgroup hierarchies in the text of /proc/self/mounts, each with whether it is version 2."""
    fields = (line.split() for line in mounts.splitlines())
    return [(Path(field[1]), field[2] == "cgroup2") for field in fields if field[2] in ("cgroup", "cgroup2")]


def create(settings: Settings) -> None:
    """Make the parent of all pods in every hierarchy, with every controller that the host allows."""
    for root, is_version_2 in _mounted():
        folder = root / settings.cgroup
        folder.mkdir(exist_ok=True)
        if is_version_2:
            _pass_controllers_on(root)
            _pass_controllers_on(folder)
        for file, weight in PROCESSOR_WEIGHTS.items():
            if (folder / file).exists():
                (folder / file).write_text(weight)
        for file in ("cpuset.cpus", "cpuset.mems"):
            # In version 1 a new group may run on no core at all until it is told which.
            if not is_version_2 and (folder / file).exists() and not (folder / file).read_text().strip():
                (folder / file).write_text((root / file).read_text())


def members(settings: Settings) -> list[int]:
    """Processes in the node's pods."""
    pids: set[int] = set()
    for folder in _groups(settings):
        try:
            pids.update(int(line) for line in (folder / "cgroup.procs").read_text().split())
        except OSError:
            continue  # removed meanwhile
    return sorted(pids)


def remove(settings: Settings) -> None:
    """End what still runs in the pods and remove their cgroups.

    Raises:
        DevclusterError: a cgroup stays busy.
    """
    until = time.monotonic() + SECONDS_TO_EMPTY
    while pids := members(settings):
        end(pids)
        if time.monotonic() > until:
            raise DevclusterError(f"pods keep starting processes: {pids}")
    problem: OSError | None = None
    while True:
        problem = None
        for folder in _groups(settings):
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:  # the kernel still counts the last process out
                problem = error
        if problem is None:
            return
        if time.monotonic() > until:
            raise DevclusterError(f"cannot remove cgroup {problem.filename}: {problem.strerror}")
        time.sleep(0.05)


def exist(settings: Settings) -> bool:
    return any((root / settings.cgroup).exists() for root, _ in _mounted())


def _groups(settings: Settings) -> Iterator[Path]:
    """Our cgroups, children before parents."""
    for root, _ in _mounted():
        top = root / settings.cgroup
        if top.exists():
            yield from sorted((path for path in top.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts))
            yield top


def _mounted() -> list[tuple[Path, bool]]:
    return hierarchies(Path("/proc/self/mounts").read_text())


def _pass_controllers_on(folder: Path) -> None:
    for controller in (folder / "cgroup.controllers").read_text().split():
        try:
            (folder / "cgroup.subtree_control").write_text(f"+{controller}")
        except OSError:
            continue  # held by version 1, or threads run in this group: the kubelet says which one it misses
