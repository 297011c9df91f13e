"""What is recorded while the engine speculates is what the model computes."""

from __future__ import annotations

import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from safetensors.torch import load_file, save_file

from tests.engine.captured import FOLDER, assert_right, last_shard, of_prompt, recorded
from tests.engine.conftest import PROMPTS, Reference
from tests.engine.test_policy import push
from tests.support.eventually import eventually
from tests.support.rollout_server import JOB, RolloutServer
from tests.support.tiny_model import perturbed
from tlt_workloads.shards import shard_entries
from tlt_workloads.store import open_store


def test_every_row_is_that_of_its_token(server: RolloutServer, reference: Reference) -> None:
    mark = last_shard(server)
    state = server.state()
    before, drafts = state["capture"], state["acceptance"]
    outputs = server.generate(PROMPTS, max_tokens=60)
    found = recorded(server, after=mark, sequences=len(PROMPTS))
    assert sorted(s.token_ids.tolist() for s in found) == sorted(p + o for p, o in zip(PROMPTS, outputs, strict=True))
    for sequence in found:
        assert_right(sequence, reference)
        assert len(sequence.hidden_states) == len(sequence.token_ids) - 1
        assert (sequence.prompt_length, sequence.first_row, sequence.finished) == (4, 0, True)
    state = server.state()
    after = state["capture"]
    accepted = state["acceptance"]["acceptedTokens"] - drafts["acceptedTokens"]
    assert 0 < accepted < state["acceptance"]["draftTokens"] - drafts["draftTokens"], "both happened to drafts"
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


def test_an_aborted_request_leaves_what_it_had_generated(server: RolloutServer, reference: Reference) -> None:
    mark = last_shard(server)
    aborted = server.state()["abortedRequests"]
    prompt = [9, 8, 7, 6]
    body = {"model": "policy", "prompt": prompt, "max_tokens": 480, "temperature": 0, "ignore_eos": True}
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.request(
        "POST", "/v1/completions", json.dumps({**body, "stream": True}), {"content-type": "application/json"}
    )
    answer = connection.getresponse()
    for _ in range(40):  # lines of the stream, every other one empty
        answer.readline()
    answer.close()
    connection.close()
    eventually(lambda: server.state()["abortedRequests"] > aborted, deadline=30, reason="the request is aborted")
    sequence = of_prompt(recorded(server, after=mark, sequences=1), prompt)
    assert not sequence.finished
    generated = sequence.token_ids[4:].tolist()
    assert 10 < len(generated) < 480
    assert reference.is_greedy(prompt, generated)
    assert_right(sequence, reference)


def test_a_pause_in_the_middle_of_a_sequence(server: RolloutServer, reference: Reference) -> None:
    mark = last_shard(server)
    before = server.state()["generatedTokens"]
    with ThreadPoolExecutor(1) as pool:
        generation = pool.submit(server.generate, PROMPTS, max_tokens=400)
        eventually(lambda: server.state()["generatedTokens"] > before, deadline=60, reason="it generates")
        assert server.call("POST", "/pause?mode=keep")[0] == 200
        assert not generation.done()
        assert server.call("POST", "/resume")[0] == 200
        outputs = generation.result()
    found = recorded(server, after=mark, sequences=len(PROMPTS))
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        sequence = of_prompt(found, prompt)
        assert sequence.token_ids.tolist() == prompt + output
        assert len(sequence.hidden_states) == len(sequence.token_ids) - 1
        assert_right(sequence, reference)


def test_a_policy_update_in_the_middle_of_a_sequence(
    server: RolloutServer, reference: Reference, tiny_model: Path
) -> None:
    """All rows are those of the new policy, which computed the older tokens anew."""
    folder = server.job / "policy"
    folder.mkdir(parents=True, exist_ok=True)
    old = load_file(tiny_model / "model.safetensors")
    save_file(old, folder / "old.safetensors")
    save_file(perturbed(old, seed=11, amount=0.1), folder / "next.safetensors")
    mark = last_shard(server)
    before = server.state()
    outputs: list[list[list[int]]] = []
    generation = threading.Thread(target=lambda: outputs.append(server.generate(PROMPTS, max_tokens=400)))
    generation.start()
    try:
        eventually(
            lambda: server.state()["generatedTokens"] - before["generatedTokens"] > 100, deadline=60, reason="generates"
        )
        push(server, folder / "next.safetensors")
        assert generation.is_alive(), "the generation ended before the update did"
        generation.join()
        found = recorded(server, after=mark, sequences=len(PROMPTS))
        other = Reference(tiny_model, weights=folder / "next.safetensors")
        for prompt, output in zip(PROMPTS, outputs[0], strict=True):
            sequence = of_prompt(found, prompt)
            assert sequence.policy_version == before["policyVersion"] + 1
            assert sequence.token_ids.tolist() == prompt + output
            assert (sequence.first_row, len(sequence.hidden_states)) == (0, 403)
            assert_right(sequence, other)
    finally:
        generation.join()
        push(server, folder / "old.safetensors")


def test_a_request_at_the_longest_length_takes_nothing_from_the_others(
    server: RolloutServer, reference: Reference
) -> None:
    """Near it vLLM drafts for none of the batch; the steps are recorded all the same."""
    mark = last_shard(server)
    long, short = [3 + number * 5 % 60 for number in range(470)], [40, 41, 42]
    with ThreadPoolExecutor(2) as pool:
        answers = [
            pool.submit(server.generate, [prompt], max_tokens=tokens) for prompt, tokens in ((long, 42), (short, 200))
        ]
        outputs = [answer.result()[0] for answer in answers]
    found = recorded(server, after=mark, sequences=2)
    for prompt, output in zip((long, short), outputs, strict=True):
        sequence = of_prompt(found, prompt)
        assert sequence.token_ids.tolist() == prompt + output
        assert sequence.first_row + len(sequence.hidden_states) == len(prompt) + len(output) - 1
        assert_right(sequence, reference)


def test_of_a_long_prompt_only_the_end_is_recorded(server: RolloutServer, reference: Reference) -> None:
    mark = last_shard(server)
    prompt = [7 + number * 11 % 53 for number in range(250)]
    server.generate([prompt], max_tokens=20)
    sequence = of_prompt(recorded(server, after=mark, sequences=1), prompt)
    assert sequence.first_row == 250 - 128
    assert_right(sequence, reference)


def test_rows_in_float8_are_those_of_their_tokens(server: RolloutServer, reference: Reference) -> None:
    config = {
        "job": JOB,
        "storeUrl": f"file://{server.store}",
        "idleAfter": 0.2,
        "capture": {"elementType": "Float8", "promptRows": 0},
        "speculation": {"mode": "Static", "draftLength": 3},
    }
    mark = last_shard(server)
    try:
        assert server.call("POST", "/tlt/v1/config", config)[0] == 200
        (output,) = server.generate(PROMPTS[:1], max_tokens=30)
        sequence = of_prompt(recorded(server, after=mark, sequences=1), PROMPTS[0])
        assert (sequence.first_row, sequence.token_ids.tolist()) == (4, PROMPTS[0] + output)
        assert_right(sequence, reference)
    finally:
        server.call("POST", "/tlt/v1/config", {**config, "capture": {}})


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
