"""A rollout pod reads drafters from a real S3 server, and says what is wrong when it cannot."""

from __future__ import annotations

import contextlib
import datetime
import warnings

import pytest
import torch

from tests.store.conftest import sign_in
from tests.support.eventually import eventually
from tests.support.object_store import BUCKET, SECRET_KEY, ObjectStore
from tlt_workloads.contract import DrafterRefusal, Evaluation, RevisionManifest
from tlt_workloads.drafter import DrafterConfig
from tlt_workloads.rollout import object_folder
from tlt_workloads.rollout.locations import JobFolder
from tlt_workloads.rollout.revision_files import find_revision, read_shape, read_tensors
from tlt_workloads.rollout.revision_folder import MissingFileError, RefusedDrafterError, RevisionFolder
from tlt_workloads.store import open_store

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch warns of itself while speculators is imported
    from tlt_workloads.trainer.publish import publish_revision

MOST = 1 << 20


@pytest.fixture
def published(url: str, tiny_drafter: tuple[DrafterConfig, dict[str, torch.Tensor]]) -> RevisionManifest:
    """What a trainer wrote into the job's folder, which is `url`."""
    config, tensors = tiny_drafter
    evaluation = Evaluation(accept_length=2.0, standard_error=0.1, parent_accept_length=None, sequences=8, tokens=1000)
    return publish_revision(
        open_store(url),
        job="team/job",
        tensors=tensors,
        config=config,
        parent=None,
        policy_versions=(1, 7),
        trained_tokens=1000,
        evaluation=evaluation,
        now=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    )


@pytest.fixture
def folder(url: str, published: RevisionManifest) -> RevisionFolder:
    return JobFolder(url).folder(f"{url}/revisions/{published.revision}")


def refusal(folder: RevisionFolder, name: str = "model.safetensors") -> RefusedDrafterError:
    with pytest.raises(RefusedDrafterError) as caught:
        folder.read(name, most=MOST)
    return caught.value


def read_again(folder: RevisionFolder) -> bytes | None:
    """None while the store is not there; its parts come back one after the other."""
    with contextlib.suppress(RefusedDrafterError):
        return folder.read("model.safetensors", most=MOST)
    return None


def test_what_a_trainer_publishes_is_read(
    folder: RevisionFolder,
    published: RevisionManifest,
    tiny_drafter: tuple[DrafterConfig, dict[str, torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, tensors = tiny_drafter
    monkeypatch.setattr(object_folder, "PIECE", 10_000)
    found = find_revision(folder)
    assert (found.location, found.trained_to) == (folder.location, 7)
    assert read_shape(folder, own=config) == config
    read = read_tensors(folder, sha256=published.sha256, config=config)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(RefusedDrafterError) as caught:
        read_tensors(folder, sha256="0" * 64, config=config)
    assert caught.value.reason is DrafterRefusal.DIGEST_MISMATCH


def test_the_store_says_that_something_is_missing(url: str, folder: RevisionFolder) -> None:
    assert isinstance(refusal(folder, "other"), MissingFileError)
    absent = JobFolder(url).folder(f"{url}/revisions/absent")
    assert isinstance(refusal(absent), MissingFileError)
    assert find_revision(absent).trained_to is None


def test_a_folder_and_a_large_object_are_refused(url: str) -> None:
    store = open_store(url)
    store.write_atomic("revisions/r1/model.safetensors/inner", b"1")
    store.write_atomic("revisions/r2/model.safetensors", bytes(MOST + 1))
    assert refusal(JobFolder(url).folder(f"{url}/revisions/r1")).reason is DrafterRefusal.NOT_A_FILE
    assert refusal(JobFolder(url).folder(f"{url}/revisions/r2")).reason is DrafterRefusal.TOO_LARGE


def test_wrong_credentials_are_named_and_not_told(
    folder: RevisionFolder, server: ObjectStore, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = "another-secret-that-nobody-must-see"
    sign_in(monkeypatch, server, secret=wrong)
    error = refusal(folder)
    assert error.reason is DrafterRefusal.UNREADABLE
    assert "look at the credentials in spec.store.secretRef" in str(error)
    with pytest.raises(RefusedDrafterError):
        find_revision(folder)
    heard = [str(error), *capfd.readouterr()]
    assert not [text for text in heard if wrong in text or SECRET_KEY in text]


@pytest.mark.usefixtures("fresh_server")
def test_a_bucket_of_somebody_else() -> None:
    url = "s3://another-bucket/tlt"
    assert BUCKET not in url
    error = refusal(JobFolder(url).folder(f"{url}/revisions/r1"))
    assert error.reason is DrafterRefusal.UNREADABLE


def test_a_server_that_goes_and_comes_back(folder: RevisionFolder, server: ObjectStore) -> None:
    before = folder.read("model.safetensors", most=MOST)
    server.stop()
    try:
        error = refusal(folder)
    finally:
        server.start()
    assert error.reason is DrafterRefusal.STORE_UNAVAILABLE
    assert "ask again" in str(error)
    eventually(lambda: read_again(folder) == before, deadline=60, reason="the server is back with its objects")


def test_a_server_that_does_not_answer_is_given_up(
    folder: RevisionFolder, server: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = folder.read("model.safetensors", most=MOST)
    monkeypatch.setattr(object_folder, "CALL_LIMIT", 1.0)
    server.freeze()
    try:
        error = refusal(folder)
    finally:
        server.thaw()
    assert error.reason is DrafterRefusal.STORE_UNAVAILABLE
    assert "cannot be reached" in str(error)
    monkeypatch.undo()
    sign_in(monkeypatch, server)
    assert folder.read("model.safetensors", most=MOST) == before
