"""The tap hands over what is wanted of a step, and copies nothing else."""

from __future__ import annotations

import collections
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tlt_workloads.contract import CaptureSettings
from tlt_workloads.rollout.capture import CaptureTap, StepRows

LAYERS, HIDDEN = 2, 3


class Listener:
    """A recorder that takes what it is told to."""

    def __init__(self) -> None:
        self.steps: list[StepRows] = []
        self.torn: list[str] = []
        self.over: list[str] = []
        self.refused: set[str] = set()
        self.is_behind = False

    def admits(self, request: str, *, policy_version: int) -> bool:
        return request not in self.refused

    def offer(self, step: StepRows) -> bool:
        if not self.is_behind:
            self.steps.append(step)
        return not self.is_behind

    def abandon(self, requests: tuple[str, ...]) -> None:
        self.torn.extend(requests)

    def finish(self, requests: tuple[str, ...]) -> None:
        self.over.extend(requests)


class Runner:
    """What the tap reads of vLLM's model runner; a row's value is its position."""

    def __init__(self, listener: Listener, *, prompt_rows: int = 100) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.tap = CaptureTap(listener, count=lambda total, amount: self.counts.update({total: int(amount > 0)}))
        self.tap.follow(CaptureSettings(prompt_rows=prompt_rows))
        self.requests: dict[str, Any] = {}

    def step(self, *parts: tuple[str, int, int, int], resumed: dict[str, int] | None = None) -> None:
        """Each part: request, length of its prompt, first position, rows."""
        for name, prompt, _, _ in parts:
            sampling = SimpleNamespace(
                temperature=0.7, max_tokens=9, stop_token_ids=[5], ignore_eos=False, eos_token_id=2
            )
            self.requests.setdefault(
                name, SimpleNamespace(prompt_token_ids=list(range(prompt)), sampling_params=sampling)
            )
        self.positions = torch.cat([torch.arange(start, start + count) for _, _, start, count in parts])
        self.input_batch = SimpleNamespace(
            req_ids=[part[0] for part in parts],
            num_prompt_tokens=np.array([part[1] for part in parts]),
            num_computed_tokens_cpu=np.array([part[2] for part in parts]),
        )
        self.discard_request_mask = SimpleNamespace(
            np=np.array([start + count < prompt for _, prompt, start, count in parts])
        )
        cached = resumed or {}
        scheduled = SimpleNamespace(
            num_scheduled_tokens={part[0]: part[3] for part in parts},
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=list(cached), num_output_tokens=list(cached.values()), resumed_req_ids=set(cached)
            ),
        )
        states = self.positions.float()[:, None].expand(-1, HIDDEN)
        padded = torch.cat([states, torch.full((4, HIDDEN), -1.0)])  # as behind the rows of a CUDA graph
        sampled = torch.arange(len(parts))[:, None]
        self.tap.before_propose(self, scheduled, sampled, padded + 0.5, [padded] * LAYERS)

    def end(self, *names: str) -> None:
        self.tap.before_update(SimpleNamespace(finished_req_ids=set(names)))


def positions(step: StepRows) -> list[int]:
    assert step.rows.dtype == torch.bfloat16
    assert step.rows.shape[1:] == (LAYERS + 1, HIDDEN)
    assert step.rows[:, 0, 0].tolist() == step.positions.tolist()
    assert step.rows[:, -1, 0].tolist() == [position + 0.5 for position in step.positions.tolist()]
    return step.positions.tolist()


def test_all_rows_of_a_step_in_the_order_of_its_requests() -> None:
    runner = Runner(listener := Listener())
    runner.step(("a", 4, 0, 4), ("b", 3, 0, 3))
    runner.step(("a", 4, 4, 1), ("b", 3, 3, 2))
    first, second = listener.steps
    assert positions(first) == [0, 1, 2, 3, 0, 1, 2]
    assert positions(second) == [4, 3, 4]
    assert {request.temperature for request in first.new.values()} == {0.7}
    assert (first.requests, first.counts, first.partial) == (("a", "b"), (4, 3), (False, False))
    assert {name: request.stop_ids for name, request in first.new.items()} == {"a": {2, 5}, "b": {2, 5}}
    assert second.new == {}
    assert runner.counts == {"steps": 2, "seconds": 2}


def test_of_a_prompt_only_the_end() -> None:
    runner = Runner(listener := Listener(), prompt_rows=2)
    runner.step(("a", 10, 0, 4), ("b", 1, 0, 1))
    runner.step(("a", 10, 4, 5), ("b", 1, 1, 1))
    runner.step(("a", 10, 9, 1), ("b", 1, 2, 2))
    assert [step.counts for step in listener.steps] == [(0, 1), (1, 1), (1, 2)]
    assert [positions(step) for step in listener.steps] == [[0], [8, 1], [9, 2, 3]]
    assert [step.partial for step in listener.steps] == [(True, False), (True, False), (False, False)]
    assert listener.steps[0].new["a"].first_row == 8


def test_the_part_of_a_prompt_that_is_computed_again_after_preemption() -> None:
    runner = Runner(listener := Listener(), prompt_rows=1)
    runner.step(("a", 3, 0, 3))
    runner.step(("a", 3, 0, 5), resumed={"a": 2})
    assert [positions(step) for step in listener.steps] == [[2], [2, 3, 4]]
    assert listener.steps[1].resumed == {"a": 2}


def test_requests_that_the_recorder_does_not_take_are_not_copied() -> None:
    runner = Runner(listener := Listener())
    listener.refused = {"b"}
    runner.step(("a", 2, 0, 2), ("b", 3, 0, 3), ("c", 1, 0, 1))
    runner.end("a", "c")
    runner.step(("b", 3, 3, 1))
    [step] = listener.steps
    assert (step.requests, step.counts, positions(step)) == (("a", "c"), (2, 1), [0, 1, 0])
    assert step.sampled.tolist() == [[0], [2]]
    assert set(step.new) == {"a", "c"}
    runner.end("b")
    assert set(listener.over) == {"a", "c"}


def test_a_dropped_step_ends_the_capture_of_its_requests_and_of_no_others() -> None:
    runner = Runner(listener := Listener())
    runner.step(("a", 1, 0, 1))
    listener.is_behind = True
    runner.step(("a", 1, 1, 1))
    listener.is_behind = False
    runner.step(("a", 1, 2, 1), ("b", 1, 0, 1))
    assert listener.torn == ["a"]
    assert [step.requests for step in listener.steps] == [("a",), ("b",)]


def test_a_request_that_ran_before_the_capture_began_is_left_alone() -> None:
    runner = Runner(listener := Listener())
    runner.step(("a", 3, 5, 1))
    assert listener.steps == []


def test_nothing_is_done_while_it_is_off() -> None:
    runner = Runner(listener := Listener())
    runner.tap.follow(CaptureSettings(enabled=False))
    runner.step(("a", 3, 0, 3))
    assert (listener.steps, runner.counts) == ([], {})
