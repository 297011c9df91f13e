"""The feed of one replica among several: its own sequences only, and the others' work counted."""

from __future__ import annotations

import pytest

from tests.support.toy_language import LAYER_IDS, ToyLanguage
from tlt_workloads.shards import ShardMetadata
from tlt_workloads.store import Store
from tlt_workloads.trainer.data import DataSettings, Feed
from tlt_workloads.trainer.team.split import Share, sequence_key


def feed(store: Store, share: Share | None = None) -> Feed:
    made = Feed(
        store,
        metadata=ShardMetadata(model="tiny", layer_ids=LAYER_IDS),
        settings=DataSettings(max_policy_lag=4, draft_length=3, max_passes=1),
        progress={},
    )
    made.share = share or Share()
    made.refresh()
    return made


def use_up(one: Feed) -> dict[int, int]:
    """Rows by sequence key."""
    used: dict[int, int] = {}
    while (batch := one.next_batch(256)) is not None:
        one.mark_trained([batch])
        for (shard, index), rows in batch.used.items():
            used[sequence_key(shard, index)] = used.get(sequence_key(shard, index), 0) + rows
    return used


@pytest.fixture
def whole(store: Store, language: ToyLanguage) -> dict[int, int]:
    language.write_shards(store, count=12)
    return use_up(feed(store))


def test_replicas_have_everything_between_them_and_nothing_twice(store: Store, whole: dict[int, int]) -> None:
    parts = [use_up(feed(store, Share(rank=rank, size=3))) for rank in range(3)]
    assert all(parts)
    assert sum(len(part) for part in parts) == len(whole)
    assert parts[0] | parts[1] | parts[2] == whole


def test_what_others_have_trained_is_neither_forgotten_nor_done_again(store: Store, whole: dict[int, int]) -> None:
    ours, theirs = (feed(store, Share(rank=rank, size=2)) for rank in range(2))
    ours.mark_elsewhere(use_up(theirs).items())
    used = use_up(ours)
    ours.share = Share()  # the other one has left
    assert ours.next_batch(256) is None
    assert len(used) < len(whole)
    assert all(item.fresh_rows == 0 for item in ours.progress().values())


def test_news_of_a_shard_may_come_before_the_shard(store: Store, language: ToyLanguage) -> None:
    language.write_shards(store, count=2)
    ours = feed(store)
    language.write_shards(store, count=2, first=2)
    ours.mark_elsewhere(use_up(feed(store)).items())
    ours.refresh()
    assert ours.next_batch(256) is None


def test_a_newcomer_takes_the_others_word_for_all_that_was_done(store: Store, whole: dict[int, int]) -> None:
    done, late = feed(store), feed(store)
    use_up(done)
    late.adopt(done.progress())
    assert late.progress() == done.progress()
    assert late.next_batch(256) is None
