"""Command lines, configuration files and objects agree with each other."""

import ipaddress
import json
import tomllib
from pathlib import Path

from devcluster import certificates, components, configuration, mounts, network, objects
from devcluster.components import Component
from devcluster.settings import Settings, Shape

NODE = Settings(cache=Path("/c"))
PLANE = Settings(cache=Path("/c"), shape=Shape.CONTROL_PLANE, name="api")


def locate(command: str) -> str:
    return f"/bin/{command}"


def flags(component: Component) -> dict[str, str]:
    pairs = (word.removeprefix("--").partition("=") for word in component.command[1:])
    return {name: value for name, _, value in pairs}


def test_the_api_server_is_set_up_as_in_production() -> None:
    given = flags(components.apiserver(NODE, locate, port=6443))
    assert given["authorization-mode"] == "Node,RBAC"
    assert given["enable-admission-plugins"] == "NodeRestriction"
    assert "disable-admission-plugins" not in given
    assert "audit-log-path" not in given


def test_the_api_is_offered_to_this_machine_and_its_pods_only() -> None:
    node = flags(components.apiserver(NODE, locate, port=6443))
    plane = flags(components.apiserver(PLANE, locate, port=4000))
    assert ipaddress.ip_address(node["bind-address"]) in NODE.pod_network
    assert plane["bind-address"] == "127.0.0.1"
    assert plane["secure-port"] == "4000"


def test_etcd_is_reached_through_a_socket_in_the_clusters_own_folder() -> None:
    for settings in (NODE, PLANE):
        etcd = flags(components.etcd(settings, locate))
        server = flags(components.apiserver(settings, locate, port=1))
        assert etcd["listen-client-urls"] == server["etcd-servers"] == f"unix://{settings.etcd_socket}"


def test_every_certificate_that_a_component_reads_is_issued() -> None:
    for settings in (NODE, PLANE):
        issued = {certificate.file for certificate in certificates.wanted(settings)} | {"ca"}
        parts = [components.apiserver(settings, locate, port=1), components.controller_manager(settings, locate)]
        if settings.shape is Shape.NODE:
            parts += [components.scheduler(settings, locate), components.device_driver(settings, locate)]
        for part in parts:
            for value in flags(part).values():
                path = Path(value)
                if path.suffix == ".kubeconfig" or path.suffix == ".crt":
                    assert path.stem in issued, f"{part.name}: {value}"


def test_the_api_servers_certificate_covers_every_address_it_is_called_by() -> None:
    names = next(c.server_names for c in certificates.wanted(NODE) if c.file == "apiserver")
    for name in ("DNS:kubernetes.default.svc", "IP:127.0.0.1", f"IP:{NODE.gateway}", f"IP:{NODE.api_service}"):
        assert name in names


def test_only_the_administrator_is_above_rbac() -> None:
    masters = [c.file for c in certificates.wanted(NODE) if c.organisation == "system:masters"]
    assert masters == ["admin"]


def test_identities_that_need_rights_beyond_the_defaults_get_them() -> None:
    bound = {item["subjects"][0]["name"] for item in objects.base(NODE) if item["kind"] == "ClusterRoleBinding"}
    assert bound == {configuration.DNS_USER, configuration.DEVICE_DRIVER_USER, configuration.KUBELET_CLIENT}


def test_containerd_reads_device_files_where_the_driver_writes_them() -> None:
    parsed = tomllib.loads(configuration.containerd(NODE, runc="/bin/runc", cni_binaries="/bin"))
    runtime = parsed["plugins"]["io.containerd.cri.v1.runtime"]
    driver = flags(components.device_driver(NODE, locate))
    assert runtime["cdi_spec_dirs"] == [driver["cdi-root"]]
    assert runtime["enable_cdi"] is True


def test_containerd_keeps_layers_in_the_cache_and_all_else_in_the_state() -> None:
    text = configuration.containerd(NODE, runc="/bin/runc", cni_binaries="/bin")
    parsed = tomllib.loads(text)
    assert parsed["root"] == str(NODE.containerd_root)
    assert parsed["plugins"]["io.containerd.cri.v1.runtime"]["cni"]["conf_dir"].startswith(str(NODE.state))
    assert parsed["plugins"]["io.containerd.internal.v1.opt"]["path"].startswith(str(NODE.state))
    assert "/run/containerd" in configuration.NODE_FOLDERS


def test_the_node_sees_the_runtimes_socket_where_this_machine_has_it() -> None:
    seen = tomllib.loads(configuration.containerd(NODE, runc="", cni_binaries=""))["grpc"]["address"]
    source = mounts.sources(NODE)["/run/containerd"]
    assert source / Path(seen).relative_to("/run/containerd") == NODE.containerd_socket
    assert json.loads(configuration.kubelet(NODE))["containerRuntimeEndpoint"] == f"unix://{seen}"


def test_every_folder_that_the_node_writes_outside_the_cache_is_replaced_by_ours() -> None:
    for source in mounts.sources(NODE).values():
        assert source.is_relative_to(NODE.state)


def test_the_kubelet_keeps_images_and_reserves_nothing() -> None:
    parsed = json.loads(configuration.kubelet(NODE))
    assert parsed["imageGCHighThresholdPercent"] == 100
    assert not {"kubeReserved", "systemReserved", "allowedUnsafeSysctls", "maxPods"} & set(parsed)
    assert parsed["authentication"]["anonymous"]["enabled"] is False


def test_pods_ask_the_name_server_that_the_service_leads_to() -> None:
    service, endpoints = (item for item in objects.base(NODE) if item["metadata"]["name"] == "kube-dns")
    assert json.loads(configuration.kubelet(NODE))["clusterDNS"] == [service["spec"]["clusterIP"]]
    corefile = configuration.coredns(NODE, has_upstream=True)
    assert corefile.startswith(f".:{endpoints['ports'][0]['port']} {{")
    assert f"bind {endpoints['endpoints'][0]['addresses'][0]}" in corefile


def test_without_a_resolver_on_the_machine_only_cluster_names_are_answered() -> None:
    assert "forward" not in configuration.coredns(NODE, has_upstream=False)
    assert configuration.has_name_server("search x\nnameserver 192.0.2.53\n")
    assert not configuration.has_name_server("# nameserver 192.0.2.53\nsearch x\n")


def test_the_pods_gateway_is_the_bridges_address() -> None:
    bridge = json.loads(configuration.pod_network(NODE))["plugins"][0]
    assert bridge["bridge"] == NODE.bridge
    assert bridge["ipam"]["ranges"][0][0] == {"subnet": str(NODE.pod_network), "gateway": NODE.gateway}
    assert f"ip saddr {NODE.pod_network}" in network.way_out(NODE)


def test_volumes_can_be_shared_and_are_made_anew_when_released() -> None:
    volumes = [objects.volume(NODE, name) for name in objects.volume_names(NODE)]
    assert len(volumes) == 32
    assert "ReadWriteMany" in volumes[0]["spec"]["accessModes"]
    volumes[3]["status"] = {"phase": "Released"}
    volumes[4]["status"] = {"phase": "Bound"}
    foreign = {"metadata": {"name": "somebody-elses"}, "status": {"phase": "Released"}}
    answer = {"items": [*volumes[2:], foreign]}
    assert objects.released_volumes(answer, NODE) == ["devcluster-03"]
    assert objects.absent_volumes(answer, NODE) == ["devcluster-00", "devcluster-01"]
