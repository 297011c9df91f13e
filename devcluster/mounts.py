"""A mount namespace for the node: its mounts end with its processes, and this machine never sees them.

The kubelet, containerd and the containers make hundreds of mounts and have paths such as /var/lib/kubelet built in.
In a namespace of their own they find our folders there, no mount can be left behind by a crash, and deleting the state
folder cannot reach through a mount into somebody's data.
"""

from pathlib import Path

from devcluster import processes
from devcluster.components import Component
from devcluster.configuration import NODE_FOLDERS
from devcluster.settings import Settings

ANCHOR = "mounts"
_ENTER = """
set -eu
mount --make-rshared /
pause=$1; shift
while [ $# -gt 0 ]; do mount --bind "$1" "$2"; shift 2; done
exec "$pause"
"""


def sources(settings: Settings) -> dict[str, Path]:
    """Our folder for each path that the node's programs have built in."""
    special = {"/run/containerd": settings.node_run}
    return {target: special.get(target, settings.state / "node" / target.rsplit("/", 1)[1]) for target in NODE_FOLDERS}


def anchor(settings: Settings, *, pause: str) -> Component:
    """The process that holds the namespace; it does nothing."""
    pairs = [word for target, source in sources(settings).items() for word in (str(source), target)]
    # Private first, so that nothing reaches this machine; then shared, as containers that pass mounts on need it.
    enter = ("unshare", "--mount", "--propagation", "private", "--", "sh", "-c", _ENTER, "sh")
    return Component(name=ANCHOR, command=(*enter, pause, *pairs))


def holder(settings: Settings) -> int | None:
    """A process whose mounts are the node's: the anchor, or after its death any other survivor."""
    ours = Path("/proc/self/ns/mnt").readlink()
    survivors = sorted(processes.living(settings), key=lambda process: process.component != ANCHOR)
    for process in survivors:
        try:
            theirs = Path(f"/proc/{process.pid}/ns/mnt").readlink()
        except OSError:
            continue
        if theirs != ours and not _is_starting(process):
            return process.pid
    return None


def enter(settings: Settings, *, pause: str) -> int:
    """Make the namespace unless it exists.

    Returns:
        a process that is in it.
    """
    if (existing := holder(settings)) is not None:
        return existing
    for target, source in sources(settings).items():
        source.mkdir(parents=True, exist_ok=True)
        _make_target(settings, Path(target))
    process = processes.start(settings, anchor(settings, pause=pause))
    processes.wait_until(
        lambda: holder(settings) is not None,
        what="the node's mount namespace",
        seconds=settings.start_seconds,
        process=process,
        log=processes.log_file(settings, ANCHOR),
    )
    return process.pid


def remove_targets(settings: Settings) -> None:
    """Remove the empty folders that were made on this machine to mount upon."""
    record = _record(settings)
    if not record.exists():
        return
    for line in record.read_text().splitlines():
        try:
            Path(line).rmdir()
        except OSError:
            continue  # another program uses it by now, or it is gone


def _make_target(settings: Settings, folder: Path) -> None:
    if not folder.exists():
        with _record(settings).open("a") as record:  # before the deed: a crash between leaves a line too many at worst
            record.write(f"{folder}\n")
        folder.mkdir(parents=True)


def _record(settings: Settings) -> Path:
    return settings.state / "made-folders"


def _is_starting(process: processes.Process) -> bool:
    """Whether it is still the shell that makes the mounts."""
    return process.component == ANCHOR and Path(process.executable).name != "pause"
