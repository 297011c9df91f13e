"""This machine's side of the pods' network: bridge, way out, kernel settings; and how it all goes away again."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from devcluster.errors import DevclusterError
from devcluster.settings import Settings
from devcluster.toolchain import search_path

KERNEL = Path("/proc/sys")
WANTED = {
    "net/ipv4/ip_forward": "1",
    # Replies of a pod on the same bridge must pass connection tracking too, or its Service's address is not undone.
    "net/bridge/bridge-nf-call-iptables": "1",
}
"""Kernel settings that the network needs."""
CHANGED_BY_KUBELET = (
    "vm/overcommit_memory",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
"""Kernel settings that the kubelet changes without a word; `down` sets them back."""
PROXY_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))
OUR_TABLES = (("ip", "tlt-devcluster"),)
HOST_PORT_TABLES = (("inet", "cni_hostport"),)


def create(settings: Settings) -> None:
    """Make the bridge, the rule that lets pods out, and set the kernel; safe to repeat.

    Raises:
        DevclusterError: the kernel lacks bridge filtering, or a command failed.
    """
    _remember_kernel(settings)
    for name, value in WANTED.items():
        (KERNEL / name).write_text(value)
    if not (Path("/sys/class/net") / settings.bridge).exists():
        _run(["ip", "link", "add", settings.bridge, "address", _hardware_address(settings), "type", "bridge"])
    address = f"{settings.gateway}/{settings.pod_network.prefixlen}"
    _run(["ip", "addr", "replace", address, "dev", settings.bridge])
    _run(["ip", "link", "set", settings.bridge, "up"])
    _run(["nft", "-f", "-"], text=way_out(settings))


def way_out(settings: Settings) -> str:
    """Rules by which pods reach other networks under this machine's address (replaces an earlier version)."""
    pods = settings.pod_network
    return f"""table ip tlt-devcluster
delete table ip tlt-devcluster
table ip tlt-devcluster {{
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    ip saddr {pods} ip daddr != {pods} masquerade
  }}
}}
"""


def remove(settings: Settings) -> None:
    """Take away everything that `create`, the Service proxy and the network plugins made; safe to repeat."""
    links = Path("/sys/class/net")
    if (links / settings.bridge).exists():
        for port in (links / settings.bridge / "brif").iterdir():
            _run(["ip", "link", "delete", port.name], may_fail=True)  # its pod's end may be gone at this moment
        _run(["ip", "link", "delete", settings.bridge])
    if not _record(settings).exists():
        return
    for family, table in (*PROXY_TABLES, *OUR_TABLES, *HOST_PORT_TABLES):
        if _has_table(family, table):
            _run(["nft", "delete", "table", family, table])
    for name, value in json.loads(_record(settings).read_text()).items():
        if (KERNEL / name).read_text().split() != value.split():
            (KERNEL / name).write_text(value)
    _record(settings).unlink()


def foreign_proxy_tables(settings: Settings) -> list[str]:
    """nftables tables of a Service proxy that this cluster did not make."""
    if _record(settings).exists() or shutil.which("nft", path=search_path()) is None:
        return []
    return [f"{family} {table}" for family, table in PROXY_TABLES if _has_table(family, table)]


def is_made(settings: Settings) -> bool:
    """Whether something of the network is left on this machine."""
    return _record(settings).exists() or (Path("/sys/class/net") / settings.bridge).exists()


def _remember_kernel(settings: Settings) -> None:
    if not (KERNEL / "net/bridge/bridge-nf-call-iptables").exists():
        _run(["modprobe", "br_netfilter"], may_fail=True)
        if not (KERNEL / "net/bridge/bridge-nf-call-iptables").exists():
            raise DevclusterError("the kernel has no bridge filtering; `modprobe br_netfilter` must work")
    if _record(settings).exists():
        return
    names = [*WANTED, *(name for name in CHANGED_BY_KUBELET if (KERNEL / name).exists())]
    fresh = _record(settings).with_suffix(".new")
    fresh.write_text(json.dumps({name: (KERNEL / name).read_text().strip() for name in names}, indent=2))
    fresh.rename(_record(settings))


def _record(settings: Settings) -> Path:
    """The kernel's settings from before; while it exists, the tables are ours."""
    return settings.state / "kernel-before.json"


def _hardware_address(settings: Settings) -> str:
    # Fixed, or the bridge would take a new one with every pod and neighbours would lose it.
    return "0a:58:" + ":".join(f"{part:02x}" for part in settings.pod_network[1].packed)


def _has_table(family: str, table: str) -> bool:
    command = ["nft", "list", "table", family, table]
    return subprocess.run(command, capture_output=True, check=False, env={"PATH": search_path()}).returncode == 0


def _run(command: Sequence[str], *, text: str | None = None, may_fail: bool = False) -> None:
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, env={"PATH": search_path()}
        )
    except FileNotFoundError:
        if may_fail:
            return
        raise
    if done.returncode != 0 and not may_fail:
        raise DevclusterError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
