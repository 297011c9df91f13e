"""A caller can make the pod read files of its own job only."""

from __future__ import annotations

from pathlib import Path

import pytest

from tlt_workloads.rollout.locations import JobFolder, OutsideStoreError, job_folder, resolve_inside


def test_a_revision_of_the_job_is_found(tmp_path: Path) -> None:
    folder = job_folder(f"file://{tmp_path}/", "team/math")
    assert folder == f"file://{tmp_path}/team/math"
    for url in (f"{folder}/revisions/r1", f"{tmp_path}/team/math/revisions/r1"):
        assert resolve_inside(url, folder=folder) == tmp_path / "team" / "math" / "revisions" / "r1"


@pytest.mark.parametrize(
    "tail",
    ["", "/", "/..", "/../other/revisions/r1", "/revisions/../../other", "/revisions/%2e%2e/%2e%2e/other", "-evil/r1"],
)
def test_a_way_out_is_refused(tmp_path: Path, tail: str) -> None:
    folder = f"file://{tmp_path}/team/math"
    with pytest.raises(OutsideStoreError):
        resolve_inside(folder + tail, folder=folder)


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    job = tmp_path / "team" / "math"
    job.mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (job / "revision").symlink_to(tmp_path / "secret")
    with pytest.raises(OutsideStoreError):
        resolve_inside(str(job / "revision"), folder=str(job))


@pytest.mark.parametrize("url", ["https://example.com/r1", "file://host/r1", "relative/r1", "s3://bucket/r1"])
def test_other_places_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(OutsideStoreError, match="not on a mounted volume"):
        resolve_inside(url, folder=str(tmp_path))


@pytest.mark.parametrize("tail", ["\0", "/r1\0", "/loop", "/loop/r1"])
def test_what_cannot_be_a_path_is_refused(tmp_path: Path, tail: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OutsideStoreError):
        resolve_inside(f"{tmp_path}{tail}", folder=str(tmp_path))


@pytest.mark.parametrize("url", ["file://[x", "//[", "file://host]/r1"])
def test_what_cannot_be_a_url_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(OutsideStoreError):
        resolve_inside(url, folder=str(tmp_path))


def test_before_the_job_is_known_nothing_is_read() -> None:
    with pytest.raises(OutsideStoreError, match="TLT_STORE_URL"):
        JobFolder(None).resolve("/etc/passwd")
