"""The processes of a cluster: their command lines, in the order in which they start."""

from collections.abc import Callable
from dataclasses import dataclass, field

from devcluster.settings import Settings, Shape

Locate = Callable[[str], str]
"""Gives the path of a built command."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """One process."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    among_node_mounts: bool = False
    """Runs where the node's mounts are seen, apart from this machine's (mounts.py)."""


def etcd(settings: Settings, locate: Locate) -> Component:
    socket = f"unix://{settings.etcd_socket}"
    flags = {
        "data-dir": f"{settings.state}/etcd",
        # A socket in a folder of root only: no port to collide, and no one else on this machine can read secrets.
        "listen-client-urls": socket,
        # Never dialled; etcd wants them as host and port.
        "advertise-client-urls": "http://127.0.0.1:2379",
        "listen-peer-urls": f"unix://{settings.etcd_peer_socket}",
        "initial-advertise-peer-urls": "http://127.0.0.1:2380",
        "initial-cluster": "default=http://127.0.0.1:2380",
        # A cluster that `down` forgets needs no care for power cuts, and slow disks stop mattering.
        "unsafe-no-fsync": "true",
        "log-level": "warn",
    }
    return Component(name="etcd", command=_command(locate("etcd"), flags))


def apiserver(settings: Settings, locate: Locate, *, port: int) -> Component:
    certificates = settings.certificates
    flags = {
        "etcd-servers": f"unix://{settings.etcd_socket}",
        "secure-port": str(port),
        "service-cluster-ip-range": str(settings.service_network),
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "client-ca-file": f"{certificates}/ca.crt",
        "tls-cert-file": f"{certificates}/apiserver.crt",
        "tls-private-key-file": f"{certificates}/apiserver.key",
        "tls-min-version": "VersionTLS12",
        "service-account-key-file": f"{certificates}/service-account.pub",
        "service-account-signing-key-file": f"{certificates}/service-account.key",
        "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
        "allow-privileged": "true",
        "profiling": "false",
    }
    if settings.shape is Shape.CONTROL_PLANE:
        # There are no pods that would look for the API server in the endpoints of its Service.
        flags |= {
            "bind-address": "127.0.0.1",
            "advertise-address": "127.0.0.1",
            "endpoint-reconciler-type": "none",
            "cert-dir": f"{settings.state}/run",
        }
    else:
        flags |= {
            # Only this machine and its pods can reach the bridge's address: the API is not offered to the network.
            "bind-address": settings.gateway,
            "advertise-address": settings.gateway,
            "kubelet-certificate-authority": f"{certificates}/ca.crt",
            "kubelet-client-certificate": f"{certificates}/apiserver-kubelet-client.crt",
            "kubelet-client-key": f"{certificates}/apiserver-kubelet-client.key",
            "kubelet-preferred-address-types": "InternalIP",
        }
    return Component(name="kube-apiserver", command=_command(locate("kube-apiserver"), flags))


def controller_manager(settings: Settings, locate: Locate) -> Component:
    certificates = settings.certificates
    flags = {
        **_client(settings, "controller-manager"),
        "service-account-private-key-file": f"{certificates}/service-account.key",
        "root-ca-file": f"{certificates}/ca.crt",
        "cluster-signing-cert-file": f"{certificates}/ca.crt",
        "cluster-signing-key-file": f"{certificates}/ca.key",
        "use-service-account-credentials": "true",
        "leader-elect": "false",
        "secure-port": "0",
        "flex-volume-plugin-dir": f"{settings.state}/volume-plugins",
        # A machine busy with training may starve the kubelet for a while; its pods must not be evicted for it.
        "node-monitor-grace-period": "120s",
    }
    return Component(name="kube-controller-manager", command=_command(locate("kube-controller-manager"), flags))


def scheduler(settings: Settings, locate: Locate) -> Component:
    flags = {**_client(settings, "scheduler"), "leader-elect": "false", "secure-port": "0"}
    return Component(name="kube-scheduler", command=_command(locate("kube-scheduler"), flags))


def containerd(settings: Settings, locate: Locate) -> Component:
    flags = {"config": f"{settings.state}/containerd.toml"}
    command = _command(locate("containerd"), flags)
    # The runtime looks for its shim on PATH.
    path = f"{_folder(locate('containerd'))}:/usr/sbin:/usr/bin:/sbin:/bin"
    return Component(name="containerd", command=command, environment={"PATH": path}, among_node_mounts=True)


def kubelet(settings: Settings, locate: Locate) -> Component:
    flags = {
        "config": f"{settings.state}/kubelet.json",
        "kubeconfig": f"{settings.state}/kubelet.kubeconfig",
        "hostname-override": settings.node_name,
        "node-ip": settings.gateway,
        "cert-dir": f"{settings.state}/run",
    }
    return Component(name="kubelet", command=_command(locate("kubelet"), flags), among_node_mounts=True)


def kube_proxy(settings: Settings, locate: Locate) -> Component:
    return Component(
        name="kube-proxy", command=_command(locate("kube-proxy"), {"config": f"{settings.state}/kube-proxy.json"})
    )


def coredns(settings: Settings, locate: Locate) -> Component:
    return Component(name="coredns", command=(locate("coredns"), "-conf", f"{settings.state}/Corefile"))


def device_driver(settings: Settings, locate: Locate) -> Component:
    flags = {
        "kubeconfig": f"{settings.state}/dra.kubeconfig",
        "node-name": settings.node_name,
        "cdi-root": str(settings.container_devices),
        "num-devices": str(settings.devices),
    }
    return Component(
        name="dra-example-driver", command=_command(locate("dra-example-kubeletplugin"), flags), among_node_mounts=True
    )


def _client(settings: Settings, user: str) -> dict[str, str]:
    return {"kubeconfig": f"{settings.state}/{user}.kubeconfig"}


def _command(binary: str, flags: dict[str, str]) -> tuple[str, ...]:
    return (binary, *(f"--{name}={value}" for name, value in flags.items()))


def _folder(binary: str) -> str:
    return binary.rsplit("/", 1)[0]
