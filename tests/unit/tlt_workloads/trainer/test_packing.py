"""Packing: the alignment of features, tokens and targets, and that no sequence sees another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from speculators.models.eagle3 import Eagle3DraftModel

from tests.support.toy_language import PROMPT, ToyLanguage
from tlt_workloads.drafter import TargetFiles, draft_vocabulary, drafter_config, initial_tensors
from tlt_workloads.shards import CapturedSequence
from tlt_workloads.trainer.model import Objective, build_drafter, draft_logits, draft_loss, read_frozen_target
from tlt_workloads.trainer.packing import PADDING, PackedBatch, Piece, pack, usable_rows

OBJECTIVE = Objective(draft_length=3)


@pytest.fixture(scope="module")
def model(target: Path) -> Eagle3DraftModel:
    files = TargetFiles(target)
    shape = drafter_config(files.config, draft_vocab_size=64)
    vocabulary = draft_vocabulary(None, draft_vocab_size=64, vocab_size=96)
    return build_drafter(
        shape,
        initial_tensors(files, shape, vocabulary=vocabulary),
        read_frozen_target(files, vocabulary.t2d),
        draft_length=3,
        device=torch.device("cpu"),
    )


def whole(sequence: CapturedSequence) -> Piece:
    rows = usable_rows(sequence)
    return Piece(sequence, rows.start, rows.stop)


def loss_and_gradient(model: Eagle3DraftModel, batches: list[PackedBatch]) -> tuple[float, torch.Tensor]:
    """Token-weighted mean loss over batches, and its gradient in one weight."""
    positions = sum(batch.trained_tokens for batch in batches)
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = draft_loss(model, batch, OBJECTIVE) * batch.trained_tokens / positions
        loss.backward()
        total += loss.item()
    gradient = model.layers[0].self_attn.v_proj.weight.grad
    assert gradient is not None
    return total, gradient.clone()


def test_features_of_a_token_stand_beside_the_next_token_and_its_last_hidden_state(language: ToyLanguage) -> None:
    sequence = language.sequence(12)
    batch = pack([whole(sequence)], draft_length=3)
    states = sequence.hidden_states.float()
    for row in range(batch.tokens):
        assert torch.equal(batch.features[0, row], states[row, :-1].flatten())
        assert batch.token_ids[0, row] == sequence.token_ids[row + 1]
        assert torch.equal(batch.last_hidden[0, row], states[row + 1, -1])
        assert batch.position_ids[0, row] == row + 1


def test_the_target_of_a_row_is_the_token_after_its_token(language: ToyLanguage, target: Path) -> None:
    """The alignment that matters: what the head says of `last_hidden` is the token two after the features."""
    sequence = language.sequence(12)
    batch = pack([whole(sequence)], draft_length=3)
    answers = (batch.last_hidden[0] @ TargetFiles(target).head().float().T).argmax(-1)
    assert torch.equal(answers, sequence.token_ids[2 : 2 + batch.tokens].long())


def test_only_generated_tokens_carry_loss(language: ToyLanguage) -> None:
    batch = pack([whole(language.sequence(12))], draft_length=3)
    assert batch.loss_mask[0].tolist() == [position >= PROMPT for position in range(1, batch.tokens + 1)]


def test_rows_that_were_not_captured_are_not_used() -> None:
    sequence = CapturedSequence(
        token_ids=torch.arange(10, dtype=torch.int32),
        hidden_states=torch.arange(5.0)[:, None, None].expand(5, 4, 8).to(torch.bfloat16),
        prompt_length=2,
        policy_version=1,
        finished=True,
        first_row=3,
    )
    assert usable_rows(sequence) == range(3, 7)
    batch = pack([whole(sequence)], draft_length=1)
    assert batch.token_ids[0].tolist() == [4, 5, 6, 7]
    assert batch.features[0, :, 0].tolist() == [0, 1, 2, 3]
    assert batch.last_hidden[0, :, 0].tolist() == [1, 2, 3, 4]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(8, 30), min_size=2, max_size=4), padding=st.integers(0, 20))
def test_packing_changes_neither_loss_nor_gradient(
    model: Eagle3DraftModel, language: ToyLanguage, lengths: list[int], padding: int
) -> None:
    pieces = [whole(language.sequence(length)) for length in lengths]
    size = sum(len(piece) for piece in pieces) + padding
    together = loss_and_gradient(model, [pack(pieces, draft_length=3, size=size)])
    apart = loss_and_gradient(model, [pack([piece], draft_length=3) for piece in pieces])
    assert together[0] == pytest.approx(apart[0], rel=1e-4)
    assert torch.allclose(together[1], apart[1], rtol=1e-3, atol=1e-5)


def test_no_sequence_sees_another(model: Eagle3DraftModel, language: ToyLanguage) -> None:
    """Whatever stands beside a sequence in a row, its drafts and its gradient are the same."""
    first, second, other = language.sequence(20), language.sequence(20), language.sequence(20)
    with_second = pack([whole(first), whole(second)], draft_length=3)
    with_other = pack([whole(first), whole(other)], draft_length=3)
    rows = len(whole(first))
    drafts = [draft_logits(model, batch, draft_length=3)[:, : rows - 2] for batch in (with_second, with_other)]
    assert torch.allclose(*drafts, atol=1e-5)
    for batch in (with_second, with_other):
        batch.loss_mask[0, rows:] = False
    gradients = [loss_and_gradient(model, [batch])[1] for batch in (with_second, with_other)]
    assert torch.allclose(*gradients, atol=1e-6)


def test_a_later_piece_of_a_sequence_takes_no_loss_where_its_predecessor_did(language: ToyLanguage) -> None:
    sequence = language.sequence(30)
    batch = pack([Piece(sequence, 0, 14), Piece(sequence, 12, 28)], draft_length=3)
    counted = batch.position_ids[0][batch.loss_mask[0]].tolist()
    assert sorted(counted) == list(range(PROMPT, 29))


def test_padding_belongs_to_no_document_and_carries_no_loss(language: ToyLanguage) -> None:
    batch = pack([whole(language.sequence(10))], draft_length=3, size=32)
    assert batch.tokens == 32
    assert (batch.document_ids[0, 8:] == PADDING).all()
    assert not batch.loss_mask[0, 8:].any()
