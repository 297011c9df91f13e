"""What is trained on: answers of a real policy, captured by the plugin, and a drafter to begin with."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from speculators.models.eagle3 import Eagle3DraftModel

from bench import engines
from bench.demo.console import Console
from bench.lesson import Lesson
from bench.speculation import LONGEST
from bench.trainer.job import DRAFT_LENGTH, LOSS, job_settings
from tests.support.rollout_server import JOB, rollout_server
from tlt_workloads.drafter import DrafterConfig, TargetFiles
from tlt_workloads.shards import CapturedSequence, ShardMetadata
from tlt_workloads.store import Store, open_store
from tlt_workloads.trainer.data import DataSettings, Feed
from tlt_workloads.trainer.model import FrozenTarget, Objective, build_drafter, draft_loss, read_frozen_target
from tlt_workloads.trainer.packing import Piece, pack, usable_rows
from tlt_workloads.trainer.settings import TrainerSettings
from tlt_workloads.trainer.solve import solve_start
from tlt_workloads.trainer.start import find_start, shape_of_drafter
from tlt_workloads.trainer.vocabulary import token_weights

HELD_OUT_TOKENS = 3000
SOLVED_TOKENS = 4000
_START = "start.safetensors"
_FACTS = "facts.json"
_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Material:
    """A folder with captured answers (`store/`) and the drafter that every trainer begins with."""

    folder: Path
    model: Path

    @property
    def settings(self) -> TrainerSettings:
        """Of a trainer pod that has this store."""
        return job_settings(self.folder, self.model, job=JOB)

    @property
    def store(self) -> Store:
        """The job's folder."""
        return open_store(self.settings.job_store_url)

    @property
    def target(self) -> TargetFiles:
        """The policy's files."""
        return TargetFiles(self.model)

    @property
    def shape(self) -> DrafterConfig:
        """Of the drafter."""
        return shape_of_drafter(self.settings.config, self.target)

    def feed(self, *, max_passes: int = 1) -> Feed:
        """All captured answers, held-out ones apart."""
        config = self.settings.config
        feed = Feed(
            self.store,
            metadata=ShardMetadata(model=str(self.model), layer_ids=self.shape.layer_ids),
            settings=DataSettings(
                max_policy_lag=config.max_policy_lag, draft_length=DRAFT_LENGTH, max_passes=max_passes
            ),
            progress={},
        )
        feed.refresh()
        return feed

    def start_tensors(self) -> dict[str, torch.Tensor]:
        """The drafter to begin with, as in a file."""
        tensors: dict[str, torch.Tensor] = load_file(self.folder / _START)
        return tensors

    def start(self) -> Eagle3DraftModel:
        """The drafter to begin with."""
        tensors = self.start_tensors()
        return build_drafter(self.shape, tensors, self.frozen(tensors), draft_length=DRAFT_LENGTH, device=_CPU)

    def frozen(self, tensors: dict[str, torch.Tensor]) -> FrozenTarget:
        """Embedding and head of the policy."""
        return read_frozen_target(self.target, tensors.get("t2d"))

    def lengths(self) -> list[int]:
        """Tokens of the answers, as they were captured."""
        found: list[int] = json.loads((self.folder / _FACTS).read_text())["lengths"]
        return found


def prepare(console: Console, folder: Path, *, tokens: int) -> Material:
    """Captures and solves for a first drafter, unless the folder holds both already."""
    material = Material(folder, engines.small_model())
    if not (folder / _FACTS).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            flags = (*engines.FLAGS, "--speculative-tokens", str(LONGEST))
            with console.stage("a server", expected=60):
                server = stack.enter_context(rollout_server(material.model, *flags, folder=folder))
            with console.stage(f"capture of {tokens} tokens", expected=tokens / 200):
                lesson = Lesson(server, material.model, draft_length=LONGEST, seed=1)
                lesson.capture(tokens)
        (folder / _FACTS).write_text(json.dumps({"lengths": lesson.lengths}))
    if not (folder / _START).exists():
        with console.stage("a drafter to begin with", expected=20):
            _solve(material)
    return material


def held_out_loss(model: Eagle3DraftModel, sequences: list[CapturedSequence]) -> float:
    """Mean loss in float32 over held-out answers, by speculators' own forward whatever trained the model."""
    total, positions = 0.0, 0
    with torch.no_grad():
        for sequence in sequences:
            rows = usable_rows(sequence)
            batch = pack([Piece(sequence, rows.start, rows.stop)], draft_length=DRAFT_LENGTH)
            if batch.trained_tokens:
                loss = draft_loss(model, batch, Objective(draft_length=DRAFT_LENGTH, loss=LOSS))
                total += float(loss) * batch.trained_tokens
                positions += batch.trained_tokens
    return total / positions


def _solve(material: Material) -> None:
    feed = material.feed()
    start = find_start(
        material.store,
        config=material.settings.config,
        target=material.target,
        shape=material.shape,
        token_weights=lambda: token_weights(
            material.target.head(), feed.freshest(tokens=SOLVED_TOKENS), device=_CPU, check=lambda: None
        ),
    )
    solved = solve_start(
        start,
        shape=material.shape,
        frozen=material.frozen(dict(start.tensors)),
        sequences=feed.freshest(tokens=SOLVED_TOKENS),
        device=_CPU,
        check=lambda: None,
    )
    save_file(dict(solved.tensors), material.folder / _START)
