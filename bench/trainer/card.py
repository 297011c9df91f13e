"""A drafter of a large policy's size on a GPU: step time, tokens per second, share of the card's peak, compilation.

Hidden states are random, since only their size costs anything.  Each side runs in a fresh process, first with an empty
cache of compiled kernels and then with the one that it has left.

python -m bench.trainer.card --side ours --device cpu --shape tiny --rows 512 --steps 5
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from speculators.models.eagle3 import Eagle3DraftModel

from bench.results import ROOT
from bench.trainer.job import DRAFT_LENGTH, LOSS
from bench.trainer.speed import LEARNING_RATE, OPTIMISER, PIECE_ROWS
from tlt_workloads.drafter import DrafterConfig, draft_vocabulary, drafter_tensors
from tlt_workloads.shards import CapturedSequence
from tlt_workloads.trainer.data import TrainingBatch
from tlt_workloads.trainer.learner import Learner
from tlt_workloads.trainer.model import FrozenTarget, Objective, build_drafter
from tlt_workloads.trainer.packing import PackedBatch, Piece, pack

SIDES = ("ours", "peer")
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}  # bfloat16 without sparsity, vendor's sheets
BATCHES = 4  # different ones that take turns
_COMMON = {"rms_norm_eps": 1e-6, "max_positions": 40960, "layer_ids": (2, 18, 33), "fc_norm": True}
SHAPES = {
    "qwen3-8b": DrafterConfig(
        hidden_size=4096,
        intermediate_size=12288,
        attention_heads=32,
        key_value_heads=8,
        head_size=128,
        vocab_size=151936,
        draft_vocab_size=32000,
        position={"rope_theta": 1e6},
        **_COMMON,  # type: ignore[arg-type]
    ),
    "tiny": DrafterConfig(
        hidden_size=64,
        intermediate_size=128,
        attention_heads=4,
        key_value_heads=2,
        head_size=16,
        vocab_size=512,
        draft_vocab_size=256,
        position={"rope_theta": 1e4},
        **_COMMON,  # type: ignore[arg-type]
    ),
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One process's work; seconds and bytes."""

    first_step: float  # compiles
    step: float  # median of the others
    tokens: int  # of a step, that carry loss
    peak_memory: int
    card: str


def compare(*, device: str, shape: str, rows: int, steps: int) -> dict[str, float | int | None]:
    """Both sides, cold and warm."""
    found: dict[str, float | int | None] = {"rows": rows, "steps": steps}
    paces = {}
    for side in SIDES:
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = (_run_apart(side, cache, device=device, shape=shape, rows=rows, steps=steps) for _ in "cw")
        paces[side] = warm.tokens / warm.step
        found |= {
            f"{side}_step_s": warm.step,
            f"{side}_tokens_per_s": paces[side],
            f"{side}_cold_first_step_s": cold.first_step,
            f"{side}_warm_first_step_s": warm.first_step,
            f"{side}_peak_memory_mb": warm.peak_memory / 1e6,
        }
        peak = next((value for name, value in PEAKS.items() if name in warm.card), None)
        if peak is not None:
            found[f"{side}_mfu"] = operations(SHAPES[shape], rows=rows) / warm.step / peak
    return {"speculators_ratio": paces["ours"] / paces["peer"], **found}


def operations(shape: DrafterConfig, *, rows: int) -> float:
    """Floating-point operations of the matrices in one step: 6 for each weight that learns, 4 for a frozen one whose
    input learns, 2 for the target's answer; attention scores, norms and what is padded are not counted."""
    sizes = {name: spec.shape for name, spec in drafter_tensors(shape).items() if len(spec.shape) == 2}
    mix = sizes.pop("fc.weight")
    head = shape.draft_vocab_size * shape.hidden_size
    layer = sum(a * b for name, (a, b) in sizes.items() if name.startswith("layers."))
    return rows * (6 * mix[0] * mix[1] + DRAFT_LENGTH * (6 * layer + 4 * head) + 2 * head)


def _run_apart(side: str, cache: str, **options: object) -> Run:
    command = [sys.executable, "-m", "bench.trainer.card", "--side", side]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor", "TRITON_CACHE_DIR": f"{cache}/triton"}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"{side}: {answer.stderr[-2000:]}")
    return Run(**json.loads(answer.stdout.splitlines()[-1]))


def _model(shape: DrafterConfig, device: torch.device) -> Eagle3DraftModel:
    generator = torch.Generator().manual_seed(0)
    vocabulary = draft_vocabulary(None, draft_vocab_size=shape.draft_vocab_size, vocab_size=shape.vocab_size)

    def random_weights(*size: int) -> torch.Tensor:
        return (torch.randn(size, generator=generator) * 0.02).to(torch.bfloat16)

    tensors = {
        name: torch.ones(spec.shape) if len(spec.shape) == 1 else random_weights(*spec.shape)
        for name, spec in drafter_tensors(shape).items()
        if spec.dtype.is_floating_point
    }
    tensors |= {"d2t": vocabulary.d2t, "t2d": vocabulary.t2d}
    frozen = FrozenTarget(
        random_weights(shape.vocab_size, shape.hidden_size), random_weights(shape.draft_vocab_size, shape.hidden_size)
    )
    return build_drafter(shape, tensors, frozen, draft_length=DRAFT_LENGTH, device=device)


def _batches(shape: DrafterConfig, rows: int) -> list[PackedBatch]:
    """Pieces of answers whose lengths have a long tail (log-normal), packed to exactly so many rows."""
    generator, dice = torch.Generator().manual_seed(1), random.Random(1)
    found = []
    for _ in range(BATCHES):
        pieces, left = [], rows
        while left > 0:
            count = min(left, PIECE_ROWS, max(8, int(dice.lognormvariate(4.6, 1.0))))
            states = torch.randn(count + 1, len(shape.layer_ids) + 1, shape.hidden_size, generator=generator)
            sequence = CapturedSequence(
                token_ids=torch.randint(0, shape.vocab_size, (count + 2,), generator=generator, dtype=torch.int32),
                hidden_states=states.to(torch.bfloat16),
                prompt_length=0,
                policy_version=0,
                finished=True,
            )
            pieces.append(Piece(sequence, 0, count))
            left -= count
        found.append(pack(pieces, draft_length=DRAFT_LENGTH))
    return found


def _ours(model: Eagle3DraftModel, batches: list[PackedBatch]) -> Callable[[int], None]:
    learner = Learner(model, objective=Objective(draft_length=DRAFT_LENGTH, loss=LOSS), settings=OPTIMISER)

    def step(number: int) -> None:
        learner.micro_step(TrainingBatch(batches[number % BATCHES], {}, (0, 0)))
        learner.step_if_due()

    return step


class _Loader:
    """What the peer's trainer asks of a loader."""

    batch_sampler = None

    def __init__(self, batches: list[dict[str, Any]], count: int) -> None:
        self._batches, self._count = batches, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(self._batches[number % BATCHES]) for number in range(self._count))


def _peer_times(
    model: Eagle3DraftModel, batches: list[PackedBatch], *, steps: int, sync: Callable[[], None]
) -> list[float]:
    from speculators.train.trainer import Trainer, TrainerConfig

    from bench.trainer.peer import allow_cpu

    trainer_class = Trainer if model.device.type == "cuda" else allow_cpu()
    for name, parameter in model.named_parameters():
        if not name.startswith(("embed_tokens.", "lm_head.", "verifier_")):
            parameter.requires_grad_(True)
    implementation = "fused" if model.device.type == "cuda" else "eager"
    call, _ = type(model).get_trainer_kwargs(
        loss_fn=LOSS, loss_implementation=implementation, ttt_steps=DRAFT_LENGTH, ttt_step_loss_decay=0.8
    )
    data = [
        {
            "hidden_states": batch.features.to(torch.bfloat16),
            "verifier_last_hidden_states": batch.last_hidden.to(torch.bfloat16),
            "input_ids": batch.token_ids,
            "loss_mask": batch.loss_mask,
            "position_ids": batch.position_ids,
            "document_ids": batch.document_ids,
            "error_records": 0,
        }
        for batch in batches
    ]
    times = [time.perf_counter()]

    def stepped() -> None:
        sync()
        times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        config = TrainerConfig(
            lr=LEARNING_RATE,
            num_epochs=1,
            save_path=folder,
            train_call_kwargs=call,
            val_call_kwargs=call,
            scheduler_type="none",
            log_freq=10**9,
        )
        trainer = trainer_class(model, config, _Loader(data, steps + 1), None)
        times[0] = time.perf_counter()
        trainer.train_epoch(0, step_callback=stepped)
    return [after - before for before, after in pairwise(times)]


def _run(side: str, *, device: torch.device, shape: DrafterConfig, rows: int, steps: int) -> Run:
    is_card = device.type == "cuda"
    sync: Callable[[], None] = torch.cuda.synchronize if is_card else (lambda: None)
    model, batches = _model(shape, device), _batches(shape, rows)
    if side == "peer":
        times = _peer_times(model, batches, steps=steps, sync=sync)
    else:
        step, times = _ours(model, batches), []
        for number in range(steps + 1):
            began = time.perf_counter()
            step(number)
            sync()
            times.append(time.perf_counter() - began)
    return Run(
        first_step=times[0],
        step=sorted(times[1:])[steps // 2],
        tokens=sum(batch.trained_tokens for batch in batches) // BATCHES,
        peak_memory=torch.cuda.max_memory_allocated() if is_card else 0,
        card=torch.cuda.get_device_name() if is_card else "",
    )


def main() -> int:
    """Prints one run as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.trainer.card", description=__doc__)
    parser.add_argument("--side", choices=SIDES, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    shape = SHAPES[options.shape]
    run = _run(options.side, device=torch.device(options.device), shape=shape, rows=options.rows, steps=options.steps)
    print(json.dumps(asdict(run)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
