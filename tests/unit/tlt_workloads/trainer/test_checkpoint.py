"""Checkpoints: whole or not there, two kept, the older one in place of a broken newer one."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
import torch

from tlt_workloads.store import Store, open_store
from tlt_workloads.trainer.checkpoint import CheckpointWriter, load_checkpoint
from tlt_workloads.trainer.progress import (
    PROGRESS_FILE,
    TENSORS_FILE,
    ShardProgress,
    TrainingProgress,
    finished_checkpoints,
    latest_progress,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def write(store: Store, trained_tokens: int, *, writer: str = "one") -> TrainingProgress:
    progress = TrainingProgress(
        trained_tokens=trained_tokens,
        steps=7,
        parent="job-r3",
        shards={"pod/shard": ShardProgress(trained_rows={0: 5, 2: 9}, fresh_rows=3)},
    )
    checkpoints = CheckpointWriter(store, writer=writer)
    checkpoints.write(progress, {"model.fc.weight": torch.full((4, 4), float(trained_tokens))})
    checkpoints.close()
    return progress


def test_a_checkpoint_comes_back_as_it_was(store: Store) -> None:
    written = write(store, 100)
    found = load_checkpoint(store)
    assert found is not None
    progress, tensors = found
    assert progress.shards == written.shards
    assert (progress.trained_tokens, progress.steps, progress.parent) == (100, 7, "job-r3")
    assert torch.equal(tensors["model.fc.weight"], torch.full((4, 4), 100.0))


def test_nothing_written_is_an_untrained_drafter(store: Store) -> None:
    assert load_checkpoint(store) is None
    assert latest_progress(store) == TrainingProgress()


def test_two_are_kept_whoever_wrote_them(store: Store) -> None:
    for number, writer in enumerate(["one", "two", "one", "two"]):
        write(store, 100 * (number + 1), writer=writer)
    assert [progress.trained_tokens for _, progress in finished_checkpoints(store)] == [400, 300]
    assert len(store.folders("checkpoints")) == 2


def test_the_copy_is_taken_before_the_training_goes_on(store: Store) -> None:
    weight = torch.zeros(1000, 1000)
    checkpoints = CheckpointWriter(store, writer="one")
    checkpoints.write(TrainingProgress(trained_tokens=1), {"model.fc.weight": weight})
    weight.fill_(1.0)
    checkpoints.close()
    found = load_checkpoint(store)
    assert found is not None
    assert not found[1]["model.fc.weight"].any()


def test_the_last_one_does_not_wait_for_the_one_before(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write, write_atomic = threading.Event(), Store.write_atomic

    def slow_write(store: Store, path: str, data: bytes) -> None:
        may_write.wait()
        write_atomic(store, path, data)

    monkeypatch.setattr(Store, "write_atomic", slow_write)
    checkpoints = CheckpointWriter(store, writer="one")
    checkpoints.write(TrainingProgress(trained_tokens=1), {"model.fc.weight": torch.ones(4)})
    checkpoints.write_last(TrainingProgress(trained_tokens=2), {"model.fc.weight": torch.full((4,), 2.0)})
    assert checkpoints.busy
    may_write.set()
    checkpoints.close()
    assert [progress.trained_tokens for _, progress in finished_checkpoints(store)] == [2, 1]


@pytest.mark.parametrize("file", [TENSORS_FILE, PROGRESS_FILE])
def test_a_checkpoint_cut_off_anywhere_gives_way_to_the_one_before(store: Store, file: str) -> None:
    write(store, 100)
    write(store, 200)
    newest, _ = next(iter(finished_checkpoints(store)))
    whole = store.read(f"{newest}/{file}")
    for length in range(len(whole)):
        store.write_atomic(f"{newest}/{file}", whole[:length])
        found = load_checkpoint(store)
        assert found is not None
        assert found[0].trained_tokens == 100
        assert latest_progress(store).trained_tokens == 100


def test_a_checkpoint_of_one_node_is_whole_on_another(store: Store, tmp_path: Path) -> None:
    """Another path, and tensors that no device is written into."""
    written = write(store, 100)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "checkpoints", elsewhere / "node" / "checkpoints")
    shutil.rmtree(tmp_path / "checkpoints")
    found = load_checkpoint(open_store(str(elsewhere / "node")))
    assert found is not None
    assert found[0].shards == written.shards
    assert {tensor.device.type for tensor in found[1].values()} == {"cpu"}
    files = (path for path in elsewhere.rglob("*") if path.is_file())
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in files)


def test_what_a_killed_writer_has_left_is_neither_read_nor_kept_for_ever(store: Store) -> None:
    write(store, 100)
    store.write_atomic("checkpoints/00000000000150-dead/.state.safetensors.0123.partial", b"half of it")
    store.write_atomic("checkpoints/00000000000150-dead/state.safetensors", b"whole, but nothing says so")
    assert latest_progress(store).trained_tokens == 100
    write(store, 200)
    write(store, 300)
    assert [progress.trained_tokens for _, progress in finished_checkpoints(store)] == [300, 200]
    assert len(store.folders("checkpoints")) == 2


def test_a_checkpoint_without_its_last_file_was_never_finished(store: Store) -> None:
    write(store, 100)
    write(store, 200)
    newest, _ = next(iter(finished_checkpoints(store)))
    store.remove(f"{newest}/{PROGRESS_FILE}")
    assert latest_progress(store).trained_tokens == 100


def test_an_unwritable_store_is_reported_by_the_next_call(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "write_atomic", full)
    checkpoints = CheckpointWriter(store, writer="one")
    checkpoints.write(TrainingProgress(), {})
    with pytest.raises(OSError, match="No space left"):
        checkpoints.close()


def test_what_a_more_trained_one_has_tidied_away_while_it_was_written_is_given_up(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanished(_store: Store, path: str, _data: bytes) -> None:
        raise FileNotFoundError(path)

    write(store, 500)
    monkeypatch.setattr(Store, "write_atomic", vanished)
    write(store, 400)
    with pytest.raises(FileNotFoundError):
        write(store, 600)
    assert latest_progress(store).trained_tokens == 500
