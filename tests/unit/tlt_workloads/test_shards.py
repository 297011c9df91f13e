"""Shards carry sequences unchanged, tell by name what they hold, and are refused when they are not whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tlt_workloads.contract import ElementType
from tlt_workloads.shards import CapturedSequence, ShardError, ShardMetadata, read_shard, shard_entries, write_shard
from tlt_workloads.store import Store, open_store

METADATA = ShardMetadata(model="tiny", layer_ids=(1, 2, 3))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def sequence(tokens: int, *, rows: int | None = None, first_row: int = 0, policy_version: int = 3) -> CapturedSequence:
    rows = tokens - 1 - first_row if rows is None else rows
    return CapturedSequence(
        token_ids=torch.arange(tokens, dtype=torch.int32),
        hidden_states=torch.randn(rows, 4, 8).to(torch.bfloat16),
        prompt_length=2,
        policy_version=policy_version,
        finished=tokens % 2 == 0,
        first_row=first_row,
        temperature=0.7,
    )


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(2, 20), min_size=1, max_size=5), first_row=st.integers(0, 1))
def test_sequences_come_back_as_they_were(store: Store, lengths: list[int], first_row: int) -> None:
    written = [sequence(length, first_row=first_row) for length in lengths]
    path = write_shard(store, "shards", number=1, sequences=written, metadata=METADATA).path
    for before, after in zip(written, read_shard(store, path, expected=METADATA), strict=True):
        assert torch.equal(before.token_ids, after.token_ids)
        assert torch.equal(before.hidden_states, after.hidden_states)
        assert (before.prompt_length, before.policy_version, before.finished, before.first_row) == (
            after.prompt_length,
            after.policy_version,
            after.finished,
            after.first_row,
        )
        assert after.temperature == 0.7


def test_a_listing_tells_what_is_there(store: Store) -> None:
    written = write_shard(store, "pod", number=12, sequences=[sequence(5, policy_version=7)], metadata=METADATA)
    write_shard(store, "pod", number=3, sequences=[sequence(5), sequence(9)], metadata=METADATA)
    store.write_atomic("pod/notes.txt", b"not a shard")
    entries = shard_entries(store, "pod")
    assert [(entry.number, entry.policy_version, entry.tokens) for entry in entries] == [(3, 3, 12), (12, 7, 4)]
    assert entries[0].path == "pod/00000003-p3-t12.safetensors"
    assert entries[0].size == store.size(entries[0].path)
    assert written == entries[1]


def test_float8_takes_half_the_space_and_stays_within_its_precision(store: Store) -> None:
    """Rows as a residual stream has them: a few dimensions a hundred times larger, layers of different size."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 4, 256, generator=generator) * torch.tensor([0.1, 1.0, 10.0, 3.0])[:, None]
    rows[..., 17] *= 300
    rows[0, 0] = 0
    written = replace(sequence(61), hidden_states=rows.to(torch.bfloat16))
    plain = write_shard(store, "plain", number=1, sequences=[written], metadata=METADATA)
    half = write_shard(store, "half", number=1, sequences=[written], metadata=METADATA, element_type=ElementType.FLOAT8)
    assert half.size < 0.52 * plain.size
    [found] = read_shard(store, half.path, expected=METADATA)
    assert found.hidden_states.dtype == torch.bfloat16
    before, after = written.hidden_states.float(), found.hidden_states.float()
    normal = before.abs() >= before.abs().amax(dim=-1, keepdim=True) / 28672
    assert ((after - before).abs() <= before.abs() / 16 + before.abs() / 128)[normal].all()
    others = torch.arange(256) != 17
    error = (after - before)[..., others].norm(dim=-1) / before[..., others].norm(dim=-1).clamp(min=1e-9)
    assert error.max() < 0.04
    assert torch.equal(after[0, 0], before[0, 0])


def test_what_is_not_a_number_stays_so_in_float8(store: Store) -> None:
    rows = torch.ones(5, 4, 8)
    rows[2, 1, 3] = float("nan")
    broken = replace(sequence(6), hidden_states=rows.to(torch.bfloat16))
    entry = write_shard(store, "x", number=1, sequences=[broken], metadata=METADATA, element_type=ElementType.FLOAT8)
    [found] = read_shard(store, entry.path)
    assert torch.isfinite(found.hidden_states).all(dim=-1).all(dim=-1).tolist() == [True, True, False, True, True]


def test_a_shard_cut_off_anywhere_is_refused(store: Store) -> None:
    path = write_shard(store, "pod", number=1, sequences=[sequence(6), sequence(4)], metadata=METADATA).path
    whole = store.read(path)
    for length in range(0, len(whole), 7):
        store.write_atomic(path, whole[:length])
        with pytest.raises(ShardError):
            read_shard(store, path)


def test_a_shard_of_other_layers_is_refused(store: Store) -> None:
    path = write_shard(store, "pod", number=1, sequences=[sequence(6)], metadata=METADATA).path
    with pytest.raises(ShardError, match=r"layers \(1, 2, 3\) post-norm, the drafter reads \(2, 3, 5\)"):
        read_shard(store, path, expected=ShardMetadata(model="other", layer_ids=(2, 3, 5)))


def test_a_foreign_file_is_refused(store: Store) -> None:
    store.write_atomic("pod/00000001-p1-t1.safetensors", b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(ShardError, match="format None"):
        read_shard(store, "pod/00000001-p1-t1.safetensors")


def test_a_shard_holds_one_policy_version(store: Store) -> None:
    mixed = [sequence(4, policy_version=1), sequence(4, policy_version=2)]
    with pytest.raises(ShardError, match=r"policy versions \[1, 2\]"):
        write_shard(store, "pod", number=1, sequences=mixed, metadata=METADATA)


@pytest.mark.parametrize(("tokens", "rows", "first_row"), [(4, 5, 0), (4, 3, 2), (4, 1, -1)])
def test_rows_must_lie_within_the_tokens(tokens: int, rows: int, first_row: int) -> None:
    with pytest.raises(ShardError, match="do not lie within"):
        sequence(tokens, rows=rows, first_row=first_row)
