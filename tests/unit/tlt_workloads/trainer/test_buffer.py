"""The buffer's rule: what may be trained on, in which order, and what is held out."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tlt_workloads.trainer.buffer import FIRST_HELD_OUT, RecordedSequence, fresh_tokens, is_held_out, training_order
from tlt_workloads.trainer.progress import ShardProgress

RULE = {"max_policy_lag": 2, "max_passes": 3, "piece_rows": 16}
PODS = [f"hidden-states/rollout-{number}" for number in range(40)]

recorded = st.builds(
    RecordedSequence,
    shard=st.integers(0, 20).map("pod/{}".format),
    index=st.integers(0, 5),
    policy_version=st.integers(0, 6),
    rows=st.integers(0, 100),
    trained_rows=st.integers(0, 400),
)


@given(st.lists(recorded))
def test_nothing_old_nothing_worn_out_and_nothing_empty_is_trained_on(sequences: list[RecordedSequence]) -> None:
    newest = max((item.policy_version for item in sequences if item.rows), default=0)
    for item in training_order(sequences, **RULE):
        assert newest - item.policy_version <= 2
        assert item.trained_rows < 3 * item.rows
        assert item.rows > 0


@given(st.lists(recorded))
def test_all_that_fits_is_in_the_order_once(sequences: list[RecordedSequence]) -> None:
    order = training_order(sequences, **RULE)
    newest = max((item.policy_version for item in sequences if item.rows), default=0)
    fitting = [
        item
        for item in sequences
        if item.rows and newest - item.policy_version <= 2 and item.trained_rows < 3 * item.rows
    ]
    assert sorted(map(repr, order)) == sorted(map(repr, fitting))


@given(st.lists(recorded))
def test_fresh_comes_before_seen_and_new_policies_before_old(sequences: list[RecordedSequence]) -> None:
    order = training_order(sequences, **RULE)
    assert [item.passes for item in order] == sorted(item.passes for item in order)
    for before, after in pairwise(order):
        if before.passes == after.passes:
            assert before.policy_version >= after.policy_version


@given(st.lists(recorded))
def test_the_longest_of_the_steps_before_come_first(sequences: list[RecordedSequence]) -> None:
    order = training_order([replace(item, trained_rows=0) for item in sequences], **RULE)
    newest = max((item.policy_version for item in order), default=0)
    for before, after in pairwise(order):
        if before.policy_version == after.policy_version < newest:
            assert before.rows >= after.rows


@given(st.lists(recorded), st.randoms())
def test_the_order_does_not_depend_on_how_the_store_lists(sequences: list[RecordedSequence], random: object) -> None:
    unique = list({(item.shard, item.index): item for item in sequences}.values())
    shuffled = list(unique)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert training_order(unique, **RULE) == training_order(shuffled, **RULE)


def test_sequences_take_turns_so_that_a_batch_mixes_them() -> None:
    begun = RecordedSequence(shard="a", index=0, policy_version=1, rows=64, trained_rows=16)
    untouched = RecordedSequence(shard="b", index=0, policy_version=1, rows=64)
    assert training_order([begun, untouched], **RULE) == [untouched, begun]


def test_one_sequence_in_eight_is_held_out_from_the_first_window_on() -> None:
    for pod in PODS:
        held_out = [number for number in range(80) if is_held_out(pod, number, 0)]
        assert len(held_out) == 10
        assert held_out[0] < FIRST_HELD_OUT


def test_pods_that_wrote_one_sequence_each_have_some_held_out_together() -> None:
    held_out = [pod for pod in PODS if is_held_out(pod, 0, 0)]
    assert 0 < len(held_out) < len(PODS) / 2


def test_fresh_tokens_are_recent_and_unreached() -> None:
    shards = {"old": (1, 100), "begun": (4, 50), "new": (5, 30)}
    progress = {"begun": ShardProgress(trained_rows={0: 30}, fresh_rows=20)}
    assert fresh_tokens(shards, progress, max_policy_lag=2) == 50
    assert fresh_tokens({}, {}, max_policy_lag=2) == 0
