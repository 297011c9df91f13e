"""A published drafter becomes a folder for plain servers: the named one, whole, undamaged, and never over another."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from speculators import SpeculatorModelConfig

from tlt_workloads.contract import Evaluation, RevisionManifest
from tlt_workloads.drafter import TargetFiles, draft_vocabulary, drafter_config, initial_tensors
from tlt_workloads.store import Store
from tlt_workloads.trainer.export import ExportError, export_drafter, main
from tlt_workloads.trainer.publish import publish_revision
from tlt_workloads.trainer.settings import TrainerSettings


def publish(store: Store, target: Path, *, seed: int) -> RevisionManifest:
    files = TargetFiles(target)
    shape = drafter_config(files.config, draft_vocab_size=64)
    vocabulary = draft_vocabulary(None, draft_vocab_size=64, vocab_size=96)
    return publish_revision(
        store,
        job="namespace/job",
        tensors=initial_tensors(files, shape, vocabulary=vocabulary, seed=seed),
        config=shape,
        parent=None,
        policy_versions=(1, 1),
        trained_tokens=1000,
        evaluation=Evaluation(
            accept_length=2.5, standard_error=0.1, parent_accept_length=None, sequences=4, tokens=100
        ),
        now=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    )


def test_the_newest_is_exported_with_the_tensors_that_were_published(
    store: Store, target: Path, tmp_path: Path
) -> None:
    publish(store, target, seed=1)
    newest = publish(store, target, seed=2)
    exported = export_drafter(store, tmp_path / "out", policy="org/policy", speculative_tokens=4)
    assert exported.manifest == newest
    published = load_file(Path(store.url.removeprefix("file://")) / "revisions" / newest.revision / "model.safetensors")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == published.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in published.items())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    flag = json.loads(exported.serve_flag.split("'")[1])
    assert (flag["num_speculative_tokens"], flag["draft_sample_method"]) == (4, "probabilistic")


def test_the_config_is_one_of_the_librarys_own(store: Store, target: Path, tmp_path: Path) -> None:
    publish(store, target, seed=1)
    export_drafter(store, tmp_path / "out", policy="org/policy", speculative_tokens=4)
    config = SpeculatorModelConfig.from_pretrained(str(tmp_path / "out"))
    assert config.speculators_model_type == "eagle3"
    assert config.draft_vocab_size == 64
    assert config.fc_norm
    assert not config.norm_before_residual
    assert config.eagle_aux_hidden_state_layer_ids == [1, 2, 3]
    assert config.speculators_config.verifier.name_or_path == "org/policy"
    assert config.speculators_config.proposal_methods[0].speculative_tokens == 4


def test_an_older_one_is_exported_by_name(store: Store, target: Path, tmp_path: Path) -> None:
    older = publish(store, target, seed=1)
    publish(store, target, seed=2)
    assert export_drafter(store, tmp_path / "out", revision=older.revision).manifest == older
    with pytest.raises(ExportError, match="has no 'job-r9'; the newest are job-r1, job-r2"):
        export_drafter(store, tmp_path / "other", revision="job-r9")


def test_nothing_is_overwritten(store: Store, target: Path, tmp_path: Path) -> None:
    publish(store, target, seed=1)
    taken = tmp_path / "out"
    taken.mkdir()
    (taken / "notes").write_text("mine")
    with pytest.raises(ExportError, match="is there already"):
        export_drafter(store, taken)
    assert [path.name for path in taken.iterdir()] == ["notes"]


def test_damaged_weights_are_refused_and_leave_nothing(store: Store, target: Path, tmp_path: Path) -> None:
    manifest = publish(store, target, seed=1)
    path = f"revisions/{manifest.revision}/model.safetensors"
    data = bytearray(store.read(path))
    data[-1] ^= 1
    store.write_atomic(path, bytes(data))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ExportError, match="SHA-256"):
        export_drafter(store, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_a_store_without_revisions_is_said_to_be_one(
    settings: TrainerSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "out"), "--store", settings.store_url, "--job", settings.job]) == 1
    assert "no revision was published" in capsys.readouterr().err


def test_the_command_says_how_to_serve(
    store: Store, settings: TrainerSettings, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(store, target, seed=1)
    arguments = [str(tmp_path / "out"), "--store", settings.store_url, "--job", settings.job, "--policy", "org/policy"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "vllm serve org/policy --speculative-config" in printed
    assert str(tmp_path / "out") in printed
