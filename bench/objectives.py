"""What a drafter learns by: losses, how softly distributions are compared, and flags of its architecture.

Answers of SmolLM2-135M are captured as `python -m bench.trainer` does it (`--data` shares them with it).  Then drafters
that begin as the same one take the same steps over the same tokens and differ in one thing each.  They are judged by
their simulated accept length on the same held-out answers, so that differences are far more certain than the values:
each has its own standard error.  A drafter that does not normalise each auxiliary layer by itself cannot be solved for
(decision 0010), so it is held against one that begins unsolved, too.

python -m bench.objectives [--tokens 60000] [--train 30000] [--data FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from speculators.models.eagle3 import Eagle3DraftModel

from bench import tables
from bench.demo.console import Console
from bench.lesson import LEARNING_RATE, take_steps
from bench.trainer.data import Material, prepare
from bench.trainer.job import DRAFT_LENGTH
from tlt_workloads.drafter import DrafterConfig, DraftVocabulary, initial_tensors
from tlt_workloads.shards import CapturedSequence
from tlt_workloads.trainer.evaluate import SequenceScore, gain, score_sequences, summarise
from tlt_workloads.trainer.learner import Learner, OptimiserSettings
from tlt_workloads.trainer.model import Objective, build_drafter

MICRO_ROWS = 192
HELD_OUT_TOKENS = 12_000
CPU = torch.device("cpu")
_KL = Objective(draft_length=DRAFT_LENGTH)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to learn."""

    name: str
    objective: Objective = _KL
    softness: float = 1.0
    flags: Mapping[str, Any] = field(default_factory=dict)  # of the architecture, unlike the default's
    is_solved: bool = True  # begins with the solution
    against: str = "kl"


VARIANTS = (
    Variant(name="kl"),
    Variant(name="kl_at_1_4", softness=1.4),
    Variant(name="kl_at_2", softness=2.0),
    Variant(name="kl_at_3", softness=3.0),
    Variant(name="tv", objective=replace(_KL, loss="tv")),
    Variant(name="lk_hybrid", objective=replace(_KL, loss="lk_hybrid")),
    Variant(name="lk_hybrid_at_1_4", objective=replace(_KL, loss="lk_hybrid"), softness=1.4),
    Variant(name="lk_hybrid_at_2", objective=replace(_KL, loss="lk_hybrid"), softness=2.0),
    Variant(name="norm_output", flags={"norm_output": True}),
    Variant(name="unsolved", is_solved=False),
    Variant(name="unsolved_without_fc_norm", is_solved=False, flags={"fc_norm": False}, against="unsolved"),
)


class Bench:
    """Answers to learn from, and others to be judged by."""

    def __init__(self, material: Material, *, train: int) -> None:
        self._material = material
        self._train = train
        self._held_out: Sequence[CapturedSequence] = material.feed().held_out(tokens=HELD_OUT_TOKENS)
        self._solved = material.start_tensors()

    @property
    def held_out_tokens(self) -> int:
        """Rows of the answers that drafters are judged by."""
        return sum(len(item.hidden_states) for item in self._held_out)

    def solution(self) -> list[SequenceScore]:
        """Of the solved drafter before any step."""
        return self._judge(self._material.shape, self._solved)

    def run(self, variant: Variant) -> tuple[int, list[SequenceScore]]:
        """Tokens that a drafter was trained on, fewer than wanted where there are no more, and its scores."""
        shape = replace(self._material.shape, **variant.flags)
        start = self._solved if variant.is_solved else self._unsolved(shape)
        tensors = {name: tensor.clone() for name, tensor in start.items()}  # training changes them
        learner = Learner(
            self._built(shape, tensors, softness=variant.softness),
            objective=variant.objective,
            settings=OptimiserSettings(learning_rate=LEARNING_RATE),
        )
        trained = take_steps(learner, self._material.feed(), tokens=self._train, rows=MICRO_ROWS)
        return trained, self._judge(shape, learner.mean_tensors())

    def _unsolved(self, shape: DrafterConfig) -> dict[str, torch.Tensor]:
        vocabulary = DraftVocabulary(self._solved["d2t"], self._solved["t2d"])
        return initial_tensors(self._material.target, shape, vocabulary=vocabulary)

    def _judge(self, shape: DrafterConfig, tensors: Mapping[str, torch.Tensor]) -> list[SequenceScore]:
        model = self._built(shape, tensors, softness=1.0)
        return score_sequences(model, self._held_out, draft_length=DRAFT_LENGTH, check=lambda: None)

    def _built(self, shape: DrafterConfig, tensors: Mapping[str, torch.Tensor], *, softness: float) -> Eagle3DraftModel:
        frozen = self._material.frozen(dict(tensors))
        return build_drafter(shape, tensors, frozen, draft_length=DRAFT_LENGTH, device=CPU, softness=softness)


def measure(console: Console, folder: Path, *, tokens: int, train: int) -> dict[str, float | int | None]:
    """All variants, one after the other."""
    bench = Bench(prepare(console, folder, tokens=tokens), train=train)
    found: dict[str, list[SequenceScore]] = {}
    for variant in VARIANTS:
        with console.stage(variant.name, expected=train / 250):
            trained, found[variant.name] = bench.run(variant)
        console.say(f"  accept length {summarise(found[variant.name]).accept_length:.3f}")
    lengths = {f"accept_length_{name}": summarise(scores).accept_length for name, scores in found.items()}
    differences: dict[str, float | int | None] = {}
    for variant in VARIANTS:
        if variant.name != variant.against:
            difference = gain(found[variant.name], found[variant.against])
            differences[f"{variant.name}_over_{variant.against}"] = difference.accept_length
            differences[f"{variant.name}_over_{variant.against}_standard_error"] = difference.standard_error
    score = summarise(found["kl"])
    return {
        "trained_tokens": trained,
        "held_out_tokens": bench.held_out_tokens,
        "accept_length_solution": summarise(bench.solution()).accept_length,
        **lengths,
        "accept_length_standard_error": score.standard_error,
        **differences,
    }


def main() -> int:
    """Measures, writes bench/results/objectives.json and the page that is made from it."""
    parser = argparse.ArgumentParser(prog="python -m bench.objectives", description=__doc__)
    parser.add_argument("--tokens", type=int, default=60_000, help="to capture (default 60000)")
    parser.add_argument("--train", type=int, default=30_000, help="tokens to train each on (default 30000)")
    parser.add_argument("--data", type=Path, help="folder to capture into, or where that was done before")
    parser.add_argument("--dry", action="store_true", help="print the figures and write nothing")
    options = parser.parse_args()
    for name in ("tokens", "train"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name}: {getattr(options, name)} is not above 0")
    with contextlib.ExitStack() as stack:
        folder = options.data or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = measure(Console(), folder.absolute(), tokens=options.tokens, train=options.train)
    tables.publish("objectives", found, dry=options.dry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
