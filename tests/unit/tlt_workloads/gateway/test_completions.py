"""Taking a batch apart and putting the answers together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlt_workloads.gateway.completions import is_splittable, merge, split
from tlt_workloads.gateway.errors import InvalidRequestError, PodFailedError

PROMPTS = st.lists(st.lists(st.integers(0, 50_000), min_size=1, max_size=5), min_size=1, max_size=6)


def answer(prompt: list[int], *, tokens: int, **extra: Any) -> dict[str, Any]:
    return {
        "id": "pod",
        "created": 7,
        "model": "policy",
        "choices": [{"index": 0, "token_ids": [1] * tokens, "prompt_token_ids": prompt}],
        "usage": {"prompt_tokens": len(prompt), "completion_tokens": tokens, "total_tokens": len(prompt) + tokens},
        **extra,
    }


@given(prompts=PROMPTS, count=st.integers(1, 5), seed=st.none() | st.integers(-5, 5))
def test_a_batch_comes_apart_prompt_major_with_the_seeds_that_vllm_gives(
    prompts: list[list[int]], count: int, seed: int | None
) -> None:
    pieces = split({"model": "policy", "prompt": prompts, "n": count, "seed": seed, "temperature": 0.7})
    assert [piece.body["prompt"] for piece in pieces] == [prompt for prompt in prompts for _ in range(count)]
    assert all(piece.body["n"] == 1 and piece.body["temperature"] == 0.7 for piece in pieces)
    seeds = [piece.body.get("seed") for piece in pieces]
    assert seeds == [None if seed is None else seed + sample for _ in prompts for sample in range(count)]


@given(prompts=PROMPTS, count=st.integers(1, 4))
def test_answers_are_numbered_in_order_and_a_prompt_counts_once(prompts: list[list[int]], count: int) -> None:
    pieces = split({"prompt": prompts, "n": count})
    answers = [answer(list(piece.body["prompt"]), tokens=index) for index, piece in enumerate(pieces)]
    whole = merge(pieces, answers, identity="cmpl-1")
    assert [choice["index"] for choice in whole["choices"]] == list(range(len(pieces)))
    assert [len(choice["token_ids"]) for choice in whole["choices"]] == list(range(len(pieces)))
    assert whole["usage"]["prompt_tokens"] == sum(map(len, prompts))
    assert whole["usage"]["completion_tokens"] == sum(range(len(pieces)))
    assert whole["usage"]["total_tokens"] == whole["usage"]["prompt_tokens"] + whole["usage"]["completion_tokens"]
    assert whole["id"] == "cmpl-1"


@pytest.mark.parametrize("prompt", ["one text", [1, 2, 3]])
def test_a_single_prompt_is_one_piece(prompt: Any) -> None:
    assert [piece.body["prompt"] for piece in split({"prompt": prompt})] == [prompt]


def test_a_list_of_texts_is_as_many_pieces() -> None:
    assert [piece.body["prompt"] for piece in split({"prompt": ["a", "b"]})] == ["a", "b"]


def test_pieces_share_no_request_id() -> None:
    assert "request_id" not in split({"prompt": "a", "request_id": "mine"})[0].body


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [[1], "a", 3.5]}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "n": "four"}, "n"),
        ({"prompt": "a", "n": True}, "n"),
        ({"prompt": "a", "seed": "x"}, "seed"),
    ],
)
def test_a_bad_request_names_its_field(body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as failure:
        split(body)
    assert failure.value.parameter == field
    assert failure.value.body()["error"]["message"].startswith(field)


def test_an_answer_without_its_choice_is_a_failure_of_the_pod() -> None:
    pieces = split({"prompt": [[1], [2]]})
    with pytest.raises(PodFailedError, match="prompt 1"):
        merge(pieces, [answer([1], tokens=1), {"choices": []}], identity="x")


def test_metrics_of_one_stream_are_kept_only_for_one_stream() -> None:
    one = merge(split({"prompt": [1]}), [answer([1], tokens=1, metrics={"a": 1})], identity="x")
    assert one["metrics"] == {"a": 1}
    answers = [answer([1], tokens=1, metrics={"a": 1}), answer([1], tokens=1, metrics={"a": 2})]
    assert merge(split({"prompt": [1], "n": 2}), answers, identity="x")["metrics"] is None


@pytest.mark.parametrize("field", ["stream", "use_beam_search", "prompt_embeds", "kv_transfer_params"])
def test_what_belongs_to_one_pod_is_not_split(field: str) -> None:
    assert is_splittable({"prompt": "a", field: False})
    assert not is_splittable({"prompt": "a", field: {"x": 1}})
