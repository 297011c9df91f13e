"""Only the layers that the node lacks travel."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from devcluster import layers


def layout_with(tmp_path: Path, *, held: dict[str, bytes], new: dict[str, bytes]) -> Path:
    """An OCI layout as buildah leaves it: stand-ins for what the node has, real files for the rest."""
    node = tmp_path / "node"
    node.mkdir()
    for name, content in held.items():
        (node / name).write_bytes(content)
    layout = tmp_path / "layout"
    layout.mkdir()
    layers.stand_in(layout, node)
    for name, content in new.items():
        (layout / layers.BLOBS / name).write_bytes(content)
    (layout / "oci-layout").write_text("{}")
    (layout / "index.json").write_text(json.dumps({"manifests": [{"annotations": {"x": "y"}}]}))
    return layout


def test_a_stand_in_has_the_size_of_the_layer_and_none_of_its_bytes(tmp_path: Path) -> None:
    layout = layout_with(tmp_path, held={"aa": b"x" * 100_000}, new={})
    state = (layout / layers.BLOBS / "aa").stat()
    assert (state.st_size, state.st_blocks) == (100_000, 0)


def test_what_the_node_holds_is_left_out(tmp_path: Path) -> None:
    layout = layout_with(tmp_path, held={"aa": b"x" * 100_000}, new={"bb": b"new layer"})
    output = io.BytesIO()
    layers.write_archive(layout, output)
    with tarfile.open(fileobj=io.BytesIO(output.getvalue())) as archive:
        assert sorted(archive.getnames()) == ["blobs/sha256/bb", "index.json", "oci-layout"]


def test_the_image_keeps_its_full_name(tmp_path: Path) -> None:
    layout = layout_with(tmp_path, held={}, new={})
    layers.rename(layout / "index.json", "localhost/thing:dev")
    content = json.loads((layout / "index.json").read_text())
    assert content["manifests"][0]["annotations"] == {"io.containerd.image.name": "localhost/thing:dev"}


def test_a_node_without_any_image_holds_nothing(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    layout.mkdir()
    layers.stand_in(layout, tmp_path / "missing")
    assert list((layout / layers.BLOBS).iterdir()) == []
