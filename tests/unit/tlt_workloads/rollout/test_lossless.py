"""Options that would change what the policy says are refused, and no others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tlt_workloads.rollout.lossless import LossyOptionError, check_config, check_lossless


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "eagle3", "num_speculative_tokens": 3},
        {"rejection_sample_method": "standard", "draft_sample_method": "probabilistic"},
        {"rejection_sample_method": "block"},
        {"num_speculative_tokens_per_batch_size": [[1, 32, 3]], "synthetic_acceptance_rates": None},
    ],
)
def test_lossless_options_pass(options: dict[str, Any]) -> None:
    check_lossless(options.get)
    check_config(SimpleNamespace(**options))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rejection_sample_method": "synthetic", "synthetic_acceptance_length": 2.5}, "rejection_sample_method"),
        ({"rejection_sample_method": "typical"}, "rejection_sample_method 'typical'.*use standard or block"),
        ({"synthetic_acceptance_rates": [0.9, 0.5]}, "synthetic_acceptance_rates.*leave it out"),
        ({"synthetic_acceptance_length": 2.0}, "synthetic_acceptance_length.*leave it out"),
    ],
)
def test_lossy_options_are_named_with_the_remedy(options: dict[str, Any], named: str) -> None:
    with pytest.raises(LossyOptionError, match=named):
        check_lossless(options.get)
    with pytest.raises(LossyOptionError, match=named):
        check_config(SimpleNamespace(**options))


def test_an_engine_without_speculation_has_nothing_to_check() -> None:
    check_config(None)
