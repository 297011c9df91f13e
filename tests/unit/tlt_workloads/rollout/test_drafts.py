"""Steps that draft nothing are kept for later without the drafter being prepared, unless they cannot wait."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tlt_workloads.rollout.backlog import MOST_STEPS
from tlt_workloads.rollout.drafts import Drafts

REQUESTS = ["a", "b", "c"]
SAMPLED = torch.tensor([[11], [12], [13]], dtype=torch.int32)
AUXILIARY = [torch.full((3, 2), float(layer)) for layer in range(2)]


class Drafter(SimpleNamespace):
    """Records the passes that are made."""

    def propose(self, **inputs: Any) -> torch.Tensor:
        self.passes.append(inputs)
        return torch.zeros((len(REQUESTS), int(inputs["num_speculative_tokens"])))


def runner(**changes: Any) -> Any:
    """The attributes of vLLM's model runner that matter here."""
    fields: dict[str, Any] = {
        "drafter": Drafter(passes=[], max_num_tokens=1000),
        "input_batch": SimpleNamespace(req_ids=list(REQUESTS)),
        "input_ids": SimpleNamespace(gpu=torch.tensor([1, 2, 3, 0])),
        "discard_request_mask": SimpleNamespace(np=torch.zeros(4, dtype=torch.bool).numpy()),
        "use_async_scheduling": False,
        "supports_mm_inputs": False,
        "num_spec_tokens": 3,
        "_get_positions": lambda count: torch.arange(10, 10 + count),
    }
    return SimpleNamespace(**{**fields, **changes})


def scheduled(*, plan: int = 0, tokens: int = 3) -> Any:
    return SimpleNamespace(num_spec_tokens_to_schedule=plan, total_num_scheduled_tokens=tokens)


def attention(*, longest: int = 1) -> Any:
    return SimpleNamespace(
        num_reqs=3, max_query_len=longest, slot_mapping=torch.tensor([7, 8, 9, -1]), seq_lens=torch.tensor([11, 12, 13])
    )


def ask(drafts: Drafts, **changes: Any) -> torch.Tensor | None:
    inputs = {"scheduled": scheduled(), "sampled": SAMPLED, "auxiliary": AUXILIARY, "metadata": attention(), **changes}
    return drafts.left_out(inputs["scheduled"], inputs["sampled"], inputs["auxiliary"], inputs["metadata"])


def test_a_step_that_drafts_nothing_makes_no_pass() -> None:
    target = runner()
    found = ask(Drafts(target, page=None))
    assert found is not None
    assert found.shape == (3, 0)
    assert target.drafter.passes == []


def test_what_was_left_out_can_be_computed_later_although_the_engine_reuses_its_buffers() -> None:
    target = runner()
    drafts, metadata = Drafts(target, page=None), attention()
    ask(drafts, metadata=metadata)
    target.input_ids.gpu.zero_()
    metadata.slot_mapping.zero_()
    [step] = drafts._backlog._steps
    assert step.requests == ("a", "b", "c")
    assert step.tokens.tolist() == [1, 2, 3]
    assert step.positions.tolist() == [10, 11, 12]
    assert step.slots.tolist() == [7, 8, 9]
    assert step.following.tolist() == [11, 12, 13]
    assert step.hidden.tolist() == [[0.0, 0.0, 1.0, 1.0]] * 3


@pytest.mark.parametrize(
    "changes",
    [
        {"scheduled": scheduled(plan=2)},
        {"scheduled": scheduled(tokens=5), "metadata": attention(longest=3)},
        {"sampled": [[1], [2], [3]]},
        {"auxiliary": None},
    ],
    ids=["drafts", "prompts or drafts to verify", "tokens on the host", "no hidden states"],
)
def test_other_steps_are_left_to_the_engine(changes: dict[str, Any]) -> None:
    assert ask(Drafts(runner(), page=None), **changes) is None


@pytest.mark.parametrize("field", ["use_async_scheduling", "supports_mm_inputs"])
def test_engines_of_another_kind_are_left_alone(field: str) -> None:
    assert ask(Drafts(runner(**{field: True}), page=None)) is None


def test_the_last_token_of_a_part_of_a_prompt_is_followed_by_the_next_part_and_not_by_what_was_sampled() -> None:
    target = runner()
    target.discard_request_mask.np[1] = True
    assert ask(Drafts(target, page=None)) is None


def test_when_as_much_is_owed_as_may_be_the_engine_gets_its_turn() -> None:
    drafts = Drafts(runner(), page=None)
    assert all(ask(drafts) is not None for _ in range(MOST_STEPS))
    assert ask(drafts) is None
