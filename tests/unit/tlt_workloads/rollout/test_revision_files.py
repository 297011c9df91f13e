"""A revision's files: everything but a whole drafter of this shape is refused, with the reason."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from tests.support.tiny_target import write_tiny_target
from tlt_workloads.contract import DrafterRefusal, Evaluation, RevisionManifest, encode
from tlt_workloads.drafter import DrafterConfig, drafter_bytes, write_initial_drafter
from tlt_workloads.rollout.mounted_folder import MountedFolder
from tlt_workloads.rollout.revision_files import FoundRevision, find_revision, read_shape, read_tensors
from tlt_workloads.rollout.revision_folder import RefusedDrafterError


class Revision:
    """A good one, to be spoilt."""

    def __init__(self, folder: Path) -> None:
        target = write_tiny_target(folder / "target")
        self.folder = folder / "r1"
        self.place = MountedFolder(self.folder)
        self.config: DrafterConfig = write_initial_drafter(target, self.folder, draft_vocab_size=32)
        self.weights = self.folder / "model.safetensors"
        self.data = self.weights.read_bytes()

    def write(self, data: bytes) -> None:
        self.data = data
        self.weights.write_bytes(data)

    def change(self, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
        tensors = load(self.data)
        change(tensors)
        self.write(save(tensors))

    def read(self) -> dict[str, torch.Tensor]:
        read_shape(self.place, own=self.config)
        return read_tensors(self.place, sha256=hashlib.sha256(self.data).hexdigest(), config=self.config)

    def refusal(self) -> DrafterRefusal:
        with pytest.raises(RefusedDrafterError) as caught:
            self.read()
        return caught.value.reason


@pytest.fixture
def revision(tmp_path: Path) -> Revision:
    return Revision(tmp_path.resolve())


def test_a_good_one_is_read(revision: Revision) -> None:
    assert revision.read().keys() == load(revision.data).keys()


def test_the_digest_may_be_written_in_capitals(revision: Revision) -> None:
    digest = hashlib.sha256(revision.data).hexdigest().upper()
    assert read_tensors(revision.place, sha256=digest, config=revision.config)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", DrafterRefusal.TRUNCATED),
        (b"12345678", DrafterRefusal.TRUNCATED),
        (b"not safetensors at all", DrafterRefusal.NOT_SAFETENSORS),
        (pickle.dumps({"fc.weight": [1.0] * 100}), DrafterRefusal.NOT_SAFETENSORS),
        (b"PK\x03\x04" + bytes(100), DrafterRefusal.NOT_SAFETENSORS),
        ((2**40).to_bytes(8, "little") + b"{}", DrafterRefusal.OVERSIZED_HEADER),
        ((2**64 - 1).to_bytes(8, "little") + b"{}", DrafterRefusal.OVERSIZED_HEADER),
        ((3).to_bytes(8, "little") + b"{}}", DrafterRefusal.NOT_SAFETENSORS),
        ((200).to_bytes(8, "little") + b'{"fc.weight":', DrafterRefusal.TRUNCATED),
        ((100_000).to_bytes(8, "little") + b'{"a":' * 20_000, DrafterRefusal.NOT_SAFETENSORS),
        ((16).to_bytes(8, "little") + b'{"a":{"b":[1,2]}}'[:16], DrafterRefusal.NOT_SAFETENSORS),
    ],
)
def test_other_files(revision: Revision, content: bytes, reason: DrafterRefusal) -> None:
    revision.write(content)
    assert revision.refusal() is reason


def test_half_a_file(revision: Revision) -> None:
    revision.write(revision.data[:-100])
    assert revision.refusal() is DrafterRefusal.TRUNCATED


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda it: it.update({"embed_tokens.weight": torch.zeros(96, 32)}), DrafterRefusal.UNKNOWN_TENSOR),
        (lambda it: it.pop("fc.weight"), DrafterRefusal.MISSING_TENSOR),
        (lambda it: it.update({"fc.weight": it["fc.weight"][:4].contiguous()}), DrafterRefusal.WRONG_SHAPE),
        (lambda it: it.update({"norm.weight": it["norm.weight"].float()}), DrafterRefusal.WRONG_TYPE),
        (lambda it: it["norm.weight"].__setitem__(3, torch.nan), DrafterRefusal.NOT_FINITE),
        (lambda it: it["lm_head.weight"].__setitem__((3, 1), -torch.inf), DrafterRefusal.NOT_FINITE),
        (lambda it: it.update({"d2t": it["d2t"] + 96}), DrafterRefusal.WRONG_VOCABULARY),
        (lambda it: it.update({"d2t": torch.full_like(it["d2t"], 1 << 62)}), DrafterRefusal.WRONG_VOCABULARY),
        (lambda it: it.update({"lm_head.weight": it["lm_head.weight"][:9].clone()}), DrafterRefusal.WRONG_VOCABULARY),
        (lambda it: it.update({"t2d": it["t2d"][:90].clone()}), DrafterRefusal.WRONG_VOCABULARY),
    ],
)
def test_other_tensors(
    revision: Revision, change: Callable[[dict[str, torch.Tensor]], Any], reason: DrafterRefusal
) -> None:
    revision.change(change)
    assert revision.refusal() is reason


def test_other_bytes_than_announced(revision: Revision) -> None:
    revision.weights.write_bytes(revision.data[:-1] + b"x")
    assert revision.refusal() is DrafterRefusal.DIGEST_MISMATCH


def test_a_file_that_is_too_large_is_not_read(revision: Revision, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred gigabytes, sparse; reading them would take minutes and more memory than there is."""
    os.truncate(revision.weights, 100 << 30)
    monkeypatch.setattr(hashlib, "sha256", lambda *_: pytest.fail("it was read"))
    with pytest.raises(RefusedDrafterError, match="107374182400 bytes, more than the") as caught:
        read_tensors(revision.place, sha256="0" * 64, config=revision.config)
    assert caught.value.reason is DrafterRefusal.TOO_LARGE
    assert drafter_bytes(revision.config) < 1 << 20


def test_a_missing_file(revision: Revision) -> None:
    revision.weights.unlink()
    assert revision.refusal() is DrafterRefusal.UNREADABLE


def test_a_link(revision: Revision, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    revision.weights.rename(elsewhere)
    revision.weights.symlink_to(elsewhere)
    assert revision.refusal() is DrafterRefusal.NOT_A_FILE


def test_a_folder_that_became_a_link_after_it_was_found(revision: Revision, tmp_path: Path) -> None:
    """The path was the job's when it was looked up; exchanging a part of it for a link must not help."""
    real = revision.folder.rename(tmp_path / "elsewhere")
    revision.folder.symlink_to(real)
    assert revision.refusal() is DrafterRefusal.NOT_A_FILE


def test_a_pipe_does_not_block(revision: Revision) -> None:
    revision.weights.unlink()
    os.mkfifo(revision.weights)
    assert revision.refusal() is DrafterRefusal.NOT_A_FILE


def test_a_folder_in_the_place_of_the_file(revision: Revision) -> None:
    revision.weights.unlink()
    revision.weights.mkdir()
    assert revision.refusal() is DrafterRefusal.NOT_A_FILE


@pytest.mark.parametrize("when", ["before it is read", "after it was read"])
def test_a_file_that_changes_meanwhile(revision: Revision, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Digest, header and tensors are all taken from the bytes that were read once."""

    def change(weights: Path = revision.weights) -> None:
        weights.write_bytes(bytes(len(revision.data)))

    if when == "before it is read":
        stat = os.fstat
        monkeypatch.setattr(os, "fstat", lambda handle: (stat(handle), change())[0])
        assert revision.refusal() is DrafterRefusal.DIGEST_MISMATCH
    else:
        digest, wanted = hashlib.sha256, hashlib.sha256(revision.data).hexdigest()
        monkeypatch.setattr(hashlib, "sha256", lambda data: (digest(data), change())[0])
        read = read_tensors(revision.place, sha256=wanted, config=revision.config)
        assert torch.equal(read["fc.weight"], load(revision.data)["fc.weight"])
        assert not any(revision.weights.read_bytes())


@pytest.mark.parametrize(
    ("field", "value", "reason", "words"),
    [
        ("hidden_size", 64, DrafterRefusal.WRONG_TARGET, "hidden_size is 64 and not 32"),
        ("eagle_aux_hidden_state_layer_ids", [1, 2, 4], DrafterRefusal.WRONG_TARGET, "layer_ids"),
        ("rope_theta", 5e5, DrafterRefusal.WRONG_TARGET, "rope_theta"),
        ("fc_norm", False, DrafterRefusal.WRONG_TARGET, "fc_norm"),
        ("draft_vocab_size", 31, DrafterRefusal.WRONG_VOCABULARY, "drafts 31 of 96 tokens, expected 32 of 96"),
        ("vocab_size", 100, DrafterRefusal.WRONG_VOCABULARY, "drafts 32 of 100 tokens"),
    ],
)
def test_a_drafter_for_another_target(
    revision: Revision, field: str, value: object, reason: DrafterRefusal, words: str
) -> None:
    """Layers, positions and norms do not show in the shapes of tensors."""
    path = revision.folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(RefusedDrafterError, match=words) as caught:
        read_shape(revision.place, own=revision.config)
    assert caught.value.reason is reason


@pytest.mark.parametrize("text", ["{}", "[]", "no json", "[" * 100_000])
def test_a_shape_that_cannot_be_read(revision: Revision, text: str) -> None:
    (revision.folder / "config.json").write_text(text)
    assert revision.refusal() is DrafterRefusal.WRONG_TARGET


def test_a_shape_is_not_required_and_tells_of_the_head(revision: Revision) -> None:
    assert read_shape(revision.place, own=revision.config) == revision.config
    assert revision.config.head_is_copy
    (revision.folder / "config.json").unlink()
    assert read_shape(revision.place, own=revision.config) is None


@pytest.mark.parametrize("text", ["", "{}", "[", '{"policyVersions": 3}'])
def test_a_manifest_that_cannot_be_read_says_nothing(revision: Revision, text: str) -> None:
    (revision.folder / "manifest.json").write_text(text)
    assert found(revision) == FoundRevision(location=str(revision.folder))


@pytest.mark.parametrize("reason", [DrafterRefusal.UNREADABLE, DrafterRefusal.STORE_UNAVAILABLE])
def test_a_manifest_that_the_store_does_not_give_ends_the_load(reason: DrafterRefusal) -> None:
    """Each worker would wait for the same store once more."""

    class Gone:
        location = "s3://bucket/job/r1"

        def read(self, name: str, *, most: int) -> bytes:
            raise RefusedDrafterError(reason, name)

    with pytest.raises(RefusedDrafterError) as caught:
        find_revision(Gone())
    assert caught.value.reason is reason


def test_a_volume_that_fails_is_told_from_a_missing_file(revision: Revision, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*_: object, **__: object) -> int:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "open", stale)
    assert revision.refusal() is DrafterRefusal.STORE_UNAVAILABLE


def test_a_manifest_tells_how_far_it_was_trained(revision: Revision) -> None:
    manifest = RevisionManifest(
        revision="r1",
        job="team/job",
        sha256="0" * 64,
        parent=None,
        method="Eagle3",
        policy_versions=(3, 7),
        trained_tokens=1,
        evaluation=Evaluation(accept_length=1.0, standard_error=0.0, parent_accept_length=None, sequences=1, tokens=1),
        draft_vocab_size=32,
        trainer_version="0",
        created_at="2026-01-01T00:00:00+00:00",
    )
    (revision.folder / "manifest.json").write_text(json.dumps(encode(manifest)))
    assert found(revision).trained_to == 7


def found(revision: Revision) -> FoundRevision:
    return find_revision(revision.place)
