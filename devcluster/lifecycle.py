"""Up, down and status: the order in which things happen.

Every step looks before it acts, so `up` also repairs what died and finishes what an earlier `up` left half done, and
`down` removes what it finds, whatever state the cluster is in.
"""

import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from devcluster import (
    binaries,
    builds,
    certificates,
    cgroups,
    components,
    configuration,
    images,
    mounts,
    network,
    objects,
    preflight,
    processes,
    toolchain,
)
from devcluster.api import Api
from devcluster.binaries import GoModule
from devcluster.components import Component
from devcluster.errors import DevclusterError
from devcluster.progress import say
from devcluster.settings import Settings, Shape

GRACE_SECONDS = 2.0
"""For the kubelet's and containerd's own good-bye; everything else is killed, since its state is deleted anyway."""


@dataclass(frozen=True, kw_only=True)
class Health:
    """What `status` finds."""

    components: dict[str, int | None]
    """Process of each component, None when it does not run."""
    node_ready: bool
    """For a control plane: whether the API server is ready."""

    @property
    def is_up(self) -> bool:
        return self.node_ready and all(pid is not None for pid in self.components.values())


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
        was_up = settings.kubeconfig.exists() and status(settings).is_up
        started = _start_all(settings)
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


def status(settings: Settings) -> Health:
    """Which components run, and whether the cluster is ready."""
    locate = _locator(settings)
    found = {}
    for component in _all_components(settings, locate):
        process = processes.running(settings, component)
        found[component.name] = process.pid if process else None
    ready = settings.kubeconfig.exists() and found["kube-apiserver"] is not None and _is_ready(settings)
    return Health(components=found, node_ready=ready)


def runtime(settings: Settings) -> images.Runtime:
    """The node's container runtime.

    Raises:
        DevclusterError: it does not run.
    """
    node = images.Runtime(_locator(settings)("ctr"), settings.containerd_socket, settings.containerd_blobs)
    if not node.answers():
        raise DevclusterError("the node does not run; `python3 -m devcluster up` starts it")
    return node


def api(settings: Settings) -> Api:
    """The cluster's API server."""
    return Api(
        host=settings.api_host,
        port=_api_port(settings),
        certificates=settings.certificates,
        kubectl=_locator(settings)("kubectl"),
        kubeconfig=settings.kubeconfig,
    )


def _start_all(settings: Settings) -> list[str]:
    """Start what does not run.

    Returns:
        names of the components that were started.
    """
    locate, started = _locator(settings), _Started(settings)
    is_node = settings.shape is Shape.NODE
    for folder in (settings.state, settings.state / "run", settings.logs):
        folder.mkdir(parents=True, exist_ok=True)
    # Keys and the socket of etcd lie here.
    settings.state.chmod(0o700)
    port = _api_port(settings)
    certificates.issue(settings, api_address=f"https://{settings.api_host}:{port}")
    inside = None
    if is_node:
        network.create(settings)
        cgroups.create(settings)
        _write_configuration(settings, locate)
        is_first = (
            not cgroups.members(settings) and processes.running(settings, components.kubelet(settings, locate)) is None
        )
        inside = mounts.enter(settings, pause=locate("pause"))
        started.ensure(components.containerd(settings, locate), inside=inside)
    started.ensure(components.etcd(settings, locate))
    started.ensure(components.apiserver(settings, locate, port=port))
    if is_node:
        node = images.Runtime(locate("ctr"), settings.containerd_socket, settings.containerd_blobs)
        started.wait("containerd", node.answers)
        if is_first:
            images.clear_containers(node)
        _load_pause(settings, node, locate)
    client = api(settings)
    started.wait("kube-apiserver", client.is_ready)
    started.ensure(components.controller_manager(settings, locate))
    if is_node:
        _start_node(settings, locate, started, client, inside=inside)
    started.wait("kube-controller-manager", lambda: client.exists("/api/v1/namespaces/default/serviceaccounts/default"))
    return started.names


def _start_node(
    settings: Settings, locate: components.Locate, started: "_Started", client: Api, *, inside: int | None
) -> None:
    started.ensure(components.scheduler(settings, locate))
    started.ensure(components.kubelet(settings, locate), inside=inside)
    client.apply(objects.base(settings))
    started.ensure(components.device_driver(settings, locate), inside=inside)
    started.ensure(components.kube_proxy(settings, locate))
    started.ensure(components.coredns(settings, locate))
    _offer_volumes(settings, client)
    started.wait("kubelet", lambda: _is_ready(settings))
    started.wait("dra-example-driver", lambda: bool(client.get("/apis/resource.k8s.io/v1/resourceslices")["items"]))


class _Started:
    """Starts components that do not run, and remembers which."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.processes: dict[str, Popen[bytes]] = {}
        self.began = time.monotonic()

    @property
    def names(self) -> list[str]:
        return list(self.processes)

    def ensure(self, component: Component, *, inside: int | None = None) -> None:
        if processes.running(self.settings, component) is None:
            self.processes[component.name] = processes.start(self.settings, component, inside=inside)

    def wait(self, name: str, ready: "processes.Condition") -> None:
        processes.wait_until(
            ready,
            what=name,
            seconds=self.settings.start_seconds,
            process=self.processes.get(name),
            log=processes.log_file(self.settings, name),
        )
        if name in self.processes:
            say(f"  {name}: ready after {time.monotonic() - self.began:.1f} s")


def _all_components(settings: Settings, locate: components.Locate) -> list[Component]:
    control_plane = [
        components.etcd(settings, locate),
        components.apiserver(settings, locate, port=0),
        components.controller_manager(settings, locate),
    ]
    if settings.shape is Shape.CONTROL_PLANE:
        return control_plane
    return [
        *control_plane,
        components.scheduler(settings, locate),
        components.containerd(settings, locate),
        components.kubelet(settings, locate),
        components.device_driver(settings, locate),
        components.kube_proxy(settings, locate),
        components.coredns(settings, locate),
    ]


def _write_configuration(settings: Settings, locate: components.Locate) -> None:
    resolver = Path("/etc/resolv.conf")
    has_upstream = resolver.exists() and configuration.has_name_server(resolver.read_text())
    cni_binaries = str(Path(locate("bridge")).parent)
    files = {
        "containerd.toml": configuration.containerd(settings, runc=locate("runc"), cni_binaries=cni_binaries),
        "cni/10-pods.conflist": configuration.pod_network(settings),
        "kubelet.json": configuration.kubelet(settings),
        "kube-proxy.json": configuration.kube_proxy(settings),
        "Corefile": configuration.coredns(settings, has_upstream=has_upstream),
    }
    for name, text in files.items():
        file = settings.state / name
        file.parent.mkdir(parents=True, exist_ok=True)
        # The Service proxy ends when its file is written, even with the same text.
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
    settings.container_devices.mkdir(exist_ok=True)


def _load_pause(settings: Settings, node: images.Runtime, locate: components.Locate) -> None:
    archive = settings.state / "run" / "pause.tar"
    if not archive.exists():
        images.write_pause(archive, binary=Path(locate("pause")), name=settings.pause_image)
    if not images.holds(node.images(), images.archive(archive)):
        images.load(node, str(archive), say=say)


def _offer_volumes(settings: Settings, client: Api) -> None:
    """Make missing volumes, and make those anew, emptied, whose claims are gone."""
    answer = client.get("/api/v1/persistentvolumes")
    released = objects.released_volumes(answer, settings)
    if released:
        client.delete("persistentvolumes", released)
    wanted = [*released, *objects.absent_volumes(answer, settings)]
    for name in wanted:
        folder = settings.volumes_folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        # Pods run as many different users, and none as root.
        folder.chmod(0o777)
    if wanted:
        client.apply([objects.volume(settings, name) for name in wanted])


def _end_containers(settings: Settings) -> None:
    """End the pods, and let a living containerd forget them, so that their layers do not stay on disk."""
    processes.end(cgroups.members(settings))
    node = images.Runtime(_locator(settings)("ctr"), settings.containerd_socket, settings.containerd_blobs)
    if Path(node.command).exists() and node.answers():
        try:
            images.clear_containers(node)
        except DevclusterError as error:
            say(f"  the next `up` will clear the old containers ({error})")


def _is_ready(settings: Settings) -> bool:
    client = api(settings)
    if settings.shape is Shape.CONTROL_PLANE:
        return client.is_ready()
    node = f"/api/v1/nodes/{settings.node_name}"
    try:
        # A dead kubelet's node stays Ready for a while, so the kubelet itself is asked too.
        if not client.exists(f"{node}/proxy/healthz"):
            return False
        conditions = client.get(node)["status"].get("conditions", [])
    except DevclusterError:
        return False
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _api_port(settings: Settings) -> int:
    """The node's fixed port, or the one that this control plane took at its first start."""
    if settings.shape is Shape.NODE:
        return settings.api_port
    record = settings.state / "run" / "port.json"
    if not record.exists():
        record.write_text(json.dumps(preflight.free_port()))
    port: int = json.loads(record.read_text())
    return port


def _locator(settings: Settings) -> components.Locate:
    return lambda command: str(binaries.command_path(settings.binaries, command))


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
