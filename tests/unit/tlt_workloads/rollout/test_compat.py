"""Work-arounds: that they are right, and that they are still needed."""

from __future__ import annotations

import pytest
import torch

from tlt_workloads.rollout import compat


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
