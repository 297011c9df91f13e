"""Work-arounds: that they are right, and that they are still needed."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tlt_workloads.contract import SpeculationMode, SpeculationSettings
from tlt_workloads.rollout import compat
from tlt_workloads.rollout.speculation import Speculation, SpeculationOrder


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1.dev5+cpu"])
def test_the_supported_series_is_taken(version: str) -> None:
    compat.check_engine_version(version)


@pytest.mark.parametrize("version", ["0.31.0", "0.33.0", "1.0"])
def test_others_are_refused_with_the_way_out(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(compat.UnsupportedEngineError, match=r"0\.32\.\*.*TLT_ALLOW_UNSUPPORTED_ENGINE=1"):
        compat.check_engine_version(version)
    monkeypatch.setenv("TLT_ALLOW_UNSUPPORTED_ENGINE", "1")
    compat.check_engine_version(version)


@pytest.mark.parametrize("kind", [torch.float32, torch.int32, torch.int64])
def test_each_request_gives_its_value_to_its_tokens(kind: torch.dtype) -> None:
    output = torch.full((6,), 9, dtype=kind)
    values = torch.tensor([1, 0, 2], dtype=kind)
    compat.expand_kernel(output, values, torch.tensor([2, 2, 5], dtype=torch.int32), 0, 1)
    assert output.tolist() == [1, 1, 2, 2, 2, 9]


def test_a_temperature_of_zero_becomes_one() -> None:
    output = torch.empty(3)
    compat.expand_kernel(output, torch.tensor([0.0, 0.7]), torch.tensor([1, 3]), 0, 1)
    assert output.tolist() == pytest.approx([1.0, 0.7, 0.7])


@pytest.mark.parametrize(("drafts", "is_verified"), [([0, 0], False), ([0, 2], True)])
def test_only_steps_that_verify_drafts_are_sampled_by_rejection(drafts: list[int], is_verified: bool) -> None:
    seen: list[Any] = []
    runner = SimpleNamespace(_sample=lambda logits, verified: seen.append((logits, verified)))
    compat.sample_plainly_without_drafts(runner)
    metadata = SimpleNamespace(num_draft_tokens=drafts)
    runner._sample("logits", metadata)
    runner._sample("logits", None)
    assert seen == [("logits", metadata if is_verified else None), ("logits", None)]


def test_workers_are_asked_for_drafts_only_after_a_step_that_made_some(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[bool] = []

    class EngineCore:
        def __init__(self, lookup: Any) -> None:
            self.scheduler = SimpleNamespace(dynamic_sd_lookup=lookup)

        def post_step(self, model_executed: bool) -> None:
            fetched.append(model_executed)

    monkeypatch.setitem(sys.modules, "vllm.v1.engine.core", SimpleNamespace(EngineCore=EngineCore))
    compat.add_core_methods()
    compat.add_core_methods()  # a process may load its plugins twice
    speculation = Speculation(longest=2, page=None, is_working=lambda: True)
    settings = SpeculationSettings(mode=SpeculationMode.STATIC, draft_length=2)
    speculation.obey(SpeculationOrder(settings=settings, has_drafter=True, largest_batch=4))
    for batch in (5, 4):
        assert speculation[batch] == (2 if batch <= 4 else 0)
        EngineCore(speculation).post_step(True)
    EngineCore(None).post_step(True)
    assert fetched == [True, True]
