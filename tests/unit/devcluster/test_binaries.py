"""What is built, and when it is built again."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from devcluster import binaries, builds
from devcluster.binaries import MODULES, GoModule


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GoModule:
    """The etcd module in a folder that a test may change."""
    monkeypatch.setattr(binaries, "MODULES_FOLDER", tmp_path)
    etcd = binaries.module_named("etcd")
    shutil.copytree(Path(binaries.__file__).parent / "modules", tmp_path, dirs_exist_ok=True)
    return etcd


def test_every_command_that_a_cluster_runs_is_built() -> None:
    commands = {command for module in MODULES for command in module.commands}
    assert commands == {
        *("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"),
        *("etcd", "containerd", "containerd-shim-runc-v2", "ctr", "runc", "coredns", "pause", "kwok", "helm"),
        *("bridge", "host-local", "loopback", "portmap", "dra-example-kubeletplugin"),
        *("prometheus", "promtool", "weed"),
    }


def test_no_command_is_built_twice() -> None:
    commands = [command for module in MODULES for command in module.commands]
    assert len(commands) == len(set(commands))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_every_module_pins_its_upstream_and_the_sums_of_all_it_needs(module: GoModule) -> None:
    assert module.version == "own" or re.fullmatch(r"v\d+\.\d+\.\d+(-\d{14}-[0-9a-f]{12})?", module.version)
    assert not module.upstream or (module.folder / "go.sum").stat().st_size > 0


def test_the_key_changes_with_pins_source_and_flags(module: GoModule) -> None:
    keys = {module.key(), dataclasses.replace(module, tags="other").key()}
    for file in ("go.mod", "go.sum", "tools.go"):
        path = module.folder / file
        path.write_text(path.read_text() + "\n")
        keys.add(module.key())
    assert len(keys) == 5


def test_the_key_stays_when_only_the_expected_time_changes(module: GoModule) -> None:
    assert dataclasses.replace(module, expected_seconds=1).key() == module.key()


def test_a_build_counts_only_when_all_its_commands_are_there(tmp_path: Path) -> None:
    containerd = binaries.module_named("containerd")
    folder = binaries.location(tmp_path, containerd)
    folder.mkdir()
    (folder / "ctr").touch()
    assert containerd in builds.missing(tmp_path, MODULES)
    for command in containerd.commands:
        (folder / command).touch()
    assert containerd not in builds.missing(tmp_path, MODULES)


def test_the_slowest_build_starts_first(tmp_path: Path) -> None:
    seconds = [module.expected_seconds for module in builds.missing(tmp_path, MODULES)]
    assert seconds == sorted(seconds, reverse=True)


def test_kubernetes_is_linked_with_its_version(tmp_path: Path) -> None:
    command = builds.arguments(binaries.module_named("kubernetes"), go=Path("/go"), output=tmp_path)
    linker = command[command.index("-ldflags") + 1]
    assert f"-X k8s.io/component-base/version.gitVersion={binaries.module_named('kubernetes').version}" in linker


def test_runc_is_built_with_the_filter_of_system_calls(tmp_path: Path) -> None:
    runc = binaries.module_named("runc")
    command = builds.arguments(runc, go=Path("/go"), output=tmp_path)
    assert command[command.index("-tags") + 1] == "seccomp"
    assert runc.needs_c


def test_links_follow_the_newest_build(tmp_path: Path, module: GoModule) -> None:
    def fake_build() -> Path:
        command = binaries.location(tmp_path / "bin", module) / "etcd"
        command.parent.mkdir(parents=True)
        command.touch()
        return command

    old = fake_build()
    assert (builds.link_commands(tmp_path) / "etcd").resolve() == old
    (module.folder / "tools.go").write_text((module.folder / "tools.go").read_text() + "\n")
    new = fake_build()
    assert (builds.link_commands(tmp_path) / "etcd").resolve() == new != old
