"""How far training has come: the part of a checkpoint that can be read without loading tensors.

A checkpoint is a folder `checkpoints/<trained tokens>-<writer>/` with the tensors and, written last, `progress.json`;
a folder without it is unfinished and is never read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tlt_workloads.contract import CHECKPOINT_FOLDER
from tlt_workloads.store import Store

FORMAT = "tlt-checkpoint/1"
PROGRESS_FILE = "progress.json"
TENSORS_FILE = "state.safetensors"


@dataclass(frozen=True, kw_only=True)
class ShardProgress:
    """What has been made of one shard."""

    trained_rows: Mapping[int, int]  # by the sequence's place in the shard, later passes included
    fresh_rows: int  # rows that no pass has reached


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """Facts that outlive a window."""

    trained_tokens: int = 0  # positions that counted in the loss
    steps: int = 0  # of the optimiser
    windows: int = 0
    trained_seconds: float = 0.0
    micro_batch_tokens: int = 0  # as measured; 0 = not yet
    solved_rows: int = 0  # that the drafter was last solved from, whether or not that was better
    solve_seconds: float = 0.0  # how long that took
    solved_steps: int = 0  # of the optimiser when it last began on solved weights
    first_policy_version: int | None = None
    last_policy_version: int | None = None
    parent: str | None = None  # newest revision of this line
    attempted_tokens: int = 0  # trained_tokens when publishing was last tried
    attempted_seconds: float = 0.0  # trained_seconds then
    evaluation_seconds: float = 0.0  # how long that took
    shards: Mapping[str, ShardProgress] = field(default_factory=dict)
    tensors_size: int = 0  # bytes of the tensors beside

    def to_json(self) -> bytes:
        """The content of `progress.json`."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> TrainingProgress:
        """Raises ValueError when the data is not a checkpoint of this format."""
        content: dict[str, Any] = json.loads(data)
        if content.pop("format", None) != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        shards = {
            path: ShardProgress(
                trained_rows={int(index): rows for index, rows in item["trained_rows"].items()},
                fresh_rows=item["fresh_rows"],
            )
            for path, item in content.pop("shards").items()
        }
        return replace(cls(**content), shards=shards)


def checkpoint_folder(progress: TrainingProgress, writer: str) -> str:
    """Sorts by how much was trained, so that the newest of several writers wins."""
    return f"{CHECKPOINT_FOLDER}/{progress.trained_tokens:014d}-{writer}"


def finished_checkpoints(store: Store) -> Iterator[tuple[str, TrainingProgress]]:
    """Whole checkpoints, most trained first; unfinished and unreadable ones are left out."""
    for name in sorted(store.folders(CHECKPOINT_FOLDER), reverse=True):
        folder = f"{CHECKPOINT_FOLDER}/{name}"
        try:
            progress = TrainingProgress.from_json(store.read(f"{folder}/{PROGRESS_FILE}"))
            if store.size(f"{folder}/{TENSORS_FILE}") == progress.tensors_size:
                yield folder, progress
        except (OSError, ValueError, KeyError, TypeError):
            continue


def latest_progress(store: Store) -> TrainingProgress:
    """The newest whole checkpoint's facts; those of an untrained drafter when there is none."""
    return next((progress for _, progress in finished_checkpoints(store)), TrainingProgress())
