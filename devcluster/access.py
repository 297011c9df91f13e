"""How a cluster is looked at and spoken to: its commands, its API server, its container runtime, its health."""

import json
from dataclasses import dataclass

from devcluster import binaries, components, images, preflight, processes
from devcluster.api import Api
from devcluster.components import Component
from devcluster.errors import DevclusterError
from devcluster.settings import Settings, Shape


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


def status(settings: Settings) -> Health:
    """Which components run, and whether the cluster is ready."""
    locate = locator(settings)
    found = {}
    for component in all_components(settings, locate):
        process = processes.running(settings, component)
        found[component.name] = process.pid if process else None
    ready = settings.kubeconfig.exists() and found["kube-apiserver"] is not None and is_ready(settings)
    return Health(components=found, node_ready=ready)


def is_ready(settings: Settings) -> bool:
    """Whether the node takes pods, or the control plane answers."""
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


def api(settings: Settings) -> Api:
    """The cluster's API server."""
    return Api(
        host=settings.api_host,
        port=api_port(settings),
        certificates=settings.certificates,
        kubectl=locator(settings)("kubectl"),
        kubeconfig=settings.kubeconfig,
    )


def api_port(settings: Settings) -> int:
    """The node's fixed port, or the one that this control plane took at its first start."""
    if settings.shape is Shape.NODE:
        return settings.api_port
    record = settings.state / "run" / "port.json"
    if not record.exists():
        record.write_text(json.dumps(preflight.free_port()))
    port: int = json.loads(record.read_text())
    return port


def possible_runtime(settings: Settings) -> images.Runtime:
    """The node's container runtime, whether or not it runs."""
    return images.Runtime(locator(settings)("ctr"), settings.containerd_socket, settings.containerd_blobs)


def runtime(settings: Settings) -> images.Runtime:
    """The node's container runtime.

    Raises:
        DevclusterError: it does not run.
    """
    node = possible_runtime(settings)
    if not node.answers():
        raise DevclusterError("the node does not run; `python3 -m devcluster up` starts it")
    return node


def all_components(settings: Settings, locate: components.Locate) -> list[Component]:
    """The processes that make up the cluster."""
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


def locator(settings: Settings) -> components.Locate:
    """Finds the built commands."""
    return lambda command: str(binaries.command_path(settings.binaries, command))
