"""A recorder over a real store, fed with whole sequences as the engine's tap hands them over."""

from __future__ import annotations

import collections
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tlt_workloads.contract import CaptureSettings
from tlt_workloads.rollout.capture import NewRequest, StepRows
from tlt_workloads.rollout.recorder import ShardRecorder
from tlt_workloads.rollout.shard_writer import Destination
from tlt_workloads.shards import ShardMetadata, shard_entries
from tlt_workloads.store import Store, open_store

FOLDER = "hidden-states/pod-0"
METADATA = ShardMetadata(model="tiny", layer_ids=(1,))
LOGGER = logging.getLogger("vllm.tlt")


class RecorderBench:
    """A recorder that writes into a folder, fed with whole sequences of one step."""

    def __init__(self, folder: Path | Store, **settings: Any) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.store = folder if isinstance(folder, Store) else open_store(str(folder))
        self.recorder = ShardRecorder(count=self._count)
        self.recorder.direct(
            Destination(
                store=self.store,
                folder=FOLDER,
                metadata=METADATA,
                settings=CaptureSettings(**settings),
            )
        )

    def _count(self, total: str, amount: float) -> None:
        self.counts[total] += int(amount)

    def sequence(self, name: str, *, tokens: int = 20, version: int = 1) -> bool:
        """A prompt of `tokens` and one generated token, as the tap hands it over."""
        if not self.recorder.admits(name, policy_version=version):
            return False
        taken = self.recorder.offer(
            StepRows(
                requests=(name,),
                counts=(tokens,),
                rows=torch.zeros(tokens, 2, 4, dtype=torch.bfloat16),
                positions=torch.arange(tokens),
                sampled=torch.tensor([[7]]),
                partial=(False,),
                resumed={},
                new={name: NewRequest(prompt_ids=tuple(range(tokens)), max_tokens=1, stop_ids=frozenset())},
                policy_version=version,
                copied=None,
            )
        )
        if taken:
            self.recorder.finish((name,))
        else:
            self.recorder.abandon((name,))
        return taken

    def stop(self) -> list[str]:
        """Ends it; the names of the shards."""
        self.recorder.stop()
        return [entry.path.rsplit("/", 1)[1] for entry in shard_entries(self.store, FOLDER)]


@contextmanager
def warnings_of_the_capture() -> Iterator[list[str]]:
    """What the capture logs as a warning or worse."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Collector(level=logging.WARNING)
    LOGGER.addHandler(handler)
    try:
        yield messages
    finally:
        LOGGER.removeHandler(handler)
