"""Container images of the node: the pause image, and images brought from this machine's own storage."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from devcluster import layers
from devcluster.errors import DevclusterError, RefusalError
from devcluster.progress import Progress

BYTES_PER_SECOND = 50e6
"""Rough speed of an import, for the expected time; measured on two busy cores with 5.4 GB."""
SECONDS_TO_CLEAR = 5.0


@dataclass(frozen=True)
class Source:
    """An image outside the node."""

    name: str
    """Full name with tag, as pods write it."""
    identity: str
    """Digest of the image's configuration (hexadecimal), which names the image's exact content."""
    size: int
    """Bytes, for the expected time."""
    export: tuple[str, ...]
    """Writes a docker-archive to standard output."""
    tool: str = ""
    """In whose storage it lies; empty for a file."""


@dataclass(frozen=True)
class Runtime:
    """The node's containerd, spoken to with its ``ctr`` command."""

    command: str
    socket: Path
    blobs: Path
    """Where containerd keeps layers, one file per digest."""

    def call(self, *arguments: str) -> str:
        """Run ``ctr`` among the images and containers that the kubelet sees.

        Raises:
            DevclusterError: it failed.
        """
        done = subprocess.run(self.line(*arguments), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DevclusterError(f"ctr {' '.join(arguments)} failed: {done.stderr.strip()[-500:]}")
        return done.stdout

    def line(self, *arguments: str) -> list[str]:
        return [self.command, "--address", str(self.socket), "--namespace", "k8s.io", *arguments]

    def answers(self) -> bool:
        if not self.socket.exists():
            return False
        return subprocess.run(self.line("version"), capture_output=True, check=False).returncode == 0

    def images(self) -> dict[str, str]:
        """Name to manifest digest; each image is also listed as ``sha256:<identity>``."""
        return parse_images(self.call("images", "list"))


def parse_images(listing: str) -> dict[str, str]:
    """Name to manifest digest, from the output of ``ctr images list``."""
    rows = (line.split() for line in listing.splitlines()[1:])
    return {row[0]: row[2] for row in rows if len(row) >= 3}


def holds(images: dict[str, str], source: Source) -> bool:
    """Whether the node has exactly this image under this name."""
    name = images.get(source.name)
    return name is not None and name == images.get(f"sha256:{source.identity}")


def superseded(images: dict[str, str]) -> list[str]:
    """References that keep an image which no name points to any more."""
    named = {digest for name, digest in images.items() if not name.startswith("sha256:")}
    return [name for name, digest in images.items() if name.startswith("sha256:") and digest not in named]


def qualified(name: str) -> str:
    """An image name as the node stores it.

    >>> qualified("python")
    'docker.io/library/python:latest'
    """
    if not re.search(r":[^/]+$", name):
        name += ":latest"
    head, slash, rest = name.partition("/")
    if not slash:
        return f"docker.io/library/{name}"
    has_registry = "." in head or ":" in head or head == "localhost"
    return name if has_registry else f"docker.io/{head}/{rest}"


def size_in_bytes(size: str) -> int:
    """Bytes in what an image tool says, with or without a unit.

    >>> size_in_bytes("5.36 GB")
    5360000000
    """
    number, _, unit = size.strip().partition(" ")
    return int(float(number) * {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}[unit.upper()])


def load(runtime: Runtime, image: str, *, say: Callable[[str], None]) -> bool:
    """Bring an image to the node unless it has it already.

    Args:
        image: a name in the storage of buildah, podman or docker, or the path of a docker-archive.

    Returns:
        whether it was imported.

    Raises:
        RefusalError: there is no such image.
        DevclusterError: export or import failed.
    """
    source = find(image)
    known = runtime.images()
    if holds(known, source):
        say(f"  {source.name}: the node has it already")
        return False
    receive = runtime.line("images", "import", "-")
    if source.tool == layers.TOOL and layers.missing(source.name, held=runtime.blobs) <= layers.FEW:
        layers.send_missing(source.name, held=runtime.blobs, receive=receive)
    else:
        with Progress() as progress, progress.job(source.name, expected_seconds=2 + source.size / BYTES_PER_SECOND):
            _pipe(source.export, receive)
    known = runtime.images()
    if not holds(known, source):
        raise DevclusterError(f"{source.name} was imported, but the node does not list sha256:{source.identity}")
    if stale := superseded(known):
        runtime.call("images", "remove", *stale)
    return True


def find(image: str) -> Source:
    """Where the image lies, and what exactly it is.

    Raises:
        RefusalError: it is neither a docker-archive nor in anybody's storage.
    """
    file = Path(image)
    if file.is_file():
        return archive(file)
    asked = []
    for tool, list_arguments, export in _STORAGES:
        if shutil.which(tool) is None:
            continue
        asked.append(tool)
        done = subprocess.run([tool, *list_arguments, image], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip():
            identity, _, size = done.stdout.splitlines()[0].partition(" ")
            name = image if tool != "docker" else qualified(image)
            stored = qualified(name) if "/" in name else f"localhost/{qualified(name).rsplit('/', 1)[1]}"
            command = tuple(word.format(image=image, name=stored) for word in export)
            return Source(stored, identity.removeprefix("sha256:"), size_in_bytes(size), command, tool)
    raise RefusalError(
        f"no image {image!r} in the storage of {', '.join(asked) or 'buildah, podman or docker (none installed)'}, "
        "and no file of that name",
        way_out="build it first, or give the path of a docker-archive",
    )


_STORAGES: Sequence[tuple[str, tuple[str, ...], tuple[str, ...]]] = (
    (
        "buildah",
        ("images", "--no-trunc", "--format", "{{.ID}} {{.Size}}"),
        ("buildah", "push", "--quiet", "{image}", "docker-archive:/dev/stdout:{name}"),
    ),
    ("podman", ("image", "inspect", "--format", "{{.Id}} {{.Size}}"), ("podman", "save", "{image}")),
    ("docker", ("image", "inspect", "--format", "{{.Id}} {{.Size}}"), ("docker", "save", "{image}")),
)


def archive(file: Path) -> Source:
    """What a docker-archive holds.

    Raises:
        RefusalError: it is no docker-archive, or does not hold exactly one named image.
    """
    try:
        with tarfile.open(file) as content:
            member = content.extractfile("manifest.json")
            manifest = json.load(member) if member else []
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise RefusalError(f"{file} is not a docker-archive ({error})", way_out="make it with `docker save`") from error
    if len(manifest) != 1 or not manifest[0].get("RepoTags"):
        raise RefusalError(
            f"{file} must hold one image with a name", way_out="`docker save NAME -o FILE` with one NAME"
        )
    identity = Path(manifest[0]["Config"]).name.removesuffix(".json")
    return Source(qualified(manifest[0]["RepoTags"][0]), identity, file.stat().st_size, ("cat", str(file)))


def write_pause(file: Path, *, binary: Path, name: str) -> None:
    """Write the image of the pod sandbox: one static program, made without any image tool.

    The same binary gives the same bytes, so that the node knows the image again.
    """
    layer = _tar({"pause": (binary.read_bytes(), 0o755)})
    config = json.dumps(
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
            "os": "linux",
            "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        },
        sort_keys=True,
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    entries = {"layer.tar": (layer, 0o644), config_name: (config, 0o644), "manifest.json": (manifest, 0o644)}
    file.write_bytes(_tar(entries))


def clear_containers(runtime: Runtime) -> None:
    """Remove the records and writable layers of containers that have ended; images stay.

    Raises:
        DevclusterError: containerd keeps one.
    """
    _clear(runtime, "tasks", "--force")
    _clear(runtime, "containers")
    _clear(runtime, "sandboxes", "--force")


def _clear(runtime: Runtime, kind: str, *options: str) -> None:
    until = time.monotonic() + SECONDS_TO_CLEAR
    while names := _listed(runtime, kind):
        try:
            runtime.call(kind, "remove", *options, *names)
        except DevclusterError:
            # containerd itself tidies up after ended containers, and may have been faster with one of them.
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _listed(runtime: Runtime, kind: str) -> list[str]:
    return [line.split()[0] for line in runtime.call(kind, "list").splitlines()[1:] if line.strip()]


def _tar(entries: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as output:
        for name, (content, mode) in entries.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), mode
            output.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _pipe(export: Sequence[str], receive: Sequence[str]) -> None:
    # Through a pipe: an archive of several gigabytes would otherwise be written to disk and read again.
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(export, stdout=subprocess.PIPE, stderr=complaints) as writer,
    ):
        done = subprocess.run(receive, stdin=writer.stdout, capture_output=True, text=True, check=False)
        assert writer.stdout is not None
        writer.stdout.close()  # lets the exporter end when the import has given up
        status = writer.wait()
        complaints.seek(0)
        words = complaints.read().decode(errors="replace").strip()
    if done.returncode != 0 or status != 0:
        raise DevclusterError(f"`{' '.join(export)}` into the node failed: {words[-500:]} {done.stderr.strip()[-500:]}")
