"""The test of two samples: its p-values are what they say, and it finds what it should."""

from __future__ import annotations

import pytest
import torch

from tests.support.two_sample import Difference, chi_square_tail, compare, compare_sequences, rejected


def drawn(weights: torch.Tensor, count: int, *, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    found: list[int] = torch.multinomial(weights, count, replacement=True, generator=generator).tolist()
    return found


ZIPF = 1 / torch.arange(1, 65, dtype=torch.float64)  # 64 tokens, a few of them common


@pytest.mark.parametrize(
    ("statistic", "freedom", "tail"), [(3.841459, 1, 0.05), (18.307038, 10, 0.05), (29.588298, 10, 0.001), (0.0, 4, 1)]
)
def test_the_tail_is_that_of_the_tables(statistic: float, freedom: int, tail: float) -> None:
    assert chi_square_tail(statistic, freedom=freedom) == pytest.approx(tail, rel=1e-5)


def test_the_statistic_is_pearsons() -> None:
    found = compare([0] * 30 + [1] * 20, [0] * 20 + [1] * 30)
    assert (found.statistic, found.freedom) == (pytest.approx(4.0), 1)  # four cells of 25, each off by 5


def test_p_values_of_equal_sides_are_uniform() -> None:
    """Of 1,000 comparisons of equal sides as many are below each share as the share says, within four sigma."""
    values = sorted(
        compare(drawn(ZIPF, 640, seed=2 * run), drawn(ZIPF, 640, seed=2 * run + 1)).p_value for run in range(1000)
    )
    for share in (0.01, 0.05, 0.1, 0.5, 0.9):
        below = sum(value <= share for value in values) / len(values)
        assert below == pytest.approx(share, abs=4 * (share * (1 - share) / len(values)) ** 0.5)


def test_sides_of_different_size_keep_the_error_too() -> None:
    values = [
        compare(drawn(ZIPF, 300, seed=2 * run), drawn(ZIPF, 1200, seed=2 * run + 1)).p_value for run in range(500)
    ]
    assert sum(value <= 0.05 for value in values) / len(values) == pytest.approx(0.05, abs=0.04)


def test_a_shift_of_a_twentieth_of_the_mass_is_found() -> None:
    shifted = ZIPF / ZIPF.sum()
    shifted[0] -= 0.05
    shifted[20] += 0.05
    assert compare(drawn(ZIPF, 4000, seed=1), drawn(shifted, 4000, seed=2)).p_value < 1e-6


def test_pairs_show_what_single_tokens_hide() -> None:
    """Both sides toss two fair coins; on one side the second copies the first."""
    coin = torch.ones(2)
    free = [list(pair) for pair in zip(drawn(coin, 2000, seed=1), drawn(coin, 2000, seed=2), strict=True)]
    copied = [[toss, toss] for toss in drawn(coin, 2000, seed=3)]
    singles = compare_sequences({"p": free}, {"p": copied}, width=1)
    assert [item.place for item in singles] == [("p", 0, 1), ("p", 1, 1)]
    assert not rejected(singles, level=0.001)
    assert rejected(compare_sequences({"p": free}, {"p": copied}, width=2), level=1e-9)


def test_rare_tokens_are_pooled_and_nothing_to_compare_is_no_difference() -> None:
    assert compare(list(range(50)), list(range(50, 100))).freedom == 0  # each token once: one pool, one cell
    assert compare([7] * 40, [7] * 40).p_value == 1.0


def test_holm_stops_at_the_first_that_may_be_chance() -> None:
    """Holm's own order of thresholds: level / n, level / (n - 1), ..."""
    values = [0.012, 0.01, 0.04, 0.5]
    family = [Difference(place=value, statistic=0, freedom=1, p_value=value) for value in values]
    assert [item.p_value for item in rejected(family, level=0.05)] == [0.01, 0.012]
    assert rejected(family, level=0.03) == []


def test_the_family_wise_error_is_kept() -> None:
    """Of 200 families of 20 comparisons of equal sides at most the level has any rejection, within four sigma."""
    wrong = 0
    for run in range(200):
        family = [
            compare(drawn(ZIPF, 200, seed=run * 100 + 2 * item), drawn(ZIPF, 200, seed=run * 100 + 2 * item + 1))
            for item in range(20)
        ]
        wrong += bool(rejected(family, level=0.05))
    assert wrong / 200 <= 0.05 + 4 * (0.05 * 0.95 / 200) ** 0.5
