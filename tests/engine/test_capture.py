"""What is recorded while the engine speculates is what the model computes."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.engine.conftest import PROMPTS, Reference
from tests.support.eventually import eventually
from tests.support.rollout_server import JOB, POD, RolloutServer
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
    entries = shard_entries(open_store(str(server.job)), FOLDER)
    return entries[-1].number if entries else -1


def assert_right(sequence: CapturedSequence, reference: Reference) -> None:
    layers = auxiliary_layers(5)
    ids = sequence.token_ids.tolist()
    rows = slice(sequence.first_row, sequence.first_row + len(sequence.hidden_states))
    expected = reference.hidden_states(ids, layers)[rows]
    similarity = torch.cosine_similarity(sequence.hidden_states.float(), expected, dim=-1)
    assert similarity.min() >= 0.999, similarity.min()
    scale = sequence.hidden_states.float().norm(dim=-1) / expected.norm(dim=-1)
    assert (scale - 1).abs().max() < 0.02


def test_every_row_is_that_of_its_token(server: RolloutServer, reference: Reference) -> None:
    mark = last_shard(server)
    before = server.state()["capture"]
    outputs = server.generate(PROMPTS, max_tokens=60)
    found = recorded(server, after=mark, sequences=len(PROMPTS))
    assert sorted(s.token_ids.tolist() for s in found) == sorted(p + o for p, o in zip(PROMPTS, outputs, strict=True))
    for sequence in found:
        assert_right(sequence, reference)
        assert len(sequence.hidden_states) == len(sequence.token_ids) - 1
        assert (sequence.prompt_length, sequence.first_row, sequence.finished) == (4, 0, True)
    after = server.state()["capture"]
    assert after["sequences"] - before["sequences"] == len(PROMPTS)
    assert after["tokens"] - before["tokens"] == len(PROMPTS) * 63
    assert after["droppedTokens"] == before["droppedTokens"]
    assert after["seconds"] > before["seconds"]


def test_it_works_while_nothing_is_drafted(server: RolloutServer, reference: Reference) -> None:
    server.call("POST", "/tlt/v1/speculation", {"mode": "Off", "draftLength": 0})
    mark = last_shard(server)
    server.generate([[3, 1, 4, 1, 5]], max_tokens=20)
    for sequence in recorded(server, after=mark, sequences=1):
        assert len(sequence.hidden_states) == 24
        assert_right(sequence, reference)


def test_a_long_prompt_whose_start_is_cached(server: RolloutServer, reference: Reference) -> None:
    prompt = [3 + number * 7 % 61 for number in range(300)]
    mark = last_shard(server)
    server.generate([prompt], max_tokens=2)
    recorded(server, after=mark, sequences=1)
    mark = last_shard(server)
    server.generate([prompt], max_tokens=20)
    (sequence, *_) = recorded(server, after=mark, sequences=1)
    assert sequence.first_row >= 128, "the engine reuses whole blocks of the prompt"
    assert sequence.token_ids.tolist()[:300] == prompt
    assert_right(sequence, reference)


def test_a_stop_token_ends_a_sequence(server: RolloutServer, reference: Reference) -> None:
    stop = reference.greedy(PROMPTS[0], tokens=30)[20]
    mark = last_shard(server)
    (output,) = server.generate(PROMPTS[:1], max_tokens=60, stop_token_ids=[stop])
    (sequence, *_) = recorded(server, after=mark, sequences=1)
    assert sequence.finished
    assert sequence.token_ids.tolist() == PROMPTS[0] + output
    assert output[-1] == stop
    assert_right(sequence, reference)


def test_the_ring_keeps_its_size(server: RolloutServer, tmp_path: Path) -> None:
    budget = 400_000  # two shards of this test
    config = {
        "job": JOB,
        "storeUrl": f"file://{server.store}",
        "idleAfter": 0.2,
        "capture": {"maxBytes": budget},
        "speculation": {"mode": "Static", "draftLength": 3},
    }
    try:
        assert server.call("POST", "/tlt/v1/config", config)[0] == 200
        for _ in range(4):
            mark = last_shard(server)
            server.generate(PROMPTS, max_tokens=40)
            recorded(server, after=mark, sequences=1)

        def within() -> bool:
            return sum(entry.size for entry in shard_entries(open_store(str(server.job)), FOLDER)) <= budget

        eventually(within, deadline=30, reason="old shards are dropped")
    finally:
        server.call("POST", "/tlt/v1/config", {**config, "capture": {}})
