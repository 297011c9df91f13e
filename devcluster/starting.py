"""Starts what does not run of a cluster, in the order in which the parts need each other."""

import shutil
import time
from pathlib import Path
from subprocess import Popen

from devcluster import (
    access,
    certificates,
    cgroups,
    components,
    configuration,
    images,
    mounts,
    network,
    objects,
    processes,
)
from devcluster.api import Api
from devcluster.components import Component
from devcluster.progress import say
from devcluster.settings import Settings, Shape


def start_all(settings: Settings) -> list[str]:
    """Start what does not run.

    Returns:
        names of the components that were started.
    """
    locate, started = access.locator(settings), Started(settings)
    is_node = settings.shape is Shape.NODE
    for folder in (settings.state, settings.state / "run", settings.logs):
        folder.mkdir(parents=True, exist_ok=True)
    # Keys and the socket of etcd lie here.
    settings.state.chmod(0o700)
    port = access.api_port(settings)
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
        node = access.possible_runtime(settings)
        started.wait("containerd", node.answers)
        if is_first:
            images.clear_containers(node)
        _load_pause(settings, node, locate)
    client = access.api(settings)
    started.wait("kube-apiserver", client.is_ready)
    started.ensure(components.controller_manager(settings, locate))
    if is_node:
        _start_node(settings, locate, started, client, inside=inside)
    started.wait("kube-controller-manager", lambda: client.exists("/api/v1/namespaces/default/serviceaccounts/default"))
    return started.names


def _start_node(
    settings: Settings, locate: components.Locate, started: "Started", client: Api, *, inside: int | None
) -> None:
    started.ensure(components.scheduler(settings, locate))
    started.ensure(components.kubelet(settings, locate), inside=inside)
    client.apply(objects.base(settings))
    started.ensure(components.device_driver(settings, locate), inside=inside)
    started.ensure(components.kube_proxy(settings, locate))
    started.ensure(components.coredns(settings, locate))
    _offer_volumes(settings, client)
    started.wait("kubelet", lambda: access.is_ready(settings))
    started.wait("dra-example-driver", lambda: bool(client.get("/apis/resource.k8s.io/v1/resourceslices")["items"]))


class Started:
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
