"""Captures under pressure: prompts in chunks, requests preempted for lack of memory, two ranks that share a model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.captured import FOLDER, assert_right, of_prompt, recorded
from tests.engine.conftest import PROMPTS, Reference
from tests.support.rollout_server import JOB, RolloutServer, rollout_server
from tlt_workloads.store import open_store

FLAGS = ("--skip-tokenizer-init", "--dtype", "float32", "--max-model-len", "512", "--draft-vocab-size", "32")
BLOCK = 32


def configure(server: RolloutServer) -> None:
    config = {"job": JOB, "storeUrl": f"file://{server.store}", "idleAfter": 0.2, "capture": {"promptRows": 512}}
    status, answer = server.call("POST", "/tlt/v1/config", config)
    assert status == 200, answer


def metric(server: RolloutServer, name: str) -> float:
    """The sum of a metric's series."""
    page = server.call("GET", "/metrics")[1]
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE))


@pytest.fixture(scope="module")
def crowded(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RolloutServer]:
    """Prompts come in pieces of 64 tokens, and there is memory for about three of eight requests."""
    room = ("--block-size", str(BLOCK), "--num-gpu-blocks-override", "40", "--max-num-batched-tokens", "64")
    folder = tmp_path_factory.mktemp("crowded")
    with rollout_server(tiny_model, *FLAGS, *room, "--max-num-seqs", "8", folder=folder) as server:
        configure(server)
        yield server


def test_chunks_and_preemptions_leave_no_trace(crowded: RolloutServer, reference: Reference) -> None:
    shared = [5 + number * 3 % 40 for number in range(2 * BLOCK)]  # cached by whoever comes first
    prompts = [[*shared, *(3 + (number * 7 + step) % 58 for step in range(100))] for number in range(8)]
    outputs = crowded.generate(prompts, max_tokens=180)
    assert metric(crowded, "vllm:num_preemptions_total") > 0
    assert metric(crowded, "vllm:prefix_cache_hits_total") > 0
    found = recorded(crowded, after=-1, sequences=len(prompts))
    starts = set()
    for prompt, output in zip(prompts, outputs, strict=True):
        sequence = of_prompt(found, prompt)
        assert sequence.token_ids.tolist() == prompt + output
        assert sequence.first_row + len(sequence.hidden_states) == len(prompt) + len(output) - 1
        assert sequence.finished
        assert_right(sequence, reference)
        starts.add(sequence.first_row)
    assert 0 in starts
    assert crowded.state()["capture"]["droppedTokens"] == 0


def test_of_two_ranks_one_records(tiny_model: Path, tmp_path: Path, reference: Reference) -> None:
    ranks = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    with rollout_server(tiny_model, *FLAGS, "-tp", "2", folder=tmp_path, environment=ranks) as server:
        configure(server)
        outputs = server.generate(PROMPTS, max_tokens=40)
        found = recorded(server, after=-1, sequences=len(PROMPTS))
        assert len(found) == len(PROMPTS)
        for prompt, output in zip(PROMPTS, outputs, strict=True):
            sequence = of_prompt(found, prompt)
            assert sequence.token_ids.tolist() == prompt + output
            assert len(sequence.hidden_states) == 43
            assert_right(sequence, reference)
        assert server.state()["capture"]["tokens"] == len(PROMPTS) * 43
        assert open_store(str(server.job)).folders("hidden-states") == (FOLDER.rpartition("/")[2],)
