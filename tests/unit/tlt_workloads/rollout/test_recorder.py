"""The recorder's budgets: what fits is written, the rest is dropped and counted, nothing waits."""

from __future__ import annotations

import collections
from pathlib import Path

import torch

from tests.support.eventually import eventually
from tlt_workloads.contract import CaptureSettings
from tlt_workloads.rollout import recorder as module
from tlt_workloads.rollout.capture import NewRequest, StepRows
from tlt_workloads.rollout.recorder import Destination, ShardRecorder
from tlt_workloads.shards import ShardMetadata, read_shard, shard_entries
from tlt_workloads.store import open_store

FOLDER = "hidden-states/pod-0"


class Bench:
    """A recorder that writes into a folder, fed with whole sequences of one step."""

    def __init__(self, folder: Path, **settings: float) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.store = open_store(str(folder))
        self.recorder = ShardRecorder(count=self._count)
        self.recorder.direct(
            Destination(
                store=self.store,
                folder=FOLDER,
                metadata=ShardMetadata(model="tiny", layer_ids=(1,)),
                settings=CaptureSettings(**settings),  # type: ignore[arg-type]
            )
        )

    def _count(self, total: str, amount: float) -> None:
        self.counts[total] += int(amount)

    def sequence(self, name: str, *, tokens: int = 20, version: int = 1) -> bool:
        """A prompt of `tokens` and one generated token."""
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
        self.recorder.finish((name,))
        return taken

    def stop(self) -> list[str]:
        """Ends it; the names of the shards."""
        self.recorder.stop()
        return [entry.path.rsplit("/", 1)[1] for entry in shard_entries(self.store, FOLDER)]


def test_sequences_become_shards_of_one_policy_each(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.sequence("a")
    bench.sequence("b")
    bench.sequence("c", version=2)
    assert bench.stop() == ["00000000-p1-t40.safetensors", "00000001-p2-t20.safetensors"]
    assert (bench.counts["tokens"], bench.counts["sequences"], bench.counts["shards"]) == (60, 3, 2)
    assert bench.counts["dropped_tokens"] == 0
    (first, *_) = read_shard(bench.store, f"{FOLDER}/00000000-p1-t40.safetensors")
    assert (first.prompt_length, first.finished, len(first.token_ids)) == (20, True, 21)


def test_an_idle_pod_has_its_data_in_the_store(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.sequence("a")
    eventually(lambda: shard_entries(bench.store, FOLDER), reason="the shard is written without further steps")
    bench.stop()


def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    first.sequence("a")
    first.stop()
    second = Bench(tmp_path)
    second.sequence("b")
    assert second.stop() == ["00000000-p1-t20.safetensors", "00000001-p1-t20.safetensors"]


def test_each_policy_version_has_its_budget(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_tokens_per_step=30)
    for name in "abcd":
        bench.sequence(name)
        bench.recorder._queue.put(())  # nothing finished; keeps the order of events plain
    bench.sequence("e", version=2)
    bench.stop()
    assert bench.counts["tokens"] == 60
    assert bench.counts["sequences"] == 3


def test_the_oldest_shards_go_first(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_bytes=3000)
    for version in range(1, 9):
        bench.sequence("a", version=version, tokens=40)
    names = bench.stop()
    assert names[-1].startswith("00000007-p8")
    assert 1 <= len(names) < 8
    assert sum(entry.size for entry in shard_entries(bench.store, FOLDER)) <= 3000


def test_a_share_of_the_sequences(tmp_path: Path) -> None:
    bench = Bench(tmp_path, sample_rate=0.5)
    for number in range(200):
        bench.sequence(f"request-{number}", tokens=2)
    bench.stop()
    assert 60 < bench.counts["sequences"] < 140


def test_nothing_is_recorded_when_it_is_off(tmp_path: Path) -> None:
    bench = Bench(tmp_path, enabled=False)
    bench.sequence("a")
    assert bench.stop() == []


def test_when_the_thread_is_behind_steps_are_dropped_and_counted(tmp_path: Path, monkeypatch: object) -> None:
    bench = Bench(tmp_path)
    size = 20 * 2 * 4 * 2
    bench.recorder._pending.add(module.PENDING_BYTES - size)
    assert bench.sequence("a")
    bench.recorder._pending.add(size)
    assert not bench.sequence("b")
    bench.stop()
    assert bench.counts["dropped_tokens"] == 20
    assert bench.counts["sequences"] == 1


def test_a_store_that_fails_loses_the_shard_and_nothing_else(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    blocked = tmp_path / "hidden-states"
    blocked.write_text("a file where the folder should be")
    bench.sequence("a")
    eventually(lambda: bench.counts["dropped_tokens"] == 20, reason="the loss is counted")
    blocked.unlink()
    bench.sequence("b")
    assert bench.stop() == ["00000000-p1-t20.safetensors"]
