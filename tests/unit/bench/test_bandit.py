"""The simulated engine is the one that was measured."""

from __future__ import annotations

import pytest

from bench.bandit import BATCHES, life, measured_engine

LENGTHS = {"off": 1.0, "static_1": 1.5, "static_2": 1.8}
RATES = {"off": 10.0, "static_1": 12.0, "static_2": 9.0}  # tokens per second of one request
MEASURED = {
    "longest_draft": 2,
    "accept_length_1": LENGTHS["static_1"],
    "accept_length_2": LENGTHS["static_2"],
    **{f"batch_{batch}_{mode}_tokens_per_s": rate * batch**0.5 for batch in BATCHES for mode, rate in RATES.items()},
}


def test_it_has_the_rates_that_were_measured() -> None:
    engine = measured_engine(MEASURED)
    for batch in BATCHES:
        found = [engine.rate(batch, length) for length in range(3)]
        assert found == pytest.approx([rate * batch**0.5 for rate in RATES.values()])


def test_batch_sizes_between_are_on_a_line_and_larger_ones_are_refused() -> None:
    engine = measured_engine(MEASURED)
    assert engine.seconds(3, 1) == pytest.approx((engine.seconds(2, 1) + engine.seconds(4, 1)) / 2)
    with pytest.raises(ValueError, match="17 requests"):
        engine.seconds(17, 0)


def test_drafting_that_pays_is_found_and_no_fixed_length_is_beaten_by_magic() -> None:
    found = life(measured_engine(MEASURED), rounds=2, rollouts=1, seed=1)
    assert found.long[1].to_off > 1.1
    assert found.long[1].to_best < 1.05
