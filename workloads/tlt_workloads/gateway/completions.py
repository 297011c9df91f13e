"""A batch of prompts -> single completions -> one answer, exactly as one vLLM server would give it.  Pure.

The rules are those of vLLM's own completion route: choices are prompt-major, a prompt's tokens count once however many
completions it has, and the completion number k of a prompt samples with `seed + k` (`ParentRequest` in
vllm/v1/engine/parallel_sampling.py), so a seeded request gives the same tokens here as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tlt_workloads.gateway.errors import InvalidRequestError, PodFailedError

# A request with one of these is one piece of work for one pod: a stream, a search over the whole beam, prompts that
# are not text or tokens, a cache that lives on one pod.
UNSPLITTABLE_FIELDS = ("stream", "use_beam_search", "prompt_embeds", "kv_transfer_params")
# One answer stands for the whole batch in these fields when all completions agree by construction.
SHARED_FIELDS = ("object", "model", "system_fingerprint", "service_tier")


@dataclass(frozen=True, kw_only=True)
class SingleCompletion:
    """One prompt, one completion: what one pod is asked for at a time."""

    prompt_index: int
    sample_index: int  # 0 .. n-1
    body: Mapping[str, Any]


def is_splittable(body: Mapping[str, Any]) -> bool:
    """Whether the request can be spread over pods."""
    return not any(body.get(name) for name in UNSPLITTABLE_FIELDS)


def split(body: Mapping[str, Any]) -> list[SingleCompletion]:
    """Takes a completion request apart, prompt-major.

    Raises:
        InvalidRequestError: `prompt` or `n` is not what the completions API takes.
    """
    prompts = _prompts(body.get("prompt"))
    count = body.get("n")
    count = 1 if count is None else count
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InvalidRequestError(f"n: expected a whole number of at least 1, got {count!r}", parameter="n")
    seed = body.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise InvalidRequestError(f"seed: expected a whole number, got {seed!r}", parameter="seed")
    # `request_id` names one request in the engine, so the pieces must not share it.
    common = {
        name: value for name, value in body.items() if name not in ("prompt", "n", "seed", "request_id", "best_of")
    }
    return [
        SingleCompletion(
            prompt_index=prompt_index,
            sample_index=sample_index,
            body={**common, "prompt": prompt, "n": 1} | ({} if seed is None else {"seed": seed + sample_index}),
        )
        for prompt_index, prompt in enumerate(prompts)
        for sample_index in range(count)
    ]


def merge(pieces: Sequence[SingleCompletion], answers: Sequence[Mapping[str, Any]], *, identity: str) -> dict[str, Any]:
    """Puts the pods' answers together in the order of `pieces`.

    Raises:
        PodFailedError: an answer does not hold exactly one choice.
    """
    for piece, answer in zip(pieces, answers, strict=True):
        choices = answer.get("choices")
        if not isinstance(choices, list) or len(choices) != 1:
            raise PodFailedError(f"a rollout pod answered prompt {piece.prompt_index} without exactly one choice")
    first = answers[0]
    whole: dict[str, Any] = {**first, "id": identity, "created": min(answer.get("created", 0) for answer in answers)}
    whole["choices"] = [{**answer["choices"][0], "index": index} for index, answer in enumerate(answers)]
    whole["usage"] = _usage(pieces, [answer.get("usage") or {} for answer in answers])
    if len(answers) > 1 and "metrics" in whole:
        whole["metrics"] = None  # vLLM gives them for a single stream only
    return whole


def is_aborted(answer: Mapping[str, Any]) -> bool:
    """Whether the engine gave up on the completion, as one that is shutting down does."""
    choices = answer.get("choices") or []
    return any(choice.get("finish_reason") == "abort" for choice in choices)


def _usage(pieces: Sequence[SingleCompletion], usages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    firsts = [usage for piece, usage in zip(pieces, usages, strict=True) if piece.sample_index == 0]
    prompt_tokens = sum(usage.get("prompt_tokens") or 0 for usage in firsts)
    completion_tokens = sum(usage.get("completion_tokens") or 0 for usage in usages)
    cached = [usage["prompt_tokens_details"] for usage in firsts if usage.get("prompt_tokens_details")]
    details = {"cached_tokens": sum(item.get("cached_tokens") or 0 for item in cached)} if cached else None
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": details,
    }


def _prompts(prompt: Any) -> list[Any]:
    """The prompts of a request: text, token ids, or a list of either."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list):
        raise InvalidRequestError("prompt: expected text, token ids, or a list of either", parameter="prompt")
    if not prompt:
        raise InvalidRequestError("prompt: the list is empty", parameter="prompt")
    if all(_is_token(item) for item in prompt):
        return [prompt]
    for index, item in enumerate(prompt):
        if not isinstance(item, str) and not (isinstance(item, list) and item and all(map(_is_token, item))):
            raise InvalidRequestError(f"prompt[{index}]: expected text or a list of token ids", parameter="prompt")
    return list(prompt)


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
