"""Revisions in the store: complete, filtered, and each number given once."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from tlt_workloads.contract import Evaluation, RevisionManifest
from tlt_workloads.drafter import (
    DrafterError,
    TargetFiles,
    check_drafter_tensors,
    draft_vocabulary,
    drafter_config,
    initial_tensors,
    parse_drafter_config,
)
from tlt_workloads.store import Store, open_store
from tlt_workloads.trainer.model import build_drafter, read_frozen_target
from tlt_workloads.trainer.publish import drafter_file, publish_revision
from tlt_workloads.trainer.revisions import published_revisions, revision_name, revision_number

EVALUATION = Evaluation(accept_length=1.5, standard_error=0.1, parent_accept_length=1.2, sequences=3, tokens=300)
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def publish(store: Store, target: Path, *, parent: str | None = None) -> RevisionManifest:
    files = TargetFiles(target)
    shape = drafter_config(files.config, draft_vocab_size=40)
    vocabulary = draft_vocabulary(None, draft_vocab_size=40, vocab_size=96)
    tensors = initial_tensors(files, shape, vocabulary=vocabulary)
    frozen = read_frozen_target(files, vocabulary.t2d)
    model = build_drafter(shape, tensors, frozen, draft_length=3, device=torch.device("cpu"))
    return publish_revision(
        store,
        job="namespace/job",
        tensors=drafter_file(model, shape),
        config=shape,
        parent=parent,
        policy_versions=(3, 5),
        trained_tokens=1234,
        evaluation=EVALUATION,
        now=NOW,
    )


def test_a_revision_is_a_whole_drafter_and_nothing_of_the_target(store: Store, target: Path) -> None:
    manifest = publish(store, target)
    tensors = load(store.read("revisions/job-r1/model.safetensors"))
    shape = parse_drafter_config(json.loads(store.read("revisions/job-r1/config.json")), where="config.json")
    check_drafter_tensors(tensors, shape)
    assert not any("embed_tokens" in name or "verifier" in name for name in tensors)
    assert manifest.sha256 == store.sha256("revisions/job-r1/model.safetensors")
    assert manifest.created_at == "2026-01-02T03:04:05+00:00"


def test_what_was_published_is_listed_oldest_first(store: Store, target: Path) -> None:
    written = [publish(store, target, parent=None if number == 0 else f"job-r{number}") for number in range(11)]
    assert [item.revision for item in written] == [f"job-r{number}" for number in range(1, 12)]
    assert published_revisions(store) == tuple(written)


def test_an_unfinished_revision_is_not_listed_and_its_number_not_used_again(store: Store, target: Path) -> None:
    store.write_atomic("revisions/job-r1/config.json", b"{}")
    store.write_atomic("revisions/job-r2/manifest.json", b'{"revision": "job-r2"}')
    assert published_revisions(store) == ()
    assert publish(store, target).revision == "job-r3"


def test_two_writers_never_get_the_same_number(store: Store, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store, target)
    monkeypatch.setattr("tlt_workloads.trainer.publish.next_number", lambda _store: 1)  # both looked at the same moment
    assert publish(store, target).revision == "job-r2"


def test_values_that_are_not_finite_are_not_published(target: Path) -> None:
    files = TargetFiles(target)
    shape = drafter_config(files.config, draft_vocab_size=40)
    vocabulary = draft_vocabulary(None, draft_vocab_size=40, vocab_size=96)
    tensors = initial_tensors(files, shape, vocabulary=vocabulary)
    tensors["fc.weight"][0, 0] = torch.inf
    frozen = read_frozen_target(files, vocabulary.t2d)
    model = build_drafter(shape, tensors, frozen, draft_length=3, device=torch.device("cpu"))
    with pytest.raises(DrafterError, match=r"fc\.weight"):
        drafter_file(model, shape)


def test_names_are_numbered_within_the_job() -> None:
    assert revision_name("namespace/my-job", 12) == "my-job-r12"
    assert revision_number("my-job-r12") == 12
    assert revision_number("something-else") == 0
