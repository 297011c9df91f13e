"""A drafter solved for by regression: of use before the first gradient step, and the same each time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.toy_language import ToyLanguage
from tlt_workloads.drafter import DrafterConfig, TargetFiles, draft_vocabulary, drafter_config, initial_tensors
from tlt_workloads.shards import CapturedSequence
from tlt_workloads.trainer.evaluate import score_sequences, summarise
from tlt_workloads.trainer.fit import fit_drafter, fitted_rows
from tlt_workloads.trainer.model import FrozenTarget, build_drafter, read_frozen_target
from tlt_workloads.trainer.solve import solve_start
from tlt_workloads.trainer.start import Start
from tlt_workloads.trainer.stopping import StepAbandonedError

CPU = torch.device("cpu")
DRAFT_LENGTH = 3


class Bench:
    """A target, a drafter's shape and sequences of the toy language."""

    def __init__(self, folder: Path, language: ToyLanguage, *, draft_vocab_size: int = 92) -> None:
        files = TargetFiles(folder)
        self.shape: DrafterConfig = drafter_config(files.config, draft_vocab_size=draft_vocab_size)
        vocabulary = draft_vocabulary(None, draft_vocab_size=draft_vocab_size, vocab_size=self.shape.vocab_size)
        self.untrained = initial_tensors(files, self.shape, vocabulary=vocabulary)
        self.frozen: FrozenTarget = read_frozen_target(files, self.untrained.get("t2d"))
        self.seen = [language.sequence(64) for _ in range(40)]
        self.unseen = [language.sequence(64) for _ in range(8)]

    def fit(self, *, seed: int = 0) -> dict[str, torch.Tensor]:
        return fit_drafter(
            self.shape, self.untrained, self.frozen, self.seen, device=CPU, check=lambda: None, seed=seed
        )

    def accept_length(self, tensors: dict[str, torch.Tensor]) -> float:
        model = build_drafter(self.shape, tensors, self.frozen, draft_length=DRAFT_LENGTH, device=CPU)
        scores = score_sequences(model, self.unseen, draft_length=DRAFT_LENGTH, check=lambda: None)
        return summarise(scores).accept_length


@pytest.fixture
def bench(target: Path, language: ToyLanguage) -> Bench:
    return Bench(target, language)


def test_it_drafts_before_any_gradient(bench: Bench) -> None:
    untrained, solved = bench.accept_length(bench.untrained), bench.accept_length(bench.fit())
    assert untrained < 1.2
    assert solved > 2.0  # of 4


def test_all_tensors_have_the_shapes_of_a_drafter(bench: Bench) -> None:
    solved = bench.fit()
    assert {name: tensor.shape for name, tensor in solved.items()} == {
        name: tensor.shape for name, tensor in bench.untrained.items()
    }
    assert all(bool(torch.isfinite(tensor).all()) for tensor in solved.values() if tensor.is_floating_point())


def test_the_vocabulary_is_kept(bench: Bench) -> None:
    solved = bench.fit()
    for name in ("d2t", "t2d", "lm_head.weight"):
        assert torch.equal(solved[name], bench.untrained[name])


def test_a_drafter_of_the_whole_vocabulary_is_solved_for_too(target: Path, language: ToyLanguage) -> None:
    bench = Bench(target, language, draft_vocab_size=96)
    assert "lm_head.weight" not in bench.untrained
    assert bench.accept_length(bench.fit()) > 2.0


def test_the_same_sequences_give_the_same_drafter(bench: Bench) -> None:
    first, again, other = bench.fit(), bench.fit(), bench.fit(seed=1)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_every_position_looks_at_itself(bench: Bench) -> None:
    """The move of one token must not be mixed with that of another: changing early tokens leaves later drafts alone."""
    tensors = bench.fit()
    keys = tensors["layers.0.self_attn.k_proj.weight"]
    queries = tensors["layers.0.self_attn.q_proj.weight"]
    group, size = bench.shape.attention_heads // bench.shape.key_value_heads, bench.shape.head_size
    assert torch.equal(queries.unflatten(0, (-1, size))[::group].flatten(0, 1), keys)


def test_it_can_be_left_between_its_parts(bench: Bench) -> None:
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    fit_drafter(bench.shape, bench.untrained, bench.frozen, bench.seen, device=CPU, check=count)
    for wanted in range(1, calls + 1):
        left = 0

        def leave() -> None:
            nonlocal left
            left += 1
            if left == wanted:  # noqa: B023 - called within this turn of the loop only
                raise StepAbandonedError

        with pytest.raises(StepAbandonedError):
            fit_drafter(bench.shape, bench.untrained, bench.frozen, bench.seen, device=CPU, check=leave)


def test_only_generated_tokens_count(language: ToyLanguage) -> None:
    sequence = language.sequence(64)
    rows = fitted_rows(sequence)
    assert rows.start == sequence.prompt_length - 1
    assert fitted_rows(replace(sequence, prompt_length=64)) == range(rows.stop, rows.stop)


def solve(bench: Bench, sequences: list[CapturedSequence]) -> Start:
    return solve_start(
        Start(bench.untrained, is_new=True),
        shape=bench.shape,
        frozen=bench.frozen,
        sequences=sequences,
        device=CPU,
        check=lambda: None,
    )


def test_a_solved_start_counts_its_rows_as_trained(bench: Bench) -> None:
    start = solve(bench, [replace(item, policy_version=3 + number % 2) for number, item in enumerate(bench.seen)])
    assert start.progress.trained_tokens == sum(len(fitted_rows(item)) for item in bench.seen)
    assert (start.progress.first_policy_version, start.progress.last_policy_version) == (3, 4)
    assert bench.accept_length(dict(start.tensors)) > 2.0


def test_too_few_rows_leave_the_untrained_drafter(bench: Bench) -> None:
    start = solve(bench, bench.seen[:2])
    assert start.tensors is bench.untrained
    assert start.progress.trained_tokens == 0
