"""What is refused before anything is changed, and how the message helps."""

import ipaddress
import os
import socket
from pathlib import Path

import pytest

from devcluster import preflight, toolchain
from devcluster.binaries import MODULES, module_named
from devcluster.errors import RefusalError
from devcluster.preflight import Facts, Listener
from devcluster.settings import Settings, Shape

NODE = Settings(cache=Path("/c"))
PLANE = Settings(cache=Path("/c"), shape=Shape.CONTROL_PLANE, name="api")
GOOD = Facts(system="linux", user_id=0, free_bytes=10, needed_bytes=10)


def facts(**changes: object) -> Facts:
    return Facts(**{**GOOD.__dict__, **changes})


def test_a_good_machine_is_accepted() -> None:
    preflight.judge(GOOD, NODE)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"system": "darwin"}, "needs Linux, this is darwin"),
        ({"user_id": 1000}, "needs root"),
        ({"has_cgroups": False}, "cgroup"),
        ({"listeners": (Listener(6443, 4711, "k3s"),)}, r"port 6443 is taken by k3s \(pid 4711\)"),
        ({"listeners": (Listener(10250, None, ""),)}, "port 10250 is taken by a process that cannot be seen"),
        ({"networks": (("wg0", ipaddress.IPv4Interface("10.214.3.1/24")),)}, r"wg0 \(10.214.3.1/24\)"),
        ({"foreign_tables": ("ip kube-proxy",)}, "ip kube-proxy"),
        ({"free_bytes": 10**9, "needed_bytes": 8 * 10**9}, "1.0 GB free, 8.0 GB are needed"),
    ],
)
def test_what_is_in_the_way_is_named_and_so_is_the_way_out(changed: dict[str, object], problem: str) -> None:
    with pytest.raises(RefusalError, match=problem) as refusal:
        preflight.judge(facts(**changed), NODE)
    assert "CLUSTER=current" in str(refusal.value)


def test_missing_tools_are_named_with_purpose_and_install_command() -> None:
    missing = tuple(tool for tool in toolchain.RUNNING if tool.package in ("nftables", "util-linux"))
    with pytest.raises(RefusalError) as refusal:
        preflight.judge(facts(missing_tools=missing), NODE)
    assert "nftables (routes Services to pods)" in str(refusal.value)
    assert "devcluster tools" in refusal.value.way_out
    assert "apt-get install util-linux nftables" in refusal.value.way_out


def test_a_control_plane_needs_no_root() -> None:
    preflight.judge(facts(user_id=1000), PLANE)


def test_space_is_asked_for_what_is_to_be_built() -> None:
    assert preflight.build_bytes(MODULES) == preflight.BUILD_BYTES
    assert preflight.build_bytes([]) == 0
    one = preflight.build_bytes([module_named("pause")])
    assert 0 < one < preflight.build_bytes([module_named("pause"), module_named("kubernetes")])


def test_networks_of_the_machine_that_do_not_overlap_are_fine() -> None:
    networks = (("eth0", ipaddress.IPv4Interface("192.0.2.2/24")), ("lo", ipaddress.IPv4Interface("127.0.0.1/8")))
    preflight.judge(facts(networks=networks), NODE)


def test_only_listeners_on_our_addresses_are_in_the_way() -> None:
    anywhere, elsewhere = "00000000", "0202000A"
    assert preflight.collides(anywhere, NODE.api_port, NODE)
    assert preflight.collides("0" * 32, NODE.kubelet_port, NODE)
    assert not preflight.collides(elsewhere, NODE.api_port, NODE)
    assert not preflight.collides(preflight.LOOPBACK, NODE.api_port, NODE)
    assert preflight.collides(preflight.LOOPBACK, NODE.proxy_health_port, NODE)
    assert not preflight.collides(anywhere, 8080, NODE)


def test_a_real_listener_is_found_with_its_process() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        settings = Settings(cache=Path("/c"), proxy_health_port=port)
        found = preflight.listeners(settings)
    assert [(listener.port, listener.pid) for listener in found if listener.port == port] == [(port, os.getpid())]


@pytest.mark.parametrize(
    ("text", "version"),
    [("go version go1.26.8 linux/amd64", (1, 26)), ("go version go1.9 linux/arm64", (1, 9)), ("nonsense", None)],
)
def test_the_toolchains_version_is_compared_as_numbers(text: str, version: tuple[int, int] | None) -> None:
    assert toolchain.go_version(text) == version
