"""The ring holds its bytes, and the oldest policy leaves first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tlt_workloads.rollout.ring import ShardRing
from tlt_workloads.shards import CapturedSequence, ShardMetadata, shard_entries, write_shard
from tlt_workloads.store import Store, open_store

FOLDER = "hidden-states/pod-0"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def write(store: Store, ring: ShardRing, *, version: int) -> int:
    """A shard of this version; its bytes."""
    sequence = CapturedSequence(
        token_ids=torch.arange(21, dtype=torch.int32),
        hidden_states=torch.zeros(20, 2, 8, dtype=torch.bfloat16),
        prompt_length=4,
        policy_version=version,
        finished=True,
    )
    metadata = ShardMetadata(model="tiny", layer_ids=(1,))
    entry = write_shard(store, FOLDER, number=ring.next_number, sequences=[sequence], metadata=metadata)
    ring.add(entry)
    return entry.size


def versions(store: Store) -> list[int]:
    return [entry.policy_version for entry in shard_entries(store, FOLDER)]


def test_the_oldest_policy_leaves_first_whenever_it_was_written(store: Store) -> None:
    ring = ShardRing(store, FOLDER)
    size = max(write(store, ring, version=version) for version in (5, 3, 4, 3, 6))
    ring.trim(3 * size)
    assert versions(store) == [5, 4, 6]
    assert ring.size <= 3 * size


def test_the_newest_shard_stays_however_old_its_policy_is(store: Store) -> None:
    ring = ShardRing(store, FOLDER)
    for version in (7, 8, 0):  # a learner that has begun anew
        write(store, ring, version=version)
    ring.trim(1)
    assert versions(store) == [0]


def test_a_ring_goes_on_with_what_is_there(store: Store) -> None:
    first = ShardRing(store, FOLDER)
    size = max(write(store, first, version=version) for version in (1, 2, 3))
    second = ShardRing(store, FOLDER)
    assert (second.next_number, second.size) == (3, first.size)
    write(store, second, version=3)
    second.trim(2 * size)
    assert versions(store) == [3, 3]


def test_room_is_made_from_the_oldest_and_never_from_the_last(store: Store) -> None:
    ring = ShardRing(store, FOLDER)
    size = max(write(store, ring, version=version) for version in (1, 2, 3))
    assert ring.make_room(size)
    assert versions(store) == [2, 3]
    assert not ring.make_room(10 * size)
    assert versions(store) == [3]
