"""What half the bytes cost the drafter: the same answers recorded as bfloat16 and as float8, and a drafter of each.

A real engine answers prompts at temperature 1 and records them.  The records are written again in both element types;
from each a drafter is solved for and then trained, with the trainer's own parts, on as many tokens.  All drafters are
judged on the same held-out answers, in bfloat16.

python -m bench.capture_precision [--requests 128] [--tokens 40000] [--records FOLDER]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import engines, tables
from bench.demo.console import Console
from bench.lesson import take_steps
from tests.support.rollout_server import rollout_server
from tlt_workloads.contract import ElementType
from tlt_workloads.drafter import TargetFiles, draft_vocabulary, drafter_config, initial_tensors
from tlt_workloads.shards import CapturedSequence, ShardEntry, ShardMetadata, job_shards, read_shard, write_shard
from tlt_workloads.store import Store, open_store
from tlt_workloads.trainer.data import DataSettings, Feed
from tlt_workloads.trainer.evaluate import SequenceScore, gain, score_sequences, summarise
from tlt_workloads.trainer.fit import fit_drafter
from tlt_workloads.trainer.learner import Learner, OptimiserSettings
from tlt_workloads.trainer.model import SOFTNESS, FrozenTarget, Objective, build_drafter, read_frozen_target
from tlt_workloads.trainer.vocabulary import token_weights

ANSWER_TOKENS = 768
DRAFT_LENGTH = 3
DRAFT_VOCABULARY = 8192
SOLVED_TOKENS = 4000
HELD_OUT_TOKENS = 4000
BATCH_ROWS = 512
LEARNING_RATE = 1e-4
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one element type."""

    size: int  # bytes of all shards
    trained_tokens: int
    solved: list[SequenceScore]
    trained: list[SequenceScore]


def record(console: Console, folder: Path, *, requests: int) -> Path:
    """Lets an engine answer and record; the job's folder."""
    with (
        console.stage(f"{requests} answers", expected=60 + 2.5 * requests),
        rollout_server(engines.small_model(), *engines.FLAGS, folder=folder) as server,
    ):
        engines.configure(server, capture={}, draft_length=0)
        with concurrent.futures.ThreadPoolExecutor(requests) as pool:
            jobs = [
                pool.submit(
                    engines.answer,
                    server,
                    engines.question(number),
                    max_tokens=ANSWER_TOKENS,
                    temperature=1.0,
                    seed=number,
                )
                for number in range(requests)
            ]
            for job in jobs:
                job.result()
        server.wait_until_idle()
    return server.job


def rewritten(records: Store, folder: Path, element_type: ElementType, metadata: ShardMetadata) -> tuple[Store, int]:
    """The same shards in another element type, and their bytes."""
    store = open_store(str(folder))

    def write(entry: ShardEntry) -> int:
        written = write_shard(
            store,
            entry.path.rpartition("/")[0],
            number=entry.number,
            sequences=read_shard(records, entry.path, expected=metadata),
            metadata=metadata,
            element_type=element_type,
        )
        return written.size

    return store, sum(write(entry) for entry in job_shards(records))


class Bench:
    """A target and what drafters of it are judged by."""

    def __init__(self, model: Path, held_out: Sequence[CapturedSequence]) -> None:
        self._target = TargetFiles(model)
        self._shape = drafter_config(self._target.config, draft_vocab_size=DRAFT_VOCABULARY)
        self._held_out = held_out

    def run(self, console: Console, store: Store, *, size: int, tokens: int, name: str) -> Outcome:
        """Solves for a drafter, trains it, and judges both."""
        feed = feed_of(store, self.metadata)
        vocabulary = draft_vocabulary(
            token_weights(self._target.head(), feed.freshest(tokens=SOLVED_TOKENS), device=CPU, check=lambda: None),
            draft_vocab_size=DRAFT_VOCABULARY,
            vocab_size=self._shape.vocab_size,
        )
        untrained = initial_tensors(self._target, self._shape, vocabulary=vocabulary)
        frozen = read_frozen_target(self._target, untrained.get("t2d"))
        with console.stage(f"{name}: a drafter is solved for and judged", expected=60):
            solved = fit_drafter(
                self._shape,
                untrained,
                frozen,
                feed.freshest(tokens=SOLVED_TOKENS),
                device=CPU,
                check=lambda: None,
            )
            before = self._judge(solved, frozen)
        learner = Learner(
            build_drafter(self._shape, solved, frozen, draft_length=DRAFT_LENGTH, device=CPU, softness=SOFTNESS),
            objective=Objective(draft_length=DRAFT_LENGTH),
            settings=OptimiserSettings(learning_rate=LEARNING_RATE),
        )
        with console.stage(f"{name}: {tokens} tokens of training", expected=tokens / 250):
            trained = take_steps(learner, feed, tokens=tokens, rows=BATCH_ROWS)
        return Outcome(
            size=size, trained_tokens=trained, solved=before, trained=self._judge(learner.mean_tensors(), frozen)
        )

    @property
    def metadata(self) -> ShardMetadata:
        """What shards must be of."""
        return ShardMetadata(model="policy", layer_ids=self._shape.layer_ids)

    def _judge(self, tensors: Mapping[str, torch.Tensor], frozen: FrozenTarget) -> list[SequenceScore]:
        model = build_drafter(self._shape, tensors, frozen, draft_length=DRAFT_LENGTH, device=CPU)
        return score_sequences(model, self._held_out, draft_length=DRAFT_LENGTH, check=lambda: None)


def feed_of(store: Store, metadata: ShardMetadata) -> Feed:
    """All that a store holds."""
    settings = DataSettings(max_policy_lag=1 << 30, draft_length=DRAFT_LENGTH, memory_bytes=4 << 30)
    feed = Feed(store, metadata=metadata, settings=settings, progress={})
    feed.refresh()
    return feed


def measure(console: Console, records: Store, folder: Path, *, tokens: int) -> dict[str, float | int | None]:
    """The figures."""
    model = engines.small_model()
    shape = drafter_config(TargetFiles(model).config, draft_vocab_size=DRAFT_VOCABULARY)
    metadata = ShardMetadata(model="policy", layer_ids=shape.layer_ids)
    bench = Bench(model, feed_of(records, metadata).held_out(tokens=HELD_OUT_TOKENS))
    outcomes = {}
    for kind in ElementType:
        store, size = rewritten(records, folder / kind.value, kind, metadata)
        outcomes[kind] = bench.run(console, store, size=size, tokens=tokens, name=kind.value)
    wide, narrow = outcomes[ElementType.BFLOAT16], outcomes[ElementType.FLOAT8]
    difference = gain(narrow.trained, wide.trained)
    return {
        "bytes_ratio": wide.size / narrow.size,
        "trained_tokens": narrow.trained_tokens,
        "solved_accept_length_bfloat16": summarise(wide.solved).accept_length,
        "solved_accept_length_float8": summarise(narrow.solved).accept_length,
        "accept_length_bfloat16": summarise(wide.trained).accept_length,
        "accept_length_float8": summarise(narrow.trained).accept_length,
        "accept_length_ratio": summarise(narrow.trained).accept_length / summarise(wide.trained).accept_length,
        "accept_length_difference": difference.accept_length,
        "accept_length_difference_standard_error": difference.standard_error,
    }


def main() -> int:
    """Measures, writes bench/results/capture_precision.json and the page that is made from it."""
    parser = argparse.ArgumentParser(prog="python -m bench.capture_precision", description=__doc__)
    parser.add_argument("--requests", type=int, default=128, help="answers to record (default 128)")
    parser.add_argument("--tokens", type=int, default=40000, help="to train on, of each kind (default 40000)")
    parser.add_argument("--records", type=Path, help="a job's folder with bfloat16 records, instead of new ones")
    parser.add_argument("--dry", action="store_true", help="print the figures and write nothing")
    options = parser.parse_args()
    if min(options.requests, options.tokens) < 1:
        parser.error("--requests, --tokens: must be at least 1")
    console = Console()
    with tempfile.TemporaryDirectory(prefix="tlt-precision-") as folder:
        records = options.records or record(console, Path(folder), requests=options.requests)
        found = measure(console, open_store(str(records.absolute())), Path(folder), tokens=options.tokens)
    tables.publish("capture_precision", found, dry=options.dry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
