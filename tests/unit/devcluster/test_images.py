"""Images are known by their content."""

import json
import tarfile
from pathlib import Path
from typing import IO

import pytest

from devcluster import images
from devcluster.errors import RefusalError

LISTING = """REF TYPE DIGEST SIZE PLATFORMS LABELS
localhost/a:dev application/vnd.oci.image.manifest.v1+json sha256:m1 1.0 MiB linux/amd64 -
sha256:c1 application/vnd.oci.image.manifest.v1+json sha256:m1 1.0 MiB linux/amd64 io.cri-containerd.image=managed
sha256:c0 application/vnd.oci.image.manifest.v1+json sha256:m0 1.0 MiB linux/amd64 io.cri-containerd.image=managed
"""


@pytest.fixture
def pause(tmp_path: Path) -> Path:
    binary = tmp_path / "pause"
    binary.write_bytes(b"a program")
    file = tmp_path / "pause.tar"
    images.write_pause(file, binary=binary, name="localhost/pause:dev")
    return file


def member(content: tarfile.TarFile, name: str) -> IO[bytes]:
    opened = content.extractfile(name)
    assert opened is not None, name
    return opened


def source(*, identity: str) -> images.Source:
    return images.Source("localhost/a:dev", identity, 0, ("true",))


def test_an_image_with_the_same_name_and_content_is_not_imported_again() -> None:
    known = images.parse_images(LISTING)
    assert images.holds(known, source(identity="c1"))


def test_an_image_with_the_same_name_and_other_content_is() -> None:
    known = images.parse_images(LISTING)
    assert not images.holds(known, source(identity="c0"))
    assert not images.holds(known, source(identity="c2"))


def test_what_no_name_points_to_any_more_is_given_up() -> None:
    assert images.superseded(images.parse_images(LISTING)) == ["sha256:c0"]


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("localhost/a", "localhost/a:latest"),
        ("localhost/a:dev", "localhost/a:dev"),
        ("registry:5000/a", "registry:5000/a:latest"),
        ("a:dev", "docker.io/library/a:dev"),
        ("team/a", "docker.io/team/a:latest"),
    ],
)
def test_names_are_written_as_the_node_stores_them(name: str, stored: str) -> None:
    assert images.qualified(name) == stored


@pytest.mark.parametrize(
    ("said", "size"), [("5.36 GB", 5_360_000_000), ("230 MB", 230_000_000), ("12 kB", 12_000), ("4711", 4711)]
)
def test_sizes_are_read_with_and_without_unit(said: str, size: int) -> None:
    assert images.size_in_bytes(said) == size


def test_the_pause_image_is_a_docker_archive_with_one_program(pause: Path) -> None:
    with tarfile.open(pause) as content:
        manifest = json.load(member(content, "manifest.json"))
        config = json.load(member(content, manifest[0]["Config"]))
        with tarfile.open(fileobj=member(content, manifest[0]["Layers"][0])) as layer:
            program = layer.getmember("pause")
    assert program.mode == 0o755
    assert config["config"]["Entrypoint"] == ["/pause"]
    assert config["config"]["User"] != "0"


def test_the_same_program_gives_the_same_image(pause: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.tar"
    images.write_pause(again, binary=tmp_path / "pause", name="localhost/pause:dev")
    assert again.read_bytes() == pause.read_bytes()


def test_an_archive_tells_name_and_identity(pause: Path) -> None:
    found = images.archive(pause)
    assert found.name == "localhost/pause:dev"
    assert len(found.identity) == 64
    assert found.size == pause.stat().st_size


def test_a_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("hello")
    with pytest.raises(RefusalError, match="not a docker-archive"):
        images.find(str(file))


def test_an_image_that_nobody_has_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RefusalError, match="no image 'localhost/none'"):
        images.find("localhost/none")
