"""n-grams are judged by what they would have drafted; tests/engine says that it is what vLLM drafts."""

from __future__ import annotations

from types import SimpleNamespace

from tlt_workloads.rollout.ngram_trials import MOST_TOKENS, STRIDE, WATCHED, NgramTrial, NgramTrials

DRAFT = 3


def counts(trial: NgramTrial, tokens: list[int], *, prompt: int = 1) -> list[int]:
    """Of a request that generates one token a step."""
    found: list[int] = []
    for end in range(prompt, len(tokens) + 1):
        found += trial.read(tokens[:end])
    return found


def test_an_answer_that_repeats_itself_is_foretold() -> None:
    assert counts(NgramTrial(DRAFT), [1, 2, 3, 4, 5] * 8)[-4:] == [DRAFT] * 4


def test_an_answer_without_repetition_is_not() -> None:
    found = counts(NgramTrial(DRAFT), list(range(50)))
    assert found == [0] * len(found)
    assert len(found) == 49, "the first token was the prompt"


def test_a_long_prompt_is_read_step_by_step_and_nothing_is_tried_until_then() -> None:
    prompt = list(range(3 * STRIDE))
    trial = NgramTrial(DRAFT)
    assert [list(trial.read(prompt)) for _ in range(3)] == [[]] * 3
    answer = [*prompt, 10, 11, 12, 13, 14, 15]
    assert counts(trial, answer, prompt=len(prompt) + 1) == [0, 0, DRAFT], "10 and 11 were new; 12 to 14 foretold"


def test_some_requests_tell_of_all_and_nothing_is_kept_of_those_that_are_over() -> None:
    requests = {f"r{number}": SimpleNamespace(tokens=[1, 2, 3, 4] * 5) for number in range(2 * WATCHED)}

    def tokens_of(name: str) -> list[int] | None:
        return requests[name].tokens if name in requests else None

    trials = NgramTrials(DRAFT, tokens_of=tokens_of)
    for _ in range(8):
        for request in requests.values():
            request.tokens = [*request.tokens, 1, 2, 3, 4]
        found = trials.follow(requests.keys())
    assert len({name for name, _ in found}) == WATCHED
    assert all(count == DRAFT for _, count in found)
    watched = {name for name, _ in found}
    for name in watched:
        del requests[name]
    for _ in range(3):
        for request in requests.values():
            request.tokens = [*request.tokens, 1, 2, 3, 4]
        found = trials.follow(requests.keys())
    assert {name for name, _ in found} == set(requests)


def test_a_request_that_is_very_long_is_left_alone() -> None:
    trials = NgramTrials(DRAFT, tokens_of=lambda _: [1] * (MOST_TOKENS + 1))
    assert trials.follow({"a"}) == []
