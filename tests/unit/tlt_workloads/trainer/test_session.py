"""A window from state to state: it learns, it can be left at any point, and going on is as if nothing had happened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from tests.support.toy_language import LAYER_IDS, ToyLanguage
from tlt_workloads.drafter import TargetFiles
from tlt_workloads.shards import ShardMetadata
from tlt_workloads.store import Store, open_store
from tlt_workloads.trainer.checkpoint import load_checkpoint
from tlt_workloads.trainer.data import DataSettings, Feed
from tlt_workloads.trainer.loop import train_window
from tlt_workloads.trainer.opening import open_session
from tlt_workloads.trainer.progress import latest_progress
from tlt_workloads.trainer.revisions import published_revisions
from tlt_workloads.trainer.session import Session
from tlt_workloads.trainer.settings import TrainerSettings
from tlt_workloads.trainer.stopping import StopFlag
from tlt_workloads.trainer.window import WindowEnd, WorkerMessage, WorkerSkipped, WorkerStepped


def session(settings: TrainerSettings, stop: StopFlag | None = None) -> Session:
    return open_session(settings, device=torch.device("cpu"), check=(stop or StopFlag()).abandon_step)


def train(settings: TrainerSettings, *, micro_steps: int) -> list[float]:
    """One window of so many micro-steps; returns their losses."""
    stop = StopFlag()
    window = session(settings, stop)
    losses = run(window, stop, micro_steps=micro_steps)
    window.close()
    return losses


def run(window: Session, stop: StopFlag, *, micro_steps: int) -> list[float]:
    """So many micro-steps of a window that stays open; returns their losses."""
    losses = []

    def listen(message: WorkerMessage) -> None:
        if isinstance(message, WorkerStepped):
            losses.append(message.loss)
            if message.steps == micro_steps:
                stop.set()

    assert train_window(window, stop, listen) is WindowEnd.STOPPED
    return losses


@pytest.fixture
def step_settings(settings: TrainerSettings) -> TrainerSettings:
    """No evaluation in between, and every micro-step is an optimiser step."""
    return replace(settings, publish_tokens=10**9, config=replace(settings.config, micro_batch_tokens=512))


def test_windows_that_are_cut_short_learn_the_same_as_one_long_window(
    step_settings: TrainerSettings, language: ToyLanguage
) -> None:
    cut, whole = replace(step_settings, job="namespace/cut"), replace(step_settings, job="namespace/whole")
    for one in (cut, whole):
        ToyLanguage(_target(one)).write_shards(_store(one), count=40)
    losses = [loss for _ in range(4) for loss in train(cut, micro_steps=2)]
    assert losses == pytest.approx(train(whole, micro_steps=8), rel=1e-5)
    first, second = load_checkpoint(_store(cut)), load_checkpoint(_store(whole))
    assert first is not None
    assert second is not None
    assert first[1].keys() == second[1].keys()
    for name, tensor in first[1].items():
        assert torch.allclose(tensor.float(), second[1][name].float(), rtol=1e-4, atol=1e-6), name


def test_a_window_compares_distributions_softly(
    step_settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, sharp = replace(step_settings, job="namespace/soft"), replace(step_settings, job="namespace/sharp")
    for one in (soft, sharp):
        ToyLanguage(_target(one)).write_shards(_store(one), count=10)
    (loss,) = train(soft, micro_steps=1)
    monkeypatch.setattr("tlt_workloads.trainer.session.SOFTNESS", 1.0)
    (sharper,) = train(sharp, micro_steps=1)
    assert loss < 0.9 * sharper


def test_a_toy_language_is_learnt_and_published(
    settings: TrainerSettings, store: Store, language: ToyLanguage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tlt_workloads.trainer.release.EVALUATION_SHARE", 1e9)  # however busy the machine is
    language.write_shards(store, count=64)
    config = replace(settings.config, learning_rate=1e-2, micro_batch_tokens=128)  # however busy the machine is
    quick = replace(settings, publish_tokens=4000, config=config)
    for _ in range(4):
        train(quick, micro_steps=40)
    revisions = published_revisions(store)
    assert len(revisions) >= 2
    assert revisions[-1].evaluation.accept_length > 3.0  # of 4
    assert revisions[-1].parent == revisions[-2].revision
    assert revisions[-1].trained_tokens > revisions[-2].trained_tokens
    assert all(
        revision.sha256 == store.sha256(f"revisions/{revision.revision}/model.safetensors") for revision in revisions
    )


def test_what_is_solved_for_is_published_before_any_gradient(
    settings: TrainerSettings, store: Store, language: ToyLanguage
) -> None:
    language.write_shards(store, count=24)
    train(settings, micro_steps=1)
    first = published_revisions(store)[0]
    assert first.evaluation.accept_length > 1.5
    assert first.evaluation.parent_accept_length is not None
    assert first.evaluation.accept_length > first.evaluation.parent_accept_length
    assert latest_progress(store).trained_tokens >= first.trained_tokens > 1000


def test_published_is_the_mean_of_the_weights(
    step_settings: TrainerSettings, store: Store, language: ToyLanguage
) -> None:
    language.write_shards(store, count=24)
    stop = StopFlag()
    window = session(step_settings, stop)
    run(window, stop, micro_steps=6)
    manifest = window.try_release(lambda: None)
    assert manifest is not None
    published = load(store.read(f"revisions/{manifest.revision}/model.safetensors"))
    _, tensors = window.state()
    assert torch.equal(published["fc.weight"], tensors["mean.fc.weight"].to(published["fc.weight"].dtype))
    assert not torch.equal(published["fc.weight"], tensors["model.fc.weight"].to(published["fc.weight"].dtype))
    window.close()


def test_what_a_drafter_borrows_is_that_of_the_newest_policy(
    settings: TrainerSettings, store: Store, language: ToyLanguage
) -> None:
    language.write_shards(store, count=24)
    head = TargetFiles(_target(settings)).head()
    for number in (9, 10):
        store.write_atomic(f"policy/policy-{number}.safetensors", save({"lm_head.weight": head * (1 + number / 100)}))
    train(settings, micro_steps=1)
    published = load(store.read(f"revisions/{published_revisions(store)[0].revision}/model.safetensors"))
    borrowed = (head * 1.1)[published["t2d"]].to(published["lm_head.weight"].dtype)
    assert torch.equal(published["lm_head.weight"], borrowed)


def test_what_is_solved_for_is_kept_when_the_window_ends_at_once(
    step_settings: TrainerSettings, store: Store, language: ToyLanguage
) -> None:
    language.write_shards(store, count=24)
    stop = StopFlag()
    window = session(step_settings, stop)
    stop.set()
    assert train_window(window, stop, lambda _message: None) is WindowEnd.STOPPED
    window.close()
    assert latest_progress(store).trained_tokens > 1000
    assert latest_progress(store).steps == 0


def test_judging_begins_when_all_that_was_learnt_is_durable(
    settings: TrainerSettings, store: Store, language: ToyLanguage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the process may be ended in the middle of it."""
    language.write_shards(store, count=24)
    stop = StopFlag()
    window = session(settings, stop)
    assert not window.is_kept, "a drafter was solved for"
    kept = []

    def judge_and_stop(_check: object) -> None:
        kept.append((window.is_kept, latest_progress(store).trained_tokens > 1000))
        stop.set()

    monkeypatch.setattr(window, "try_release", judge_and_stop)
    train_window(window, stop, lambda _message: None)
    window.close()
    assert kept == [(True, True)]


def test_the_measured_size_of_a_micro_step_outlives_the_window(
    settings: TrainerSettings, store: Store, language: ToyLanguage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the machine's mood in each window would decide which rows stand in a batch together."""
    language.write_shards(store, count=40)
    measured = replace(settings, publish_tokens=10**9, config=replace(settings.config, micro_batch_tokens=0))
    train(measured, micro_steps=4)
    size = latest_progress(store).micro_batch_tokens
    assert size > 0
    monkeypatch.setattr("tlt_workloads.trainer.session.MICRO_STEP_SECONDS", 1e-9)
    train(measured, micro_steps=2)
    assert latest_progress(store).micro_batch_tokens == size


def test_memory_for_data_is_bounded_whatever_the_store_holds(store: Store, language: ToyLanguage) -> None:
    """By what it may be, and one shard."""
    language.write_shards(store, count=40)
    shard = sum(
        item.hidden_states.nbytes + item.token_ids.nbytes for item in (language.sequence(64), language.sequence(40))
    )
    feed = Feed(
        store,
        metadata=ShardMetadata(model="tiny", layer_ids=LAYER_IDS),
        settings=DataSettings(max_policy_lag=4, draft_length=3, max_passes=2, memory_bytes=4 * shard),
        progress={},
    )
    feed.refresh()
    held = []
    while (batch := feed.next_batch(256)) is not None:
        feed.mark_trained([batch])
        held.append(feed.held_bytes)
    assert len(held) > 20
    assert max(held) <= 4 * shard
    kept = feed.held_out(tokens=400)
    assert sum(item.hidden_states.untyped_storage().nbytes() for item in kept) == sum(
        item.hidden_states.nbytes for item in kept
    ), "a sequence keeps its shard in memory"


def test_nothing_is_left_on_the_device_and_everything_gets_written(
    step_settings: TrainerSettings, store: Store, language: ToyLanguage
) -> None:
    language.write_shards(store, count=8)
    stop = StopFlag()
    window = session(step_settings, stop)
    train_window(window, stop, lambda message: stop.set() if isinstance(message, WorkerStepped) else None)
    model = window._learner.model
    window.release_device()
    assert sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers())) == 0
    window.close()
    found = load_checkpoint(store)
    assert found is not None
    assert found[0].steps == 1
    assert all(bool(torch.isfinite(tensor.float()).all()) for tensor in found[1].values())


def test_stopping_inside_a_micro_step_leaves_it_without_a_trace(
    step_settings: TrainerSettings, store: Store, language: ToyLanguage
) -> None:
    language.write_shards(store, count=4)  # too little to solve for a first drafter
    for checks in range(1, 60, 9):  # operations forward and backward
        stop, seen, is_open = StopFlag(), 0, False

        def check() -> None:
            nonlocal seen
            seen += is_open  # noqa: B023 - called within this turn of the loop only
            if seen == checks:  # noqa: B023
                stop.set()  # noqa: B023
            stop.abandon_step()  # noqa: B023

        window = open_session(step_settings, device=torch.device("cpu"), check=check)
        is_open = True
        assert train_window(window, stop, lambda _message: None) is WindowEnd.STOPPED
        window.close()
    assert latest_progress(store).trained_tokens == 0


def test_held_out_sequences_are_never_trained_on(
    step_settings: TrainerSettings, store: Store, language: ToyLanguage
) -> None:
    language.write_shards(store, count=8)
    train(step_settings, micro_steps=3)
    progress = latest_progress(store)
    trained = {(path, index) for path, shard in progress.shards.items() for index in shard.trained_rows}
    assert ("hidden-states/pod-0/00000002-p1-t102.safetensors", 0) not in trained
    assert ("hidden-states/pod-0/00000001-p1-t102.safetensors", 1) not in trained
    assert len(trained) == 14


def test_a_window_ends_by_itself_when_everything_has_been_used(settings: TrainerSettings, store: Store) -> None:
    window = session(settings)
    assert train_window(window, StopFlag(), lambda _message: None) is WindowEnd.NO_DATA
    ToyLanguage(_target(settings)).write_shards(store, count=2)
    window = session(settings)
    assert train_window(window, StopFlag(), lambda _message: None) is WindowEnd.DONE
    window.close()
    assert all(shard.fresh_rows == 0 for shard in latest_progress(store).shards.values())


def test_broken_and_vanished_shards_are_left_out(
    step_settings: TrainerSettings, store: Store, language: ToyLanguage
) -> None:
    language.write_shards(store, count=4)
    store.write_atomic("hidden-states/pod-0/00000009-p1-t102.safetensors", b"half a shard")
    whole = store.read("hidden-states/pod-0/00000002-p1-t102.safetensors")
    store.write_atomic("hidden-states/pod-0/00000002-p1-t102.safetensors", whole[:-100])
    # With room for one shard at a time, what has vanished is asked for again.
    window, messages = session(replace(step_settings, data_memory_bytes=1)), list[WorkerMessage]()
    store.remove("hidden-states/pod-0/00000001-p1-t102.safetensors")
    assert train_window(window, StopFlag(), messages.append) is WindowEnd.DONE
    window.close()
    told = [message.shards for message in messages if isinstance(message, WorkerSkipped)]
    assert told[-1] == {
        f"hidden-states/pod-0/{name}-p1-t102.safetensors" for name in ("00000001", "00000002", "00000009")
    }
    assert len(told) == len(set(told)), "told once, not at every step"


def test_a_lost_checkpoint_falls_back_to_the_newest_revision(
    settings: TrainerSettings, store: Store, language: ToyLanguage
) -> None:
    language.write_shards(store, count=32)
    for _ in range(3):
        train(replace(settings, config=replace(settings.config, learning_rate=1e-2)), micro_steps=20)
    newest = published_revisions(store)[-1]
    store.remove("checkpoints")
    train(settings, micro_steps=4)
    assert latest_progress(store).parent == newest.revision
    assert latest_progress(store).trained_tokens > newest.trained_tokens


def _target(settings: TrainerSettings) -> Path:
    return Path(settings.config.target_model)


def _store(settings: TrainerSettings) -> Store:
    return open_store(settings.job_store_url)
