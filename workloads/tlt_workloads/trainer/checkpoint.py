"""Selective, asynchronous, atomic checkpoints: trainable tensors and optimiser moments, all float32, no pickle.

Two are kept.  The training thread only copies; a background thread serialises, writes and tidies up.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from tlt_workloads.contract import CHECKPOINT_FOLDER
from tlt_workloads.store import Store
from tlt_workloads.trainer.progress import (
    PROGRESS_FILE,
    TENSORS_FILE,
    TrainingProgress,
    checkpoint_folder,
    finished_checkpoints,
    latest_progress,
)

KEPT = 2
_log = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes checkpoints behind the training's back; at most one at a time."""

    def __init__(self, store: Store, *, writer: str) -> None:
        self._store = store
        self._writer = writer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: list[Future[None]] = []
        self._room: dict[str, torch.Tensor] = {}  # of the copy before; new memory would cost more than the copying

    @property
    def busy(self) -> bool:
        """Whether one is still being written."""
        return not all(pending.done() for pending in self._pending)

    def write(self, progress: TrainingProgress, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copies the tensors and returns; waits first when the one before is not done.

        Raises:
            OSError: the one before could not be written.
        """
        self.flush()
        self._room = {name: self._copied(name, tensor.detach()) for name, tensor in tensors.items()}
        self._pending.append(self._thread.submit(self._write, progress, self._room))

    def write_last(self, progress: TrainingProgress, tensors: Mapping[str, torch.Tensor]) -> None:
        """Takes tensors that nobody changes any more; waits for their way to the host only."""
        taken = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        self._pending.append(self._thread.submit(self._write, progress, taken))

    def flush(self) -> None:
        """Returns when all is durable.

        Raises:
            OSError: one could not be written.
        """
        while self._pending:
            self._pending.pop(0).result()

    def close(self) -> None:
        """Flushes and ends the thread."""
        try:
            self.flush()
        finally:
            self._thread.shutdown()

    def _copied(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        room = self._room.get(name)
        if room is None or (room.shape, room.dtype) != (tensor.shape, tensor.dtype):
            room = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return room.copy_(tensor)

    def _write(self, progress: TrainingProgress, tensors: Mapping[str, torch.Tensor]) -> None:
        folder = checkpoint_folder(progress, self._writer)
        data = save(dict(tensors))
        whole = replace(progress, tensors_size=len(data))
        try:
            self._store.write_atomic(f"{folder}/{TENSORS_FILE}", data)
            self._store.write_atomic(f"{folder}/{PROGRESS_FILE}", whole.to_json())
        except FileNotFoundError:
            if latest_progress(self._store).trained_tokens <= progress.trained_tokens:
                raise
            _log.warning("checkpoint %s: another trainer is further, and has tidied it away", folder)
            return
        self._tidy_up()

    def _tidy_up(self) -> None:
        kept = {folder for folder, _ in list(finished_checkpoints(self._store))[:KEPT]}
        for name in self._store.folders(CHECKPOINT_FOLDER):
            folder = f"{CHECKPOINT_FOLDER}/{name}"
            # Another writer's unfinished folder sorts where its number puts it and is left alone until it is old.
            if folder not in kept and folder < min(kept):
                self._store.remove(folder)


def load_checkpoint(store: Store) -> tuple[TrainingProgress, dict[str, torch.Tensor]] | None:
    """The newest checkpoint that can be read, older ones in its place when it cannot; None when there is none."""
    for folder, progress in finished_checkpoints(store):
        try:
            return progress, load(store.read(f"{folder}/{TENSORS_FILE}"))
        except (OSError, SafetensorError, ValueError) as error:
            _log.warning("checkpoint %s cannot be read, trying the one before: %s", folder, error)
    return None
