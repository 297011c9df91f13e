"""Simulated accept length and when a revision is worth it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.toy_language import ToyLanguage
from tlt_workloads.trainer import evaluate
from tlt_workloads.trainer.evaluate import SequenceScore, gain, kept, score_batch, summarise
from tlt_workloads.trainer.packing import PackedBatch, Piece, pack
from tlt_workloads.trainer.progress import TrainingProgress
from tlt_workloads.trainer.release import release_due

VOCABULARY = 90


def test_leading_right_drafts_count_and_later_ones_do_not(
    language: ToyLanguage, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = pack([Piece(language.sequence(16), 0, 14)], draft_length=1)
    tokens = batch.token_ids[0]

    def drafts(_model: object, _batch: PackedBatch, *, draft_length: int) -> torch.Tensor:
        right = torch.zeros(draft_length, len(tokens), VOCABULARY)
        for step in range(draft_length):
            right[step, torch.arange(len(tokens) - 1 - step), tokens[1 + step :]] = 1.0
        right[1, 5] = 0.0  # the second draft of row 5 is wrong, the third one right again
        right[1, 5, (tokens[7] + 1) % VOCABULARY] = 1.0
        return right

    monkeypatch.setattr(evaluate, "draft_logits", drafts)
    monkeypatch.setattr(evaluate, "target_logits", lambda *_: torch.zeros(len(tokens), VOCABULARY))
    monkeypatch.setattr(evaluate, "draft_ids", lambda _model, ids: ids)
    score = score_batch(None, batch, draft_length=3, temperature=0.0)
    assert score.positions == 11 - 3  # generated positions with all three drafts inside the sequence
    assert score.accepted == 8 * 4 - 2


@given(seed=st.integers(0, 1000), temperature=st.sampled_from([0.3, 0.7, 1.0]))
def test_a_draft_is_kept_as_often_as_drafter_and_target_overlap(seed: int, temperature: float) -> None:
    """The mean over what the target says, of which the simulation knows samples, is the sum of min(p, q)."""
    generator = torch.Generator().manual_seed(seed)
    drafted, wanted = (torch.randn(6, generator=generator).expand(6, 6) for _ in range(2))
    p, q = (torch.softmax(logits[0] / temperature, -1) for logits in (wanted, drafted))
    found = kept(drafted, wanted, torch.arange(6), temperature=temperature)
    assert float((p * found).sum()) == pytest.approx(float(torch.minimum(p, q).sum()), abs=1e-5)


def test_a_token_that_is_never_drafted_is_never_kept() -> None:
    found = kept(torch.zeros(2, 4), torch.zeros(2, 4), torch.tensor([-1, 2]), temperature=1.0)
    assert found.tolist() == [0.0, 1.0]


def test_of_greedy_answers_only_the_likeliest_token_counts() -> None:
    drafted = torch.tensor([[3.0, 2.9, 0.0]]).expand(2, 3)
    assert kept(drafted, drafted, torch.tensor([0, 1]), temperature=0.0).tolist() == [1.0, 0.0]


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
