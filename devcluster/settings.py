"""Every name, address, folder and limit of a cluster, in one frozen place."""

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from devcluster.errors import RefusalError

CONTEXT = "tlt-devcluster"
LONGEST_SOCKET_PATH = 107
"""Characters; a limit of the kernel."""


class Shape(Enum):
    """How much of a cluster runs."""

    NODE = "node"
    """Everything: control plane, one node, network, devices, volumes. One a machine; needs root."""
    CONTROL_PLANE = "control plane"
    """etcd, API server and controller manager only. Any number a machine, told apart by name; needs no root."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One cluster on this machine."""

    cache: Path
    """Holds binaries, image layers and the state of running clusters."""
    shape: Shape = Shape.NODE
    name: str = ""
    """Tells control planes apart; empty for the node."""

    node_name: str = "devcluster"
    devices: int = 2
    """Emulated accelerators that the node offers; each stands for one processor core."""
    volumes: int = 32
    volume_size: str = "50Gi"
    """What a volume claims to hold; nothing enforces it."""
    storage_class: str = "devcluster"
    pause_image: str = "localhost/pause:dev"

    pod_network: ipaddress.IPv4Network = field(default=ipaddress.IPv4Network("10.214.0.0/16"))
    service_network: ipaddress.IPv4Network = field(default=ipaddress.IPv4Network("10.215.0.0/16"))
    bridge: str = "tlt-devcluster"
    """At most 15 characters: a limit of the kernel."""
    api_port: int = 6443
    """Of the node's API server. A control plane takes a free port and remembers it."""
    kubelet_port: int = 10250
    dns_port: int = 10053
    dns_ready_port: int = 10054
    proxy_health_port: int = 10256
    proxy_metrics_port: int = 10249

    start_seconds: float = 90.0
    """How long one component may take to become ready before `up` gives up. A loaded machine is slow."""

    def __post_init__(self) -> None:
        if self.shape is Shape.CONTROL_PLANE and not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,22}[a-z0-9])?", self.name):
            raise RefusalError(
                f"--name {self.name!r} cannot name a control plane",
                way_out="use 1 to 24 lower-case letters, digits and inner hyphens",
            )
        longest = max(len(str(path)) for path in (self.etcd_socket, self.etcd_peer_socket, self.containerd_socket))
        if longest > LONGEST_SOCKET_PATH:
            raise RefusalError(
                f"the path of the cache folder {self.cache} is {longest - LONGEST_SOCKET_PATH} characters too long "
                "for sockets below it",
                way_out="set TLT_CACHE to a folder with a shorter path",
            )

    @property
    def context(self) -> str:
        """Name of the kubeconfig context."""
        return CONTEXT if self.shape is Shape.NODE else f"{CONTEXT}-{self.name}"

    @property
    def state(self) -> Path:
        """Everything that `down` removes. Its path also marks the cluster's processes."""
        return self.cache / "cluster" if self.shape is Shape.NODE else self.cache / "planes" / self.name

    @property
    def kubeconfig(self) -> Path:
        return self.state / "admin.kubeconfig"

    @property
    def certificates(self) -> Path:
        return self.state / "pki"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def etcd_socket(self) -> Path:
        return self.state / "etcd.sock"

    @property
    def etcd_peer_socket(self) -> Path:
        """etcd insists on listening for peers, even alone."""
        return self.state / "peer.sock"

    @property
    def node_run(self) -> Path:
        """What the node's processes see as /run/containerd."""
        return self.state / "node-run"

    @property
    def containerd_socket(self) -> Path:
        """The runtime's socket as this machine sees it."""
        return self.node_run / "containerd.sock"

    @property
    def container_devices(self) -> Path:
        """Container Device Interface files that the device driver writes and containerd reads."""
        return self.state / "cdi"

    @property
    def volumes_folder(self) -> Path:
        return self.state / "volumes"

    @property
    def containerd_root(self) -> Path:
        """Image layers: kept by `down`, so that the next `up` imports nothing again."""
        return self.cache / "containerd"

    @property
    def containerd_blobs(self) -> Path:
        """One file per layer, configuration and manifest of the node's images, named by digest."""
        return self.containerd_root / "io.containerd.content.v1.content" / "blobs" / "sha256"

    @property
    def binaries(self) -> Path:
        return self.cache / "bin"

    @property
    def commands(self) -> Path:
        """Links to the newest build of every command (kubectl, helm, ctr, ...): a folder for PATH."""
        return self.cache / "commands"

    @property
    def cgroup(self) -> str:
        """Parent, in every cgroup hierarchy, of all pods of the node."""
        return "tlt-devcluster"

    @property
    def build_logs(self) -> Path:
        return self.cache / "build-logs"

    @property
    def go(self) -> Path:
        """The Go toolchain of a machine that has none."""
        return self.cache / "go"

    @property
    def gateway(self) -> str:
        """The node's address on the pod network. Nothing outside this machine can route to it."""
        return str(self.pod_network[1])

    @property
    def api_host(self) -> str:
        """The API server's own address. The bridge's can be reached by this machine and its pods, and nobody else."""
        return self.gateway if self.shape is Shape.NODE else "127.0.0.1"

    @property
    def api_service(self) -> str:
        return str(self.service_network[1])

    @property
    def dns_service(self) -> str:
        return str(self.service_network[10])

    @property
    def gateway_ports(self) -> tuple[int, ...]:
        """TCP ports that a node listens on at the bridge's address."""
        return (self.api_port, self.kubelet_port, self.dns_port, self.dns_ready_port)

    @property
    def loopback_ports(self) -> tuple[int, ...]:
        """TCP ports that a node listens on at 127.0.0.1."""
        return (self.proxy_health_port, self.proxy_metrics_port)


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """The cache folder that the environment names: TLT_CACHE, else the user's cache folder."""
    if named := environment.get("TLT_CACHE"):
        return Path(named).expanduser().absolute()
    base = environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME", "/root")) / ".cache"
    return Path(base).absolute() / "tlt-operator"


def node_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """The full cluster of this machine."""
    return Settings(cache=cache_folder(environment))


def control_plane_settings(*, name: str, environment: Mapping[str, str] = os.environ) -> Settings:
    """A control plane without a node."""
    return Settings(cache=cache_folder(environment), shape=Shape.CONTROL_PLANE, name=name)
