"""The text of every configuration file, as pure functions of the settings."""

import json
from typing import Any

from devcluster.settings import Settings

KUBELET_CLIENT = "kube-apiserver-kubelet-client"
DNS_USER = "system:coredns"
DEVICE_DRIVER_USER = "tlt:dra-example-driver"
NODE_FOLDERS = ("/var/lib/kubelet", "/run/containerd", "/var/log/pods", "/var/log/containers", "/var/lib/cni")
"""Paths that the node's programs have built in. The node sees folders of ours there, this machine sees its own."""


def kubeconfig(*, context: str, user: str, server: str, authority: str, certificate: str, key: str) -> str:
    """A kubeconfig with everything inside, so that the file can be copied; `authority` and below are base64."""
    return f"""apiVersion: v1
kind: Config
current-context: {context}
clusters:
- name: {context}
  cluster:
    server: {server}
    certificate-authority-data: {authority}
contexts:
- name: {context}
  context:
    cluster: {context}
    user: {user}
users:
- name: {user}
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
"""


def containerd(settings: Settings, *, runc: str, cni_binaries: str) -> str:
    """Configuration of the container runtime (TOML, version 3)."""
    return f"""version = 3
root = "{settings.containerd_root}"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper"]

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins.'io.containerd.internal.v1.opt']
  path = "{settings.state}/opt"

[plugins.'io.containerd.nri.v1.nri']
  disable = true

[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "{settings.pause_image}"

[plugins.'io.containerd.cri.v1.runtime']
  # Root without CAP_SYS_RESOURCE (a nested machine) may not lower the score, and every sandbox would fail.
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  netns_mounts_under_state_dir = true
  enable_cdi = true
  cdi_spec_dirs = ["{settings.container_devices}"]
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["{cni_binaries}"]
    conf_dir = "{settings.state}/cni"
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "runc"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        BinaryName = "{runc}"
        SystemdCgroup = false
"""


def pod_network(settings: Settings) -> str:
    """The network of the pods: one bridge, addresses from one range (CNI list, JSON)."""
    bridge = {
        "type": "bridge",
        "bridge": settings.bridge,
        "isGateway": True,
        # A pod may reach itself through its own Service.
        "hairpinMode": True,
        # The way out of the pod network is one rule of ours (network.py): nothing to clean up for each pod.
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": str(settings.pod_network), "gateway": settings.gateway}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    host_ports = {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": True}}
    return _json({"cniVersion": "1.0.0", "name": "tlt-devcluster", "plugins": [bridge, host_ports]})


def kubelet(settings: Settings) -> str:
    """Configuration of the kubelet (JSON is YAML).

    Nothing is reserved for the system: processor and memory are reported as they are, and pods may request them all.
    """
    certificates = settings.certificates
    return _json(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": settings.gateway,
            "port": settings.kubelet_port,
            "healthzPort": 0,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{settings.cgroup}",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "failSwapOn": False,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": f"{certificates}/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": f"{certificates}/kubelet.crt",
            "tlsPrivateKeyFile": f"{certificates}/kubelet.key",
            "clusterDNS": [settings.dns_service],
            "clusterDomain": "cluster.local",
            "resolvConf": "/etc/resolv.conf",
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            # 100 turns the collection of images off: what `load` brought cannot be pulled again.
            "imageGCHighThresholdPercent": 100,
            # New contents of mounted ConfigMaps and Secrets arrive within this time; the default is a minute.
            "syncFrequency": "10s",
            "volumePluginDir": f"{settings.state}/volume-plugins",
            "makeIPTablesUtilChains": False,
            "oomScoreAdj": 0,
        }
    )


def kube_proxy(settings: Settings) -> str:
    """Configuration of the Service proxy (JSON is YAML)."""
    return _json(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": {"kubeconfig": f"{settings.state}/kube-proxy.kubeconfig"},
            "hostnameOverride": settings.node_name,
            "clusterCIDR": str(settings.pod_network),
            "nodePortAddresses": [str(settings.pod_network)],
            "healthzBindAddress": f"127.0.0.1:{settings.proxy_health_port}",
            "metricsBindAddress": f"127.0.0.1:{settings.proxy_metrics_port}",
            # Zero leaves this machine's connection tracking as it is.
            "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "oomScoreAdj": 0,
        }
    )


def coredns(settings: Settings, *, has_upstream: bool) -> str:
    """The Corefile: names of the cluster, and all others through this machine's resolver when it has one."""
    upstream = "  forward . /etc/resolv.conf\n" if has_upstream else ""
    return f""".:{settings.dns_port} {{
  bind {settings.gateway}
  errors
  ready {settings.gateway}:{settings.dns_ready_port}
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {settings.state}/coredns.kubeconfig
    pods insecure
    fallthrough in-addr.arpa
  }}
{upstream}  cache 5
}}
"""


def has_name_server(resolver: str) -> bool:
    """Whether the text of a resolv.conf names a server."""
    return any(line.split()[:1] == ["nameserver"] for line in resolver.splitlines())


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"
