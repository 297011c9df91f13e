"""The example's task: every problem has one right answer, and the rewards can tell."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TRAIN = Path(__file__).parents[3] / "examples" / "trl-grpo" / "base" / "train.py"


@pytest.fixture(scope="module")
def train() -> ModuleType:
    """The script as a module; TRL warns of vLLM versions that it has not been tested with."""
    spec = importlib.util.spec_from_file_location("train", TRAIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train"] = module  # dataclasses look their module up
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_problems_are_the_same_for_the_same_seed(train: ModuleType) -> None:
    assert train.make_problems(20, seed=3) == train.make_problems(20, seed=3)
    assert train.make_problems(20, seed=3) != train.make_problems(20, seed=4)


def test_problems_differ_in_their_number_of_steps(train: ModuleType) -> None:
    lengths = {len(problem.question.split()) for problem in train.make_problems(50, seed=3)}
    assert max(lengths) > 4 * min(lengths)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("12 + 30 = 42", 1.0),
        ("First 12, then 30.\nAnswer: 42", 1.0),
        ("That makes 1,042.\nAnswer: 42.", 1.0),
        ("42 at first, but then 43", 0.5),
        ("I do not know", 0.0),
    ],
)
def test_the_last_number_counts(train: ModuleType, text: str, reward: float) -> None:
    assert train.right_number([said(text)], answer=[42]) == [reward]


@pytest.mark.parametrize("kind", ["_sum", "_story", "_boxes", "_journey"])
def test_answers_follow_from_the_numbers_in_the_question(train: ModuleType, kind: str) -> None:
    import random

    dice = random.Random(5)
    for _ in range(50):
        problem: Any = getattr(train, kind)(dice)
        numbers = [int(item) for item in train.NUMBER.findall(problem.question)]
        expected = {
            "_sum": lambda n: n[0] + n[1],
            "_story": lambda n: n[0] + n[1] - n[2],
            "_boxes": lambda n: (n[0] * n[1] - n[2] + 1) // 2,
            "_journey": lambda n: n[0] * n[1] + 4 * n[2],
        }[kind](numbers)
        assert problem.answer == expected, problem


def test_options_are_read_and_a_bad_one_is_named(train: ModuleType) -> None:
    options = train.read_options({"GRPO_STEPS": "3", "GRPO_TEMPERATURE": "0.7"})
    assert (options.steps, options.temperature) == (3, 0.7)
    with pytest.raises(SystemExit, match="GRPO_STEPS"):
        train.read_options({"GRPO_STEPS": "many"})
