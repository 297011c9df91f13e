"""Simulated accept length and when a revision is worth it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.support.toy_language import ToyLanguage
from tlt_workloads.trainer import evaluate
from tlt_workloads.trainer.evaluate import SequenceScore, gain, score_batch, summarise
from tlt_workloads.trainer.packing import PackedBatch, Piece, pack
from tlt_workloads.trainer.progress import TrainingProgress
from tlt_workloads.trainer.release import release_due


def test_leading_right_drafts_count_and_later_ones_do_not(
    language: ToyLanguage, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = pack([Piece(language.sequence(16), 0, 14)], draft_length=1)
    tokens = batch.token_ids[0]

    def drafts(_model: object, _batch: PackedBatch, *, draft_length: int) -> object:
        right = tokens.new_full((draft_length, len(tokens)), -1)
        for step in range(draft_length):
            right[step, : len(tokens) - 1 - step] = tokens[1 + step :]
        right[1, 5] = -1  # the second draft of row 5 is wrong, the third one right again
        return right

    monkeypatch.setattr(evaluate, "propose", drafts)
    score = score_batch(None, batch, draft_length=3)
    assert score.positions == 11 - 3  # generated positions with all three drafts inside the sequence
    assert score.accepted == 8 * 4 - 2


def test_the_mean_weighs_positions_and_its_error_counts_sequences() -> None:
    scores = [SequenceScore(accepted=20, positions=10), SequenceScore(accepted=10, positions=10)]
    result = summarise(scores)
    assert result.accept_length == 1.5
    assert result.standard_error == pytest.approx(math.sqrt(2 * (5**2 + 5**2)) / 20)
    assert math.isinf(summarise(scores[:1]).standard_error)
    with pytest.raises(ValueError, match="no held-out positions"):
        summarise([])


def test_a_gain_common_to_all_sequences_is_certain_however_much_they_differ() -> None:
    parent = [SequenceScore(accepted=20, positions=10), SequenceScore(accepted=10, positions=10)]
    better = [SequenceScore(accepted=21, positions=10), SequenceScore(accepted=11, positions=10)]
    difference = gain(better, parent)
    assert difference.accept_length == pytest.approx(0.1)
    assert difference.standard_error == pytest.approx(0.0)


def test_a_release_waits_for_enough_to_be_learnt_and_for_judging_to_stay_cheap() -> None:
    learnt = TrainingProgress(trained_tokens=5000, attempted_tokens=3000, trained_seconds=20.0, attempted_seconds=10.0)
    assert release_due(learnt, publish_tokens=2000)
    assert not release_due(learnt, publish_tokens=2001)
    assert not release_due(replace(learnt, evaluation_seconds=3.0), publish_tokens=2000)
