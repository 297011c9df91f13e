"""Gradients of micro-steps add up to those of one big batch, and no row is counted twice or lost on the way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.support.toy_language import LAYER_IDS, ToyLanguage
from tlt_workloads.drafter import TargetFiles, draft_vocabulary, drafter_config, initial_tensors
from tlt_workloads.shards import ShardMetadata
from tlt_workloads.store import Store
from tlt_workloads.trainer.data import DataSettings, Feed, TrainingBatch
from tlt_workloads.trainer.learner import Learner, OptimiserSettings
from tlt_workloads.trainer.model import Objective, build_drafter, read_frozen_target
from tlt_workloads.trainer.packing import Piece, pack, usable_rows

LENGTHS = [12, 40, 9, 33, 17]


def learner(target: Path, *, step_tokens: int) -> Learner:
    files = TargetFiles(target)
    shape = drafter_config(files.config, draft_vocab_size=64)
    vocabulary = draft_vocabulary(None, draft_vocab_size=64, vocab_size=96)
    model = build_drafter(
        shape,
        initial_tensors(files, shape, vocabulary=vocabulary),
        read_frozen_target(files, vocabulary.t2d),
        draft_length=3,
        device=torch.device("cpu"),
    )
    settings = OptimiserSettings(learning_rate=1e-2, step_tokens=step_tokens)
    return Learner(model, objective=Objective(draft_length=3), settings=settings)


def batches(language: ToyLanguage, groups: list[list[int]]) -> list[TrainingBatch]:
    found, sequences = [], {length: language.sequence(length) for length in LENGTHS}
    for group in groups:
        pieces = []
        for length in group:
            rows = usable_rows(sequences[length])
            pieces.append(Piece(sequences[length], rows.start, rows.stop))
        found.append(TrainingBatch(pack(pieces, draft_length=3), {}, (1, 1)))
    return found


@pytest.mark.parametrize("groups", [[[length] for length in LENGTHS], [[12, 40], [9], [33, 17]]])
def test_token_weighted_accumulation_is_one_big_batch(
    target: Path, language: ToyLanguage, groups: list[list[int]]
) -> None:
    [whole] = batches(language, [LENGTHS])
    parts = batches(ToyLanguage(target), groups)  # the same sequences once more
    once, often = (learner(target, step_tokens=whole.packed.trained_tokens) for _ in range(2))
    once.micro_step(whole)
    once.step_if_due()
    for part in parts[:-1]:
        often.micro_step(part)
        assert often.step_if_due() == []
    often.micro_step(parts[-1])
    assert len(often.step_if_due()) == len(parts)
    assert (once.steps, often.steps) == (1, 1)
    wanted = once.tensors()
    for name, tensor in often.tensors().items():
        if name.startswith("exp_avg."):  # after one step, the clipped gradient times a constant
            assert (tensor - wanted[name]).norm() < 0.02 * wanted[name].norm(), name


def test_micro_steps_of_one_optimiser_step_take_different_rows(store: Store, language: ToyLanguage) -> None:
    language.write_shards(store, count=4)
    feed = _feed(store)
    drawn: Counter[tuple[str, int]] = Counter()
    while batch := feed.next_batch(64):
        drawn.update(batch.used)
    assert drawn
    assert set(drawn.values()) <= {_rows(40), _rows(64)}, "each row once, although no step was applied"
    assert not any(rows for item in feed.progress().values() for rows in item.trained_rows.values())


def test_rows_count_as_trained_when_their_gradient_is_applied(store: Store, language: ToyLanguage) -> None:
    language.write_shards(store, count=4)
    feed = _feed(store)
    applied, waiting = feed.next_batch(64), feed.next_batch(64)
    assert applied is not None
    assert waiting is not None
    feed.mark_trained([applied])
    counted = {
        (path, index): rows
        for path, item in feed.progress().items()
        for index, rows in item.trained_rows.items()
        if rows
    }
    assert counted == dict(applied.used)


def _feed(store: Store) -> Feed:
    settings = DataSettings(max_policy_lag=4, draft_length=3, max_passes=1)
    feed = Feed(store, metadata=ShardMetadata(model="tiny", layer_ids=LAYER_IDS), settings=settings, progress={})
    feed.refresh()
    return feed


def _rows(tokens: int) -> int:
    """That a sequence of the toy language is trained on."""
    return tokens - 2
