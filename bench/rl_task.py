"""The example's own task, for benchmarks that need rollouts as a job has them: its answers differ much in length."""

from __future__ import annotations

import functools
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

from bench.results import ROOT

EXAMPLE = ROOT / "examples" / "trl-grpo" / "base" / "train.py"
LONGEST_ANSWER = 512  # tokens, as in the example
GENERATIONS = 4  # answers to each question
TEMPERATURE = 0.7


def prompts(count: int, *, seed: int) -> Sequence[str]:
    """So many questions of the example's GRPO run in the model's chat format, the same ones for a seed."""
    example = _example()
    return [
        f"<|im_start|>user\n{problem.question} {example.INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"
        for problem in example.make_problems(count, seed=seed)
    ]


@functools.cache
def _example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_train", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL warns of vLLM versions that it has not been tested with
        spec.loader.exec_module(module)
    return module
