"""The recorder's budgets: what fits is written, the rest is dropped and counted, nothing waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.recorder_bench import FOLDER, RecorderBench
from tlt_workloads.contract import ElementType
from tlt_workloads.rollout import recorder as module
from tlt_workloads.shards import read_shard, shard_entries


def test_sequences_become_shards_of_one_policy_each(tmp_path: Path) -> None:
    bench = RecorderBench(tmp_path)
    bench.sequence("a")
    bench.sequence("b")
    bench.sequence("c", version=2)
    assert bench.stop() == ["00000000-p1-t40.safetensors", "00000001-p2-t20.safetensors"]
    assert (bench.counts["tokens"], bench.counts["sequences"], bench.counts["shards"]) == (60, 3, 2)
    assert not [total for total in bench.counts if total.startswith("dropped")]
    (first, *_) = read_shard(bench.store, f"{FOLDER}/00000000-p1-t40.safetensors")
    assert (first.prompt_length, first.finished, len(first.token_ids)) == (20, True, 21)


def test_an_idle_pod_has_its_data_in_the_store(tmp_path: Path) -> None:
    bench = RecorderBench(tmp_path)
    bench.sequence("a")
    eventually(lambda: shard_entries(bench.store, FOLDER), reason="the shard is written without further steps")
    bench.stop()


def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    first = RecorderBench(tmp_path)
    first.sequence("a")
    first.stop()
    second = RecorderBench(tmp_path)
    second.sequence("b")
    assert second.stop() == ["00000000-p1-t20.safetensors", "00000001-p1-t20.safetensors"]


@pytest.mark.parametrize(
    "budget", [{"max_tokens_per_step": 45}, {"max_bytes_per_step": 45 * 16}], ids=["tokens", "bytes"]
)
def test_each_policy_version_has_its_budget(tmp_path: Path, budget: dict[str, int]) -> None:
    bench = RecorderBench(tmp_path, **budget)
    for name in "abcd":
        bench.sequence(name)
    bench.sequence("e", version=2)
    bench.stop()
    assert bench.counts["tokens"] == 60
    assert bench.counts["sequences"] == 3
    assert bench.counts["dropped_step_budget"] == 40


def test_rows_are_stored_as_asked(tmp_path: Path) -> None:
    bench = RecorderBench(tmp_path, element_type=ElementType.FLOAT8)
    bench.sequence("a")
    [name] = bench.stop()
    assert b"F8_E4M3" in bench.store.read(f"{FOLDER}/{name}")


def test_long_sequences_take_the_place_of_short_ones(tmp_path: Path) -> None:
    bench = RecorderBench(tmp_path, max_tokens_per_step=200)
    lengths = [10] * 20 + [80, 100]
    for version in (1, 2):
        for number, length in enumerate(lengths):
            bench.sequence(f"{version}-{number}", tokens=length, version=version)
    bench.stop()
    kept = [
        len(sequence.hidden_states)
        for entry in shard_entries(bench.store, FOLDER)
        if entry.policy_version == 2
        for sequence in read_shard(bench.store, entry.path)
    ]
    assert kept == [10] * 5 + [100]  # a quarter for whoever comes first; the rest was kept for the longest


def test_the_oldest_policies_go_first(tmp_path: Path) -> None:
    bench = RecorderBench(tmp_path, max_bytes=3000)
    for version in range(1, 9):
        bench.sequence("a", version=version, tokens=40)
    names = bench.stop()
    assert names[-1].startswith("00000007-p8")
    assert 1 <= len(names) < 8
    assert sum(entry.size for entry in shard_entries(bench.store, FOLDER)) <= 3000


def test_a_share_of_the_sequences(tmp_path: Path) -> None:
    bench = RecorderBench(tmp_path, sample_rate=0.5)
    for number in range(200):
        bench.sequence(f"request-{number}", tokens=2)
    bench.stop()
    assert 60 < bench.counts["sequences"] < 140


def test_nothing_is_recorded_when_it_is_off(tmp_path: Path) -> None:
    bench = RecorderBench(tmp_path, enabled=False)
    bench.sequence("a")
    assert bench.stop() == []


def test_when_the_thread_is_behind_steps_are_dropped_and_counted(tmp_path: Path) -> None:
    bench = RecorderBench(tmp_path)
    size = 20 * 2 * 4 * 2
    bench.recorder._pending.add(module.PENDING_BYTES - size)
    assert bench.sequence("a")
    bench.recorder._pending.add(size)
    assert not bench.sequence("b")
    bench.stop()
    assert bench.counts["dropped_behind"] == 20
    assert bench.counts["sequences"] == 1


def test_once_a_budget_is_used_up_nothing_more_is_copied(tmp_path: Path) -> None:
    bench = RecorderBench(tmp_path, max_tokens_per_step=20)
    bench.sequence("a")
    eventually(lambda: bench.counts["sequences"] == 1, reason="the shard is written")
    assert not bench.recorder.admits("b", policy_version=1)
    assert bench.recorder.admits("b", policy_version=2)
    bench.stop()


def test_too_many_long_requests_at_once_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_BYTES", -1)
    bench = RecorderBench(tmp_path)
    bench.sequence("a")
    assert bench.stop() == []
    assert bench.counts["dropped_memory"] == 20
