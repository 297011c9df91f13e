"""A revision in an object store is read as from a volume: bounded, whole, and refused with the reason."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable

import pytest
from fsspec.exceptions import FSTimeoutError

from tlt_workloads.contract import DrafterRefusal
from tlt_workloads.rollout import object_folder
from tlt_workloads.rollout.object_folder import ObjectFolder
from tlt_workloads.rollout.revision_folder import MissingFileError, RefusedDrafterError
from tlt_workloads.store import Store, open_store

DATA = bytes(range(250))


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> ObjectFolder:
    """A folder with an object that is read in several pieces."""
    monkeypatch.setattr(object_folder, "PIECE", 64)
    folder = ObjectFolder(f"memory://{uuid.uuid4()}/job/r1")
    open_store(folder.url).write_atomic("model", DATA)
    return folder


def refusal(folder: ObjectFolder, name: str = "model", *, most: int = 1000) -> RefusedDrafterError:
    with pytest.raises(RefusedDrafterError) as caught:
        folder.read(name, most=most)
    return caught.value


def test_an_object_is_read_whole(folder: ObjectFolder) -> None:
    assert folder.read("model", most=len(DATA)) == DATA
    open_store(folder.url).write_atomic("empty", b"")
    assert folder.read("empty", most=0) == b""


def test_a_missing_object_is_told_from_a_store_that_is_gone(folder: ObjectFolder) -> None:
    error = refusal(folder, "other")
    assert isinstance(error, MissingFileError)
    assert error.reason is DrafterRefusal.UNREADABLE
    assert "not in the store, which was asked and answered" in str(error)


def test_a_folder_is_no_file(folder: ObjectFolder) -> None:
    open_store(folder.url).write_atomic("inner/x", b"1")
    assert refusal(folder, "inner").reason is DrafterRefusal.NOT_A_FILE


def test_an_object_that_is_too_large_is_not_read(folder: ObjectFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "read", lambda *_, **__: pytest.fail("it was read"))
    error = refusal(folder, most=len(DATA) - 1)
    assert error.reason is DrafterRefusal.TOO_LARGE
    assert "250 bytes, more than the 249" in str(error)


@pytest.mark.parametrize(("later", "found"), [(bytes(1000), bytes(250)), (b"short", b"short")])
def test_an_object_that_changes_after_its_size_was_asked(
    folder: ObjectFolder, monkeypatch: pytest.MonkeyPatch, later: bytes, found: bytes
) -> None:
    """Never more than the size that was allowed; whether these are the right bytes is the digest's matter."""
    size = Store.size

    def then_change(store: Store, path: str, *, within: float | None = None) -> int:
        answer = size(store, path, within=within)
        store.write_atomic(path, later)
        return answer

    monkeypatch.setattr(Store, "size", then_change)
    assert folder.read("model", most=1000) == found


def test_a_store_that_sends_more_than_was_asked_for(folder: ObjectFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "read", lambda *_, **__: bytes(1000))
    assert refusal(folder).reason is DrafterRefusal.TOO_LARGE


class EndpointConnectionError(Exception):
    """Named as the HTTP client's, which is all that is known of it."""


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        (PermissionError("key=secret"), DrafterRefusal.UNREADABLE, "credentials in spec.store.secretRef"),
        (FSTimeoutError(), DrafterRefusal.STORE_UNAVAILABLE, "cannot be reached"),
        (ConnectionResetError("secret"), DrafterRefusal.STORE_UNAVAILABLE, "cannot be reached"),
        (EndpointConnectionError("http://key:secret@host"), DrafterRefusal.STORE_UNAVAILABLE, "cannot be reached"),
        (OSError(errno.EBUSY, "slow down"), DrafterRefusal.STORE_UNAVAILABLE, "the store failed"),
        (OSError(errno.EROFS, "read-only"), DrafterRefusal.STORE_UNAVAILABLE, "read-only"),
        (OSError(errno.ENOSPC, "full"), DrafterRefusal.STORE_UNAVAILABLE, "the store is full"),
    ],
)
@pytest.mark.parametrize("call", ["size", "read"])
def test_a_store_that_fails(
    folder: ObjectFolder,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    error: Exception,
    reason: DrafterRefusal,
    words: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Store, call, fail)
    found = refusal(folder)
    assert found.reason is reason
    assert words in str(found)
    assert folder.url in str(found)
    assert "secret@" not in str(found)
    assert "=secret" not in str(found)
    assert ("ask again" in str(found)) == (reason is DrafterRefusal.STORE_UNAVAILABLE)


def test_a_store_that_trickles_is_given_up(folder: ObjectFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10_000, 100))
    monkeypatch.setattr(object_folder.time, "monotonic", lambda: next(now))
    assert refusal(folder).reason is DrafterRefusal.STORE_UNAVAILABLE


def test_every_call_has_a_deadline(folder: ObjectFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float | None] = []

    def noting(call: Callable[..., object]) -> Callable[..., object]:
        def noted(*arguments: object, within: float | None = None, **words: object) -> object:
            waits.append(within)
            return call(*arguments, within=within, **words)

        return noted

    monkeypatch.setattr(Store, "size", noting(Store.size))
    monkeypatch.setattr(Store, "read", noting(Store.read))
    folder.read("model", most=1000)
    assert waits == [object_folder.CALL_LIMIT] * 5
