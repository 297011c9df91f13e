"""What an engine has recorded, and whether it is what another implementation of the model computes."""

from __future__ import annotations

import torch

from tests.engine.conftest import Reference
from tests.support.eventually import eventually
from tests.support.rollout_server import POD, RolloutServer
from tlt_workloads.drafter import auxiliary_layers
from tlt_workloads.shards import CapturedSequence, read_shard, shard_entries
from tlt_workloads.store import open_store

FOLDER = f"hidden-states/{POD}"


def recorded(server: RolloutServer, *, after: int, sequences: int) -> list[CapturedSequence]:
    """The sequences in shards with a number above `after`, once there are as many."""
    store = open_store(str(server.job))

    def read() -> list[CapturedSequence]:
        entries = [entry for entry in shard_entries(store, FOLDER) if entry.number > after]
        found = [sequence for entry in entries for sequence in read_shard(store, entry.path)]
        assert len(found) >= sequences, f"{len(found)} sequences"
        return found

    return eventually(read, deadline=30, reason=f"{sequences} sequences are recorded")


def last_shard(server: RolloutServer) -> int:
    """The number of the newest shard, -1 when there is none."""
    entries = shard_entries(open_store(str(server.job)), FOLDER)
    return entries[-1].number if entries else -1


def assert_right(sequence: CapturedSequence, reference: Reference) -> None:
    """Every row is that of its token."""
    layers = auxiliary_layers(5)
    ids = sequence.token_ids.tolist()
    rows = slice(sequence.first_row, sequence.first_row + len(sequence.hidden_states))
    expected = reference.hidden_states(ids, layers)[rows]
    similarity = torch.cosine_similarity(sequence.hidden_states.float(), expected, dim=-1)
    assert similarity.min() >= 0.999, similarity.min()
    scale = sequence.hidden_states.float().norm(dim=-1) / expected.norm(dim=-1)
    assert (scale - 1).abs().max() < 0.02


def of_prompt(found: list[CapturedSequence], prompt: list[int]) -> CapturedSequence:
    """The one sequence that answers a prompt."""
    [sequence] = [item for item in found if item.token_ids[: item.prompt_length].tolist() == prompt]
    return sequence
