"""Whether this machine can run the cluster: facts are gathered, then judged, before anything is changed."""

import ipaddress
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devcluster import cgroups, network, toolchain
from devcluster.binaries import MODULES, GoModule
from devcluster.errors import ANOTHER_CLUSTER, RefusalError
from devcluster.settings import Settings, Shape
from devcluster.toolchain import SystemTool

GIGABYTE = 10**9
BUILD_BYTES = 11 * GIGABYTE
"""Go's caches of downloads and compiled packages, and the binaries, for all modules; measured."""
RUN_BYTES = 2 * GIGABYTE
"""etcd, logs and small images. Images of workloads come on top: their builds say how much."""

LOOPBACK = "0100007F"
"""127.0.0.1 as /proc/net/tcp writes it: bytes from the last to the first."""


@dataclass(frozen=True)
class Listener:
    """A TCP port on which some process listens."""

    port: int
    pid: int | None
    """None when its owner cannot be seen."""
    program: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What `judge` needs to know about the machine."""

    system: str
    user_id: int
    missing_tools: tuple[SystemTool, ...] = ()
    listeners: tuple[Listener, ...] = ()
    """Of processes that are not the cluster's, on ports that the cluster wants."""
    networks: tuple[tuple[str, ipaddress.IPv4Interface], ...] = ()
    """(interface, address) of this machine, without the cluster's bridge."""
    foreign_tables: tuple[str, ...] = ()
    has_cgroups: bool = True
    free_bytes: int = 0
    needed_bytes: int = 0


def check(settings: Settings, *, to_build: Sequence[GoModule], is_running: bool) -> None:
    """Refuse what cannot work on this machine.

    Raises:
        RefusalError: the first thing in the way.
    """
    judge(gather(settings, to_build=to_build, is_running=is_running), settings)


def check_build(settings: Settings, to_build: Sequence[GoModule]) -> None:
    """Refuse a build for which a compiler, a library or space is missing.

    Raises:
        RefusalError: the first thing in the way.
    """
    tools = toolchain.missing(toolchain.COMPILING) if any(module.needs_c for module in to_build) else []
    free = shutil.disk_usage(_existing(settings.cache)).free
    facts = Facts(
        system="linux", user_id=0, missing_tools=tuple(tools), free_bytes=free, needed_bytes=build_bytes(to_build)
    )
    judge(facts, settings)


def build_bytes(modules: Sequence[GoModule]) -> int:
    """Disk space that building these modules takes. The time that compiling takes tells what it writes."""
    share = sum(module.expected_seconds for module in modules) / sum(module.expected_seconds for module in MODULES)
    return int(BUILD_BYTES * share)


def judge(facts: Facts, settings: Settings) -> None:
    """Refuse by the facts; pure.

    Raises:
        RefusalError: names the thing in the way, and the way out.
    """
    if facts.system != "linux":
        raise RefusalError(
            f"the embedded cluster needs Linux, this is {facts.system}",
            way_out="run it in a Linux virtual machine, " + ANOTHER_CLUSTER,
        )
    if settings.shape is Shape.NODE and facts.user_id != 0:
        raise RefusalError(
            "a node needs root: it makes cgroups, mounts and networks", way_out=f"use sudo, {ANOTHER_CLUSTER}"
        )
    if facts.missing_tools:
        raise toolchain.missing_message(facts.missing_tools)
    if not facts.has_cgroups:
        raise RefusalError(
            "no cgroup hierarchy is mounted", way_out=f"mount cgroup2 on /sys/fs/cgroup, {ANOTHER_CLUSTER}"
        )
    for listener in facts.listeners:
        owner = f"{listener.program} (pid {listener.pid})" if listener.pid else "a process that cannot be seen"
        raise RefusalError(f"port {listener.port} is taken by {owner}", way_out=f"stop it, {ANOTHER_CLUSTER}")
    for interface, address in facts.networks:
        for wanted in (settings.pod_network, settings.service_network):
            if address.network.overlaps(wanted):
                raise RefusalError(
                    f"interface {interface} ({address}) overlaps the cluster's network {wanted}",
                    way_out=f"disconnect that network, {ANOTHER_CLUSTER}",
                )
    if facts.foreign_tables:
        raise RefusalError(
            f"another Kubernetes keeps its Service rules here (nftables {', '.join(facts.foreign_tables)})",
            way_out=f"stop that node first, {ANOTHER_CLUSTER}",
        )
    if facts.free_bytes < facts.needed_bytes:
        raise RefusalError(
            f"{settings.cache} has {facts.free_bytes / GIGABYTE:.1f} GB free, "
            f"{facts.needed_bytes / GIGABYTE:.1f} GB are needed",
            way_out=f"free some space, set TLT_CACHE to a folder on another disk, {ANOTHER_CLUSTER}",
        )


def gather(settings: Settings, *, to_build: Sequence[GoModule], is_running: bool) -> Facts:
    """Look at the machine.

    Args:
        to_build: modules without binaries, for which compilers and space are needed.
        is_running: whether the cluster has processes; then its own ports and space are not in the way.
    """
    if not sys.platform.startswith("linux"):
        return Facts(system=sys.platform, user_id=0)
    is_node = settings.shape is Shape.NODE
    tools = toolchain.RUNNING if is_node else toolchain.CONTROL_PLANE
    if any(module.needs_c for module in to_build):
        tools = (*toolchain.COMPILING, *tools)
    fresh_node = is_node and not is_running
    needed = build_bytes(to_build) + (0 if is_running else RUN_BYTES)
    missing = tuple(toolchain.missing(tools))
    return Facts(
        system="linux",
        user_id=os.geteuid(),
        missing_tools=missing,
        listeners=tuple(listeners(settings)) if fresh_node else (),
        networks=tuple(_addresses(settings)) if fresh_node and not missing else (),
        foreign_tables=tuple(network.foreign_proxy_tables(settings)) if is_node and os.geteuid() == 0 else (),
        has_cgroups=not is_node or bool(cgroups.hierarchies(Path("/proc/self/mounts").read_text())),
        free_bytes=shutil.disk_usage(_existing(settings.cache)).free,
        needed_bytes=needed,
    )


def listeners(settings: Settings, *, processes: Path = Path("/proc")) -> list[Listener]:
    """Who listens where the node wants to."""
    sockets = {}
    for table in ("tcp", "tcp6"):
        file = processes / "self/net" / table
        for inode, (address, port) in listening_sockets(file.read_text() if file.exists() else "").items():
            if collides(address, port, settings):
                sockets[inode] = port
    owners = _owners(set(sockets), processes) if sockets else {}
    return [Listener(port, *owners.get(inode, (None, ""))) for inode, port in sorted(sockets.items())]


def listening_sockets(table: str) -> dict[int, tuple[str, int]]:
    """Socket inode to address (the kernel's hexadecimal digits) and port, for the listeners in /proc/net/tcp."""
    found = {}
    for line in table.splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A":
            address, _, port = fields[1].rpartition(":")
            found[int(fields[9])] = (address, int(port, 16))
    return found


def collides(address: str, port: int, settings: Settings) -> bool:
    """Whether a listener is in the way: it has every address, or the loopback address where the node wants that."""
    if not address.strip("0"):
        return port in (*settings.gateway_ports, *settings.loopback_ports)
    return address == LOOPBACK and port in settings.loopback_ports


def free_port() -> int:
    """A TCP port on the loopback address that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _owners(inodes: set[int], processes: Path) -> dict[int, tuple[int, str]]:
    found = {}
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    for entry in processes.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            for descriptor in (entry / "fd").iterdir():
                if (target := os.readlink(descriptor)) in wanted:
                    found[wanted[target]] = (int(entry.name), (entry / "comm").read_text().strip())
        except OSError:
            continue
    return found


def _addresses(settings: Settings) -> list[tuple[str, ipaddress.IPv4Interface]]:
    command = ["ip", "-json", "-4", "address"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": toolchain.search_path()})
    return [
        (link["ifname"], ipaddress.IPv4Interface(f"{address['local']}/{address['prefixlen']}"))
        for link in json.loads(done.stdout)
        if link.get("ifname") != settings.bridge
        for address in link["addr_info"]
    ]


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)
