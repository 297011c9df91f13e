"""A caller can make the pod read files of its own job only."""

from __future__ import annotations

from pathlib import Path

import pytest
import s3fs
from hypothesis import given
from hypothesis import strategies as st

from tlt_workloads.rollout.locations import JobFolder, OutsideStoreError, job_folder, object_inside, resolve_inside
from tlt_workloads.rollout.mounted_folder import MountedFolder
from tlt_workloads.rollout.object_folder import ObjectFolder

BUCKET = "s3://rl-runs/tlt/team/math"


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
    for read in (JobFolder(None).resolve, JobFolder(None).folder):
        with pytest.raises(OutsideStoreError, match="TLT_STORE_URL"):
            read("/etc/passwd")


def test_the_store_decides_where_a_revision_is_looked_for(tmp_path: Path) -> None:
    assert JobFolder(f"file://{tmp_path}").folder(f"{tmp_path}/r1") == MountedFolder(tmp_path / "r1")
    assert JobFolder(BUCKET).folder(f"{BUCKET}/revisions/r1/") == ObjectFolder(f"{BUCKET}/revisions/r1")
    for location in (f"file://{tmp_path}/r1", "/etc"):
        with pytest.raises(OutsideStoreError, match="not below the job's folder s3://rl-runs"):
            JobFolder(BUCKET).folder(location)


def test_policies_by_file_need_a_volume() -> None:
    with pytest.raises(OutsideStoreError, match="send the weights by NCCL, or give the job a file:/// store"):
        JobFolder(BUCKET).resolve(f"{BUCKET}/policy/p.safetensors")


@pytest.mark.parametrize(
    "url",
    [
        BUCKET,
        f"{BUCKET}/",
        "s3://rl-runs/tlt/team/other/revisions/r1",
        "s3://rl-runs/tlt/team/math-evil/revisions/r1",
        "s3://another/tlt/team/math/revisions/r1",
        "s3://rl-runs@another/tlt/team/math/revisions/r1",
        "S3://rl-runs/tlt/team/math/revisions/r1",
        "s3a://rl-runs/tlt/team/math/revisions/r1",
        "gs://rl-runs/tlt/team/math/revisions/r1",
        "https://rl-runs/tlt/team/math/revisions/r1",
        "s3://rl-runs//tlt/team/math/revisions/r1",
        "s3://rl-runs/tlt/./team/math/revisions/r1",
        f"{BUCKET}//revisions/r1",
        f"{BUCKET}/../other/r1",
        f"{BUCKET}/revisions/../../other",
        f"{BUCKET}/revisions/%2e%2e/%2e%2e/other",
        f"{BUCKET}/revisions/r1?versionId=1",
        f"{BUCKET}/revisions/r1#x",
        f"{BUCKET}/revisions/r1::file:///etc",
        f"{BUCKET}/revisions/.r1",
        f"{BUCKET}/revisions/r*",
        f"{BUCKET}/revisions\\r1",
        f"{BUCKET}/revisions/r1\n",
        f"{BUCKET}/{'r' * 1024}",
        f"simplecache::{BUCKET}/r1",
    ],
)
def test_other_objects_are_refused_with_what_to_write(url: str) -> None:
    with pytest.raises(OutsideStoreError, match=rf"name {BUCKET}/revisions/<revision>"):
        object_inside(url, folder=BUCKET)


@pytest.mark.parametrize("folder", ["s3://key:secret@rl-runs/tlt/team/math", "s3://rl-runs/tlt?token=secret/team/math"])
def test_a_store_with_credentials_in_its_url_is_refused_and_not_repeated(folder: str) -> None:
    with pytest.raises(OutsideStoreError) as refused:
        object_inside(f"{folder}/revisions/r1", folder=folder)
    assert "secret@" not in str(refused.value)
    assert "token" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["s3://key:secret@rl-runs/r1", f"{BUCKET}/r1?token=secret", "https://key:secret@host/r1"]
)
def test_credentials_in_a_location_are_not_repeated(tmp_path: Path, url: str) -> None:
    for folder in (BUCKET, str(tmp_path)):
        with pytest.raises(OutsideStoreError) as refused:
            JobFolder(folder).folder(url)
        assert "secret" not in str(refused.value)


NASTY = (
    "..",
    ".",
    "/",
    "//",
    "%2e%2e",
    "%2F",
    "\\",
    "?versionId=1",
    "#x",
    "@",
    "key:secret@",
    "::",
    "file:///etc",
    "*",
    "[",
)
PLAIN = ("revisions", "r1", "math-r12", " ", "\n", "\0", "é", "s3://another/")
PIECES = st.sampled_from(NASTY + PLAIN)


@given(st.sampled_from([BUCKET, "s3://rl-runs", "s3://", ""]), st.lists(PIECES | st.text(max_size=5), max_size=6))
def test_whatever_is_accepted_is_below_the_folder_for_every_reader(start: str, pieces: list[str]) -> None:
    url = start + "/" + "".join(pieces)
    try:
        found = object_inside(url, folder=BUCKET)
    except OutsideStoreError:
        return
    bucket, key, version = s3fs.S3FileSystem().split_path(s3fs.S3FileSystem._strip_protocol(found))
    assert (bucket, version) == ("rl-runs", None)
    parts = key.split("/")
    assert parts[:3] == ["tlt", "team", "math"]
    assert len(parts) > 3
    assert not [part for part in parts if not part or part.startswith(".") or "%" in part]
    assert object_inside(found, folder=BUCKET) == found


@given(
    st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True),
    st.integers(min_value=1, max_value=10**6),
    st.sampled_from(
        ["s3://rl-runs", "s3://rl-runs/", "s3://rl-runs/a/b%20c/", "abfs://box@account.dfs.core.windows.net/x"]
    ),
)
def test_whatever_a_trainer_publishes_is_found(job: str, number: int, store: str) -> None:
    folder = job_folder(store, f"team/{job}")
    url = f"{folder}/revisions/{job}-r{number}"
    assert object_inside(url, folder=folder) == url
