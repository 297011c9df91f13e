"""Brings only those layers of an image to the node that it lacks.

An export of an image writes every layer, five gigabytes for a change of a few kilobytes.  buildah leaves out a layer
when the OCI layout that it writes to has a file of that digest already, and containerd leaves out a layer that it holds
already.  So the layout begins with empty, sparse stand-ins for what the node has, and only real files travel.

buildah compresses what it writes to a layout, and the node then knows the layer by another digest.  That is cheap for
the last layer, our own code, and slow for gigabytes: an image that lacks more travels whole (`images.load`).
"""

import json
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import IO

from devcluster.errors import DevclusterError

TOOL = "buildah"
BLOBS = Path("blobs") / "sha256"
NAME_ANNOTATION = "io.containerd.image.name"
FEW = 1
"""Layers that are worth sending apart."""


def missing(name: str, *, held: Path) -> int:
    """How many layers of an image in buildah's storage the node lacks.

    Raises:
        DevclusterError: buildah does not know the image.
    """
    answer = subprocess.run([TOOL, "inspect", "--type", "image", name], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise DevclusterError(f"{TOOL} inspect of {name} failed: {answer.stderr.strip()[-500:]}")
    digests: list[str] = json.loads(answer.stdout)["OCIv1"]["rootfs"]["diff_ids"]
    return sum(not (held / digest.removeprefix("sha256:")).exists() for digest in digests)


def send_missing(name: str, *, held: Path, receive: list[str]) -> None:
    """Import an image of buildah's storage through a layout that lacks what the node has.

    Args:
        name: the full name, in buildah's storage and on the node.
        held: containerd's folder of blobs, one file per digest.
        receive: a command that imports an OCI archive from its standard input.

    Raises:
        DevclusterError: export or import failed.
    """
    with tempfile.TemporaryDirectory(prefix="devcluster-") as folder:
        layout = Path(folder)
        stand_in(layout, held)
        pushed = subprocess.run(
            [TOOL, "push", "--quiet", name, f"oci:{layout}:image"],
            capture_output=True,
            text=True,
            check=False,
        )
        if pushed.returncode != 0:
            raise DevclusterError(f"{TOOL} push of {name} failed: {pushed.stderr.strip()[-500:]}")
        rename(layout / "index.json", name)
        with subprocess.Popen(
            receive, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as importer:
            assert importer.stdin is not None
            assert importer.stderr is not None
            try:
                write_archive(layout, importer.stdin)
                importer.stdin.close()
            except BrokenPipeError:
                pass  # the importer says why
            complaint = importer.stderr.read().decode(errors="replace").strip()
        if importer.returncode != 0:
            raise DevclusterError(f"the node did not take {name}: {complaint[-500:]}")


def stand_in(layout: Path, held: Path) -> None:
    """Give a layout a sparse file for each blob that the node holds."""
    (layout / BLOBS).mkdir(parents=True)
    for blob in held.iterdir() if held.is_dir() else ():
        try:
            size = blob.stat().st_size
        except FileNotFoundError:  # a node that has just started drops what no image of it needs
            continue
        stand_in_file = layout / BLOBS / blob.name
        stand_in_file.touch()
        os.truncate(stand_in_file, size)


def rename(index: Path, name: str) -> None:
    """Let the layout's one image have this full name, which an OCI layout has no field for."""
    content = json.loads(index.read_text())
    content["manifests"][0]["annotations"] = {NAME_ANNOTATION: name}
    index.write_text(json.dumps(content))


def write_archive(layout: Path, output: IO[bytes]) -> None:
    """Write a layout without its stand-ins, which occupy no block on the disk."""
    with tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name in ("oci-layout", "index.json"):
            archive.add(layout / name, name)
        for blob in sorted((layout / BLOBS).iterdir()):
            if blob.stat().st_blocks:
                archive.add(blob, str(BLOBS / blob.name))
