"""What is built: the pinned Go modules, the commands that each one gives, and the key of each in the cache."""

import hashlib
import platform
import re
from dataclasses import dataclass
from pathlib import Path

MODULES_FOLDER = Path(__file__).parent / "modules"
KEY_LENGTH = 12
"""Hexadecimal digits of the digest that names a build."""


@dataclass(frozen=True, kw_only=True)
class GoModule:
    """A module of ours that pins one upstream project (``modules/<name>``) and how it is built."""

    name: str
    expected_seconds: int
    """Measured on two cores with empty caches; only shown beside the elapsed time."""
    upstream: str = ""
    """The pinned Go module whose version is shown; empty when the source is ours."""
    needs_c: bool = False
    tags: str = ""
    version_variables: tuple[str, ...] = ()
    """Go variables that carry the version, as ``path.variable``; the linker sets them as upstream's build does."""
    renamed: tuple[tuple[str, str], ...] = ()
    """(name that Go gives, name that we use) where they differ."""
    needed_by_control_plane: bool = False
    needed_by_node: bool = True
    only_by_name: bool = False
    """Not built unless it is asked for: most work does without it."""

    @property
    def folder(self) -> Path:
        return MODULES_FOLDER / self.name

    @property
    def version(self) -> str:
        """The pinned version, such as ``v1.34.4``; ``own`` for our source."""
        if not self.upstream:
            return "own"
        found = re.search(
            rf"^(?:require )?\s*{re.escape(self.upstream)} (v\S+)", (self.folder / "go.mod").read_text(), re.MULTILINE
        )
        if found is None:
            raise ValueError(f"{self.folder / 'go.mod'} requires no {self.upstream}")
        return found.group(1)

    @property
    def packages(self) -> tuple[str, ...]:
        """Go packages to build: what tools.go imports, or the module itself."""
        tools = self.folder / "tools.go"
        return tuple(re.findall(r'^\s*_ "([^"]+)"', tools.read_text(), re.MULTILINE)) if tools.exists() else (".",)

    @property
    def commands(self) -> tuple[str, ...]:
        """File names of the built commands."""
        new_names = dict(self.renamed)
        names = (command_name(package) if package != "." else self.name for package in self.packages)
        return tuple(new_names.get(name, name) for name in names)

    @property
    def linker_flags(self) -> str:
        flags = ["-s", "-w"]
        for variable in self.version_variables:
            flags += ["-X", f"{variable}={self.version}"]
        return " ".join(flags)

    def key(self) -> str:
        """Names the build in the cache: changes with the pins, the source, the flags and the processor's kind."""
        digest = hashlib.sha256()
        for file in sorted(self.folder.iterdir()):
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
        options = (self.linker_flags, self.tags, str(self.needs_c), platform.machine())
        digest.update("\0".join(options).encode())
        return f"{self.name}-{digest.hexdigest()[:KEY_LENGTH]}"


MODULES = (
    GoModule(
        name="kubernetes",
        upstream="k8s.io/kubernetes",
        expected_seconds=360,
        version_variables=("k8s.io/component-base/version.gitVersion", "k8s.io/client-go/pkg/version.gitVersion"),
        needed_by_control_plane=True,
    ),
    GoModule(
        name="etcd",
        upstream="go.etcd.io/etcd/server/v3",
        expected_seconds=40,
        renamed=(("server", "etcd"),),
        needed_by_control_plane=True,
    ),
    GoModule(name="containerd", upstream="github.com/containerd/containerd/v2", expected_seconds=70),
    GoModule(name="runc", upstream="github.com/opencontainers/runc", expected_seconds=20, needs_c=True, tags="seccomp"),
    GoModule(name="cni", upstream="github.com/containernetworking/plugins", expected_seconds=15),
    GoModule(name="coredns", upstream="github.com/coredns/coredns", expected_seconds=100),
    GoModule(name="dra", upstream="sigs.k8s.io/dra-example-driver", expected_seconds=60),
    GoModule(name="pause", expected_seconds=5),
    GoModule(
        name="helm",
        upstream="helm.sh/helm/v3",
        expected_seconds=50,
        version_variables=("helm.sh/helm/v3/internal/version.version",),
        needed_by_node=False,
    ),
    GoModule(name="kwok", upstream="sigs.k8s.io/kwok", expected_seconds=100, needed_by_node=False, only_by_name=True),
    # Without the service discoveries of two dozen clouds, and without the web pages: promtool checks the alerts, and a
    # server that is told its targets scrapes the node.
    GoModule(
        name="prometheus",
        upstream="github.com/prometheus/prometheus",
        expected_seconds=120,
        tags="netgo,remove_all_sd",
        version_variables=("github.com/prometheus/common/version.Version",),
        needed_by_node=False,
        only_by_name=True,
    ),
    # An S3 server for the tests of the store. Upstream's tags are no versions of Go, so its commit is pinned.
    GoModule(
        name="seaweedfs",
        upstream="github.com/seaweedfs/seaweedfs",
        expected_seconds=360,
        needed_by_node=False,
        only_by_name=True,
    ),
)


def command_name(package: str) -> str:
    """The file name that Go gives the command of a package: the last path part that is not a major version.

    >>> command_name("go.etcd.io/etcd/server/v3")
    'server'
    """
    parts = package.split("/")
    if len(parts) > 1 and re.fullmatch(r"v[0-9]+", parts[-1]):
        parts.pop()
    return parts[-1]


def module_named(name: str) -> GoModule:
    """The module of that name.

    Raises:
        KeyError: no module is called so.
    """
    return {module.name: module for module in MODULES}[name]


def location(binaries: Path, module: GoModule) -> Path:
    """The folder of a module's built commands."""
    return binaries / module.key()


def is_built(binaries: Path, module: GoModule) -> bool:
    folder = location(binaries, module)
    return all((folder / command).exists() for command in module.commands)


def command_path(binaries: Path, command: str) -> Path:
    """Where a built command lies.

    Raises:
        KeyError: no module gives this command.
    """
    for module in MODULES:
        if command in module.commands:
            return location(binaries, module) / command
    raise KeyError(command)
