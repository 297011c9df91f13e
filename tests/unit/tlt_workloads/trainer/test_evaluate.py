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
from tlt_workloads.trainer.evaluate import SequenceScore, follow, gain, kept, score_batch, summarise
from tlt_workloads.trainer.packing import PackedBatch, Piece, pack
from tlt_workloads.trainer.progress import TrainingProgress
from tlt_workloads.trainer.release import release_due

VOCABULARY = 90


def test_a_draft_begins_where_the_one_before_ended_and_only_leading_right_tokens_count(
    language: ToyLanguage, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = pack([Piece(language.sequence(16), 0, 14)], draft_length=1)
    tokens = batch.token_ids[0]

    def drafts(_model: object, _batch: PackedBatch, *, draft_length: int) -> torch.Tensor:
        right = torch.zeros(draft_length, len(tokens), VOCABULARY)
        for step in range(draft_length):
            right[step, torch.arange(len(tokens) - 1 - step), tokens[1 + step :]] = 1.0
        right[1, 7] = 0.0  # the second draft of row 7 is wrong, the third one right again
        right[1, 7, (tokens[9] + 1) % VOCABULARY] = 1.0
        return right

    monkeypatch.setattr(evaluate, "draft_logits", drafts)
    monkeypatch.setattr(evaluate, "target_logits", lambda *_: torch.zeros(len(tokens), VOCABULARY))
    monkeypatch.setattr(evaluate, "draft_ids", lambda _model, ids: ids)
    score = score_batch(None, batch, draft_length=3, temperature=0.0)
    # The answer begins at row 3, and row 10 is the last one with all three drafts inside the sequence.
    assert (score.tokens, score.drafts) == (4 + 2 + 4, 3)  # drafts begin at rows 3, 7 and 9


def test_where_drafts_are_bad_there_are_more_of_them() -> None:
    chances = torch.cat([torch.ones(3, 12), torch.zeros(3, 12)], dim=1)  # all kept, then none
    score = follow(chances)
    assert (score.tokens, score.drafts) == (24, 3 + 12)
    assert summarise([score, score]).accept_length == 1.6  # the mean over positions is 2.5


@given(length=st.integers(1, 4), rows=st.integers(1, 12), seed=st.integers(0, 1000))
def test_the_way_is_followed_as_often_as_by_counting_from_its_end(length: int, rows: int, seed: int) -> None:
    chances = torch.rand(length, rows, generator=torch.Generator().manual_seed(seed))
    expected = [0.0] * (rows + length + 1)  # drafts from each row on
    for row in reversed(range(rows)):
        leading = [1.0, *chances[:, row].cumprod(0).tolist(), 0.0]
        expected[row] = 1 + sum((leading[n] - leading[n + 1]) * expected[row + 1 + n] for n in range(length + 1))
    score = follow(chances)
    assert score.drafts == pytest.approx(expected[0], rel=1e-4)
    assert rows - 1e-3 <= score.tokens <= rows + length + 1e-3


def test_an_answer_without_rows_adds_nothing() -> None:
    assert follow(torch.zeros(3, 0)) == SequenceScore(tokens=0.0, drafts=0.0)


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


def test_the_mean_weighs_drafts_and_its_error_counts_sequences() -> None:
    scores = [SequenceScore(tokens=20, drafts=10), SequenceScore(tokens=10, drafts=10)]
    result = summarise(scores)
    assert result.accept_length == 1.5
    assert result.standard_error == pytest.approx(math.sqrt(2 * (5**2 + 5**2)) / 20)
    assert math.isinf(summarise(scores[:1]).standard_error)
    with pytest.raises(ValueError, match="no held-out positions"):
        summarise([])


def test_a_gain_common_to_all_sequences_is_certain_however_much_they_differ() -> None:
    parent = [SequenceScore(tokens=20, drafts=10), SequenceScore(tokens=10, drafts=10)]
    better = [SequenceScore(tokens=21, drafts=10), SequenceScore(tokens=11, drafts=10)]
    difference = gain(better, parent)
    assert difference.accept_length == pytest.approx(0.1)
    assert difference.standard_error == pytest.approx(0.0)


def test_a_release_waits_for_enough_to_be_learnt_and_for_judging_to_stay_cheap() -> None:
    learnt = TrainingProgress(trained_tokens=5000, attempted_tokens=3000, trained_seconds=20.0, attempted_seconds=10.0)
    assert release_due(learnt, publish_tokens=2000)
    assert not release_due(learnt, publish_tokens=2001)
    assert not release_due(replace(learnt, evaluation_seconds=3.0), publish_tokens=2000)
