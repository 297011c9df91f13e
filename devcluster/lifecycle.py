"""Build, up and down: the order in which things happen.

Every step looks before it acts, so `up` also repairs what died and finishes what an earlier `up` left half done, and
`down` removes what it finds, whatever state the cluster is in.
"""

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devcluster import (
    access,
    binaries,
    builds,
    cgroups,
    images,
    mounts,
    network,
    preflight,
    processes,
    starting,
    toolchain,
)
from devcluster.binaries import GoModule
from devcluster.errors import DevclusterError
from devcluster.progress import say
from devcluster.settings import Settings, Shape

GRACE_SECONDS = 2.0
"""For the kubelet's and containerd's own good-bye; everything else is killed, since its state is deleted anyway."""


def needed_modules(settings: Settings) -> list[GoModule]:
    """The modules without which this cluster cannot start."""
    is_node = settings.shape is Shape.NODE
    return [m for m in binaries.MODULES if (m.needed_by_node if is_node else m.needed_by_control_plane)]


def build(settings: Settings, modules: list[GoModule]) -> None:
    """Build what is missing of `modules`.

    Raises:
        RefusalError: a compiler, a library or disk space is missing.
        DevclusterError: a build failed.
    """
    settings.cache.mkdir(parents=True, exist_ok=True)
    with _exclusively(settings.cache / "build.lock", what="build"):
        if absent := builds.missing(settings.binaries, modules):
            preflight.check_build(settings, absent)
            go = toolchain.find_go(settings.cache, say=say)
            builds.build(settings.cache, absent, go=go, say=say)
        builds.link_commands(settings.cache)


def up(settings: Settings) -> None:
    """Bring the cluster up, or repair it; returns when the node is ready.

    Raises:
        RefusalError: this machine cannot run it.
        DevclusterError: a component did not become ready; the message has the end of its log.
    """
    modules = needed_modules(settings)
    preflight.check(
        settings,
        to_build=builds.missing(settings.binaries, modules),
        is_running=bool(processes.living(settings)),
    )
    build(settings, modules)
    with _exclusively(_lock_file(settings), what="up or down"):
        began = time.monotonic()
        was_up = settings.kubeconfig.exists() and access.status(settings).is_up
        started = starting.start_all(settings)
        seconds = time.monotonic() - began
    if was_up and not started:
        say(f"already up: export KUBECONFIG={settings.kubeconfig}")
    else:
        say(f"{settings.shape.value} up in {seconds:.1f} s (started {', '.join(started)})")
        say(f"export KUBECONFIG={settings.kubeconfig}")


def down(settings: Settings, *, purge: bool = False) -> None:
    """Remove the cluster and all traces of it; safe to repeat, and after any crash.

    Args:
        purge: remove binaries and image layers too.

    Raises:
        DevclusterError: something does not go away.
    """
    with _exclusively(_lock_file(settings), what="up or down"):
        began = time.monotonic()
        found = processes.living(settings)
        # The state folder goes last, so without it nothing on this machine is ours: another cache folder's cluster
        # has the same cgroup and bridge, and must be left alone.
        had_state = settings.state.exists()
        is_our_node = had_state and settings.shape is Shape.NODE
        # The kubelet first, so that nothing starts pods again; containerd last, so that it can forget them in order.
        order = ("kubelet", "dra-example-driver", "kube-proxy", "coredns")
        early = [p.pid for p in found if p.component in order]
        processes.end(early, grace=GRACE_SECONDS)
        if is_our_node:
            _end_containers(settings)
        processes.end([p.pid for p in processes.living(settings)])
        if is_our_node:
            cgroups.remove(settings)
            network.remove(settings)
            mounts.remove_targets(settings)
        if had_state:
            shutil.rmtree(settings.state)
        seconds = time.monotonic() - began
    if found or had_state:
        say(f"{settings.shape.value} down in {seconds:.1f} s ({len(found)} processes ended)")
    else:
        say("nothing was up")
    if purge:
        _purge(settings)


def _end_containers(settings: Settings) -> None:
    """End the pods, and let a living containerd forget them, so that their layers do not stay on disk."""
    processes.end(cgroups.members(settings))
    node = access.possible_runtime(settings)
    if Path(node.command).exists() and node.answers():
        try:
            images.clear_containers(node)
        except DevclusterError as error:
            say(f"  the next `up` will clear the old containers ({error})")


def _purge(settings: Settings) -> None:
    if settings.shape is Shape.CONTROL_PLANE:
        return
    planes = settings.cache / "planes"
    for name in sorted(path.name for path in planes.iterdir() if path.is_dir()) if planes.exists() else ():
        down(Settings(cache=settings.cache, shape=Shape.CONTROL_PLANE, name=name))
    for folder in (settings.containerd_root, settings.binaries, settings.commands, settings.go, settings.build_logs):
        if folder.exists():
            shutil.rmtree(folder)
    say(f"removed binaries and image layers from {settings.cache}")


def _lock_file(settings: Settings) -> Path:
    # Beside the state folder, not in it: `down` removes the folder while it holds the lock.
    return settings.state.with_name(f"{settings.state.name}.lock")


@contextmanager
def _exclusively(file: Path, *, what: str) -> Iterator[None]:
    """Hold the lock `file` while the block runs, waiting for another program that holds it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another {what} to finish")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
