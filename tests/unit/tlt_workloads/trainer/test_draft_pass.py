"""The pass on processors gives what speculators' own forward gives: loss and every gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from speculators.models.eagle3 import Eagle3DraftModel

from tests.support.toy_language import ToyLanguage
from tlt_workloads.drafter import TargetFiles, draft_vocabulary, drafter_config, initial_tensors
from tlt_workloads.trainer.draft_pass import DraftPass
from tlt_workloads.trainer.model import (
    Objective,
    build_drafter,
    draft_logits,
    draft_loss,
    read_frozen_target,
    target_logits,
    trainable_tensors,
)
from tlt_workloads.trainer.packing import PackedBatch, Piece, pack, usable_rows
from tlt_workloads.trainer.stopping import StepAbandonedError, StopFlag

MODELS = [{}, {"norm_output": True}, {"fc_norm": False}, {"norm_before_residual": True}]


def drafter(target: Path, *, draft_length: int, softness: float = 1.0, **flags: bool) -> Eagle3DraftModel:
    files = TargetFiles(target)
    shape = replace(drafter_config(files.config, draft_vocab_size=64), **flags)
    vocabulary = draft_vocabulary(None, draft_vocab_size=64, vocab_size=96)
    torch.manual_seed(0)
    tensors = {
        name: tensor + 0.05 * torch.randn(tensor.shape).to(tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in initial_tensors(files, shape, vocabulary=vocabulary).items()
        if name != "lm_head.weight"
    }
    frozen = read_frozen_target(files, vocabulary.t2d)
    return build_drafter(
        shape, tensors, frozen, draft_length=draft_length, device=torch.device("cpu"), softness=softness
    )


def batch_of(language: ToyLanguage, lengths: list[int], *, draft_length: int) -> PackedBatch:
    pieces = []
    for length in lengths:
        sequence = language.sequence(length)
        rows = usable_rows(sequence)
        pieces.append(Piece(sequence, rows.start, rows.stop))
    return pack(pieces, draft_length=draft_length)


def gradients(model: Eagle3DraftModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    found = {name: tensor.grad for name, tensor in trainable_tensors(model).items()}
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def passed(model: Eagle3DraftModel, objective: Objective, *, low: bool) -> DraftPass:
    return DraftPass(
        model,
        draft_length=objective.draft_length,
        loss=objective.loss,
        step_decay=objective.step_decay,
        check=lambda: None,
        low_precision=low,
    )


@pytest.mark.parametrize("flags", MODELS, ids=str)
@pytest.mark.parametrize("draft_length", [1, 3, 4])
def test_loss_and_gradients_are_those_of_the_library(
    target: Path, language: ToyLanguage, flags: dict[str, bool], draft_length: int
) -> None:
    model = drafter(target, draft_length=draft_length, **flags)
    objective = Objective(draft_length=draft_length)
    batch = batch_of(language, [12, 30, 9, 21], draft_length=draft_length)
    wanted = draft_loss(model, batch, objective)
    found = passed(model, objective, low=False)(batch)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    theirs, ours = gradients(model, wanted), gradients(model, found)
    assert ours.keys() == theirs.keys() == trainable_tensors(model).keys()
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("softness", [1.0, 1.4])
@pytest.mark.parametrize("loss", ["kl_div", "tv", "lk_hybrid", '{"ce": 0.3, "kl_div": 0.7}'])
def test_every_loss_of_the_library_can_be_chosen(
    target: Path, language: ToyLanguage, loss: str, softness: float
) -> None:
    model, objective = drafter(target, draft_length=3, softness=softness), Objective(draft_length=3, loss=loss)
    batch = batch_of(language, [15, 15, 28], draft_length=3)
    wanted = draft_loss(model, batch, objective)
    found = passed(model, objective, low=False)(batch)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    theirs, ours = gradients(model, wanted), gradients(model, found)
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, rtol=1e-3, atol=1e-6), name


def test_bfloat16_leaves_loss_and_direction_as_they_are(target: Path, language: ToyLanguage) -> None:
    model, objective = drafter(target, draft_length=3), Objective(draft_length=3)
    batch = batch_of(language, [40, 30, 50], draft_length=3)
    wanted = draft_loss(model, batch, objective)
    found = passed(model, objective, low=True)(batch)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=0.02)
    theirs, ours = gradients(model, wanted), gradients(model, found)
    for name, gradient in theirs.items():
        likeness = torch.nn.functional.cosine_similarity(ours[name].flatten(), gradient.flatten(), dim=0)
        assert likeness > 0.99, name


def test_a_batch_without_loss_has_none(target: Path, language: ToyLanguage) -> None:
    model = drafter(target, draft_length=3)
    batch = batch_of(language, [12], draft_length=3)
    batch.loss_mask[:] = False
    loss = passed(model, Objective(draft_length=3), low=False)(batch)
    assert float(loss.detach()) == 0.0
    assert not any(gradient.any() for gradient in gradients(model, loss).values())


def test_it_can_be_left_between_blocks(target: Path, language: ToyLanguage) -> None:
    stop = StopFlag()
    stop.set()
    work = DraftPass(
        drafter(target, draft_length=3), draft_length=3, loss="kl_div", step_decay=0.8, check=stop.abandon_step
    )
    with pytest.raises(StepAbandonedError):
        work(batch_of(language, [12], draft_length=3))


def test_compared_softly_drafts_and_answers_are_the_distributions_at_that_temperature(
    target: Path, language: ToyLanguage
) -> None:
    model, batch = drafter(target, draft_length=1), batch_of(language, [30], draft_length=1)
    drafted, wanted = draft_logits(model, batch, draft_length=1)[0], target_logits(model, batch)
    rows = batch.loss_mask[0]
    divergence = torch.nn.functional.kl_div(
        torch.log_softmax(drafted[rows] / 1.4, -1),
        torch.log_softmax(wanted[rows] / 1.4, -1),
        reduction="batchmean",
        log_target=True,
    )
    soft = drafter(target, draft_length=1, softness=1.4)
    found = passed(soft, Objective(draft_length=1), low=False)(batch)
    assert float(found.detach()) == pytest.approx(float(divergence), rel=1e-4)
