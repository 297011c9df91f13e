"""How long training stands still for a checkpoint: ours, and one that writes everything while nothing else happens."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.trainer.data import Material
from bench.trainer.job import DRAFT_LENGTH, LOSS
from bench.trainer.speed import OPTIMISER
from tlt_workloads.store import open_store
from tlt_workloads.trainer.checkpoint import CheckpointWriter
from tlt_workloads.trainer.learner import Learner
from tlt_workloads.trainer.model import Objective
from tlt_workloads.trainer.progress import TrainingProgress

ROWS = 256
STEPS_BETWEEN = 2


@dataclass(frozen=True, kw_only=True)
class Stalls:
    """Seconds, medians over the rounds."""

    ours: float  # until the next micro-step can begin
    background: float  # until ours is durable
    slowed: float  # by how much the micro-steps meanwhile took longer than others
    full: float
    our_bytes: int
    full_bytes: int


def stalls(material: Material, *, rounds: int) -> Stalls:
    """Takes turns on one learner, on the disk where the material lies.

    The full way is `torch.save` of the module with its frozen tensors and of the optimiser, and `fsync`, as TLT's
    paper describes its baseline.
    """
    feed = material.feed(max_passes=1000)
    learner = Learner(material.start(), objective=Objective(draft_length=DRAFT_LENGTH, loss=LOSS), settings=OPTIMISER)

    def step() -> float:
        batch = feed.next_batch(ROWS)
        assert batch is not None
        began = time.perf_counter()
        learner.micro_step(batch)
        feed.mark_trained(learner.step_if_due())
        return time.perf_counter() - began

    for _ in range(3):
        step()
    ours, background, slowed, full = [], [], [], []
    with tempfile.TemporaryDirectory(dir=material.folder) as folder:
        writer = CheckpointWriter(open_store(folder), writer="bench")
        for number in range(rounds + 1):
            quiet = statistics.median(step() for _ in range(STEPS_BETWEEN + 1))
            began = time.perf_counter()
            writer.write(TrainingProgress(trained_tokens=number + 1), learner.tensors())
            stalled = time.perf_counter() - began
            during = []
            while writer.busy:
                during.append(step())
            writer.flush()
            durable = time.perf_counter() - began
            whole = _write_everything(learner, Path(folder) / "full.pt")
            if number:  # the first one makes room in memory
                ours.append(stalled)
                background.append(durable)
                slowed.append(sum(item - quiet for item in during))
                full.append(whole)
        full_bytes = (Path(folder) / "full.pt").stat().st_size
        writer.close()
    return Stalls(
        ours=statistics.median(ours),
        background=statistics.median(background),
        slowed=max(0.0, statistics.median(slowed)),
        full=statistics.median(full),
        our_bytes=sum(tensor.nbytes for tensor in learner.tensors().values()),
        full_bytes=full_bytes,
    )


def _write_everything(learner: Learner, path: Path) -> float:
    began = time.perf_counter()
    with path.open("wb") as stream:
        torch.save({"model": learner.model.state_dict(), "optimiser": learner.optimiser_state()}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    return time.perf_counter() - began
