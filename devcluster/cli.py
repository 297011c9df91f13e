"""What users type and read."""

import argparse
import sys
from collections.abc import Callable, Sequence

from devcluster import access, binaries, builds, guard, images, lifecycle, toolchain
from devcluster.errors import DevclusterError
from devcluster.progress import say
from devcluster.settings import Settings, control_plane_settings, node_settings

FAILED, USAGE = 1, 2
"""Exit statuses; 0 is success. `status` fails when the cluster is not up."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        the exit status.
    """
    parsed = parser().parse_args(arguments)
    verb: Callable[[argparse.Namespace], int] = parsed.verb
    try:
        return verb(parsed)
    except DevclusterError as error:
        print(f"devcluster: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("devcluster: interrupted; `up` goes on from here, `down` removes it", file=sys.stderr)
        return FAILED


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="devcluster", description="A real one-node Kubernetes on this machine.")
    verbs = top.add_subparsers(metavar="VERB", required=True)

    tools = verbs.add_parser("tools", help="install the Debian packages that builds and cluster need")
    tools.add_argument("--no-images", action="store_true", help="without the tools that build container images")
    tools.set_defaults(verb=_tools)

    build = verbs.add_parser("build", help="build the binaries that are missing from the cache")
    names = [module.name for module in binaries.MODULES]
    others = [module.name for module in binaries.MODULES if module.only_by_name]
    choice = f"one of {', '.join(names)}; default: all but {' and '.join(others)}"
    build.add_argument("modules", nargs="*", metavar="MODULE", help=choice)
    build.set_defaults(verb=_build)

    for name, verb, words in (
        ("up", _up, "start the cluster, or repair it"),
        ("down", _down, "remove the cluster and every trace of it"),
        ("status", _status, "say what runs"),
        ("kubeconfig", _kubeconfig, "print the path of the kubeconfig"),
    ):
        command = verbs.add_parser(name, help=words)
        command.add_argument("--control-plane", action="store_true", help="only etcd, API server, controller manager")
        command.add_argument("--name", default="default", help="which control plane (default: %(default)s)")
        command.set_defaults(verb=verb)
        if name == "down":
            command.add_argument("--purge", action="store_true", help="remove binaries and image layers too")

    load = verbs.add_parser("load", help="bring images to the node")
    load.add_argument("images", nargs="+", metavar="IMAGE", help="a name in local storage, or a docker-archive")
    load.set_defaults(verb=_load)

    guard_ = verbs.add_parser("guard", help="print the context that may be used, or refuse a cluster nobody named")
    guard_.set_defaults(verb=_guard)

    path = verbs.add_parser("path", help="print the folder of the built commands (kubectl, helm, ctr, ...)")
    path.set_defaults(verb=_path)
    return top


def _settings(parsed: argparse.Namespace) -> Settings:
    return control_plane_settings(name=parsed.name) if parsed.control_plane else node_settings()


def _tools(parsed: argparse.Namespace) -> int:
    wanted = (*toolchain.COMPILING, *toolchain.RUNNING, *(() if parsed.no_images else toolchain.IMAGES))
    toolchain.install(wanted, say=say)
    return 0


def _build(parsed: argparse.Namespace) -> int:
    try:
        chosen = [binaries.module_named(name) for name in parsed.modules] or [
            module for module in binaries.MODULES if not module.only_by_name
        ]
    except KeyError as error:
        print(
            f"devcluster: no module {error}; there are {', '.join(m.name for m in binaries.MODULES)}", file=sys.stderr
        )
        return USAGE
    settings = node_settings()
    if not builds.missing(settings.binaries, chosen):
        say("every binary is built")
    lifecycle.build(settings, chosen)
    return 0


def _up(parsed: argparse.Namespace) -> int:
    lifecycle.up(_settings(parsed))
    return 0


def _down(parsed: argparse.Namespace) -> int:
    lifecycle.down(_settings(parsed), purge=parsed.purge)
    return 0


def _status(parsed: argparse.Namespace) -> int:
    settings = _settings(parsed)
    health = access.status(settings)
    for name, pid in health.components.items():
        print(f"{name:24} {f'running (pid {pid})' if pid else 'not running'}")
    print(f"{settings.shape.value:24} {'ready' if health.node_ready else 'not ready'}")
    if health.is_up:
        print(f"{'kubeconfig':24} {settings.kubeconfig}")
    return 0 if health.is_up else FAILED


def _kubeconfig(parsed: argparse.Namespace) -> int:
    print(_settings(parsed).kubeconfig)
    return 0


def _load(parsed: argparse.Namespace) -> int:
    node = access.runtime(node_settings())
    for image in parsed.images:
        images.load(node, image, say=say)
    return 0


def _guard(parsed: argparse.Namespace) -> int:
    print(guard.choose().context)
    return 0


def _path(parsed: argparse.Namespace) -> int:
    print(node_settings().commands)
    return 0
