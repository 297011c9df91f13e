"""The store shows whole files or none, on a local file system and elsewhere."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

import pytest

from tlt_workloads.store import Store, StoreError, open_store


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store" if request.param == "file" else f"memory://{uuid.uuid4()}")


def test_what_is_written_is_read_back_and_listed(store: Store) -> None:
    store.write_atomic("a/one", b"1")
    store.write_atomic("a/two", b"22")
    store.write_atomic("a/deep/three", b"333")
    assert store.read("a/two") == b"22"
    assert [(file.name, file.size) for file in store.list("a")] == [("one", 1), ("two", 2)]
    assert store.folders("a") == ("deep",)
    assert store.size("a/deep/three") == 3
    assert store.sha256("a/two") == hashlib.sha256(b"22").hexdigest()


def test_writing_again_replaces_the_whole_file(store: Store) -> None:
    store.write_atomic("x", b"long content")
    store.write_atomic("x", b"short")
    assert store.read("x") == b"short"


def test_an_absent_folder_is_empty_and_an_absent_file_is_an_error(store: Store) -> None:
    assert store.list("nowhere") == ()
    assert store.folders("nowhere") == ()
    assert not store.exists("nowhere/file")
    with pytest.raises(FileNotFoundError):
        store.read("nowhere/file")


def test_removing_takes_files_and_folders_and_forgives_absent_ones(store: Store) -> None:
    store.write_atomic("a/one", b"1")
    store.remove("a/one")
    store.write_atomic("b/deep/two", b"2")
    store.remove("b")
    store.remove("b")
    assert not store.exists("a/one")
    assert not store.exists("b/deep/two")


def test_a_child_is_the_same_files_from_further_down(store: Store) -> None:
    store.child("namespace/job").write_atomic("one", b"1")
    assert store.read("namespace/job/one") == b"1"
    assert store.child("namespace").child("job").read("one") == b"1"
    assert open_store(store.child("namespace/job").url).read("one") == b"1"


def test_only_a_local_store_has_local_paths(tmp_path: Path) -> None:
    assert open_store(str(tmp_path)).local_path("a/b") == tmp_path / "a/b"
    assert open_store("memory://x").local_path("a/b") is None


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    store.write_atomic("x", b"old")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.write_atomic("x", b"new")
    assert store.read("x") == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_unfinished_writes_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".x.partial").write_bytes(b"half")
    assert open_store(str(tmp_path)).list("") == ()


@pytest.mark.parametrize("url", ["ftp://host/x", "nonsense://x"])
def test_an_unknown_scheme_names_the_field_and_the_choices(url: str) -> None:
    with pytest.raises(StoreError, match=r"store\.url.*use one of s3, gs, abfs, file"):
        open_store(url)


@pytest.mark.parametrize("url", ["relative/folder", "file://relative"])
def test_a_relative_path_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match=r"store\.url.*not absolute"):
        open_store(url)


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd"])
def test_a_path_cannot_leave_the_store(store: Store, path: str) -> None:
    with pytest.raises(StoreError, match="leaves the store"):
        store.read(path)
