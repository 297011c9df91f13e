"""The sequential test: its errors when it is looked at again and again, and what it can tell after how many drafts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tlt_operator.plan.acceptance import DraftCounts
from tlt_operator.plan.sequential_test import (
    FINE_ERROR,
    TOLERANCE,
    WORSE_ERROR,
    Stratum,
    lean,
    weigh,
)

LENGTH = 3  # tokens in a draft
LOOKS = tuple(int(100 * 1.35**step) for step in range(20))  # from 100 drafts of the canary to 30,000
CONTROLS = 4
TRIALS = 200


def rate_of(accept_length: float) -> float:
    """The chance of one more accepted token that gives this mean: a draft is accepted up to its first wrong token."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if 1 + sum(middle**position for position in range(1, LENGTH + 1)) < accept_length:
            low = middle
        else:
            high = middle
    return low


def accepted(dice: np.random.Generator, rate: float | np.ndarray, drafts: int) -> np.ndarray:
    """Accepted tokens of so many drafts."""
    guesses = dice.random((drafts, LENGTH)) < np.broadcast_to(rate, (drafts,))[:, None]
    return np.cumprod(guesses, axis=1).sum(axis=1)


def answers(dice: np.random.Generator, accept_length: float, drafts: int) -> np.ndarray:
    """As in reality: drafts of one answer resemble each other, and eight answers of 400 drafts run at a time."""
    mean, alike = rate_of(accept_length), 0.02
    spread, rounds = 1 / alike - 1, drafts // 3200 + 1
    rates = dice.beta(mean * spread, (1 - mean) * spread, size=(rounds, 1, 8))
    return accepted(dice, np.repeat(rates, 400, axis=1).ravel()[:drafts], drafts)


def stratum(canary: np.ndarray, control: np.ndarray, drafts: int) -> Stratum:
    return Stratum(
        policy_version=1,
        draft_length=LENGTH,
        canary=DraftCounts(drafts, int(canary[:drafts].sum())),
        control=DraftCounts(CONTROLS * drafts, int(control[: CONTROLS * drafts].sum())),
    )


def called(kind: str, *, canary: float, control: float, seed: int, clustered: bool = False) -> list[int | None]:
    """Of many trials with these accept lengths: drafts of the canary after which it was called so, if ever."""
    dice, found = np.random.default_rng(seed), list[int | None]()
    for _ in range(TRIALS):
        if clustered:
            ours, theirs = answers(dice, canary, LOOKS[-1]), answers(dice, control, CONTROLS * LOOKS[-1])
        else:
            ours = accepted(dice, rate_of(canary), LOOKS[-1])
            theirs = accepted(dice, rate_of(control), CONTROLS * LOOKS[-1])
        looks = (look for look in LOOKS if getattr(weigh([stratum(ours, theirs, look)]), f"shows_{kind}"))
        found.append(next(looks, None))
    return found


def share(found: list[int | None], *, within: int = LOOKS[-1]) -> float:
    return sum(look is not None and look <= within for look in found) / len(found)


@pytest.mark.parametrize("accept_length", [1.05, 1.5, 2.6])
def test_an_equal_drafter_is_hardly_ever_called_worse_however_often_one_looks(accept_length: float) -> None:
    assert share(called("worse", canary=accept_length, control=accept_length, seed=1)) <= WORSE_ERROR


def test_nor_when_drafts_of_an_answer_resemble_each_other() -> None:
    assert share(called("worse", canary=1.5, control=1.5, seed=2, clustered=True)) <= WORSE_ERROR


def test_a_drafter_at_the_edge_of_the_tolerance_is_hardly_ever_called_fine() -> None:
    assert share(called("fine", canary=2.0 * (1 - TOLERANCE), control=2.0, seed=3)) <= FINE_ERROR


def test_random_weights_are_found_out_within_fifteen_hundred_drafts() -> None:
    assert share(called("worse", canary=1.001, control=1.4, seed=4, clustered=True), within=1500) >= 0.95


def test_a_loss_of_a_fifth_is_found_within_ten_thousand_drafts() -> None:
    assert share(called("worse", canary=1.6, control=2.0, seed=5), within=10_000) >= 0.95


def test_a_slightly_better_drafter_is_called_fine_in_the_end() -> None:
    assert share(called("fine", canary=2.1, control=2.0, seed=6)) >= 0.9


def test_a_better_drafter_is_called_fine_soon() -> None:
    assert share(called("fine", canary=2.4, control=2.0, seed=7, clustered=True), within=4000) >= 0.9


def test_the_e_value_has_a_mean_of_one_at_most_whatever_the_common_rate() -> None:
    """Exactly, by summing over every outcome of 40 drafts on each side that are accepted whole or not at all."""
    drafts = 40
    worse = np.array(
        [
            [
                math.exp(
                    weigh(
                        [
                            Stratum(
                                policy_version=1,
                                draft_length=LENGTH,
                                canary=DraftCounts(drafts, LENGTH * ours),
                                control=DraftCounts(drafts, LENGTH * theirs),
                            )
                        ]
                    ).worse
                )
                for theirs in range(drafts + 1)
            ]
            for ours in range(drafts + 1)
        ]
    )
    ways = np.array([math.comb(drafts, hits) for hits in range(drafts + 1)], dtype=float)
    hits = np.arange(drafts + 1)
    for rate in (0.02, 0.1, 0.3, 0.5, 0.8, 0.97):
        chance = ways * rate**hits * (1 - rate) ** (drafts - hits)
        assert chance @ worse @ chance <= 1.0


def test_other_draft_lengths_and_policies_are_not_compared() -> None:
    """A longer draft has more tokens accepted, an older policy is guessed better: neither is the drafter's merit."""
    many = DraftCounts(10_000, 5_000)
    strata = [
        Stratum(policy_version=1, draft_length=3, canary=many),
        Stratum(policy_version=1, draft_length=1, control=many),
        Stratum(policy_version=2, draft_length=3, control=many),
    ]
    assert weigh(strata) == weigh([])
    assert lean(strata) == 0.0


def test_strata_add_up() -> None:
    strata = [
        Stratum(
            policy_version=version,
            draft_length=LENGTH,
            canary=DraftCounts(400, 60),
            control=DraftCounts(1600, 900),
        )
        for version in range(8)
    ]
    assert not weigh(strata[:1]).shows_worse
    assert weigh(strata).shows_worse
    assert lean(strata) < 0


def test_a_canary_with_another_batch_size_is_not_judged_by_it() -> None:
    """The canary has the tail of the step and drafts long, the control its bulk and drafts short; they are equal."""
    rate = rate_of(2.0)
    short, long = rate, rate + rate**2 + rate**3
    strata = [
        Stratum(
            policy_version=1,
            draft_length=1,
            canary=DraftCounts(1000, round(1000 * short)),
            control=DraftCounts(40_000, round(40_000 * short)),
        ),
        Stratum(
            policy_version=1,
            draft_length=3,
            canary=DraftCounts(20_000, round(20_000 * long)),
            control=DraftCounts(2000, round(2000 * long)),
        ),
    ]
    canary = strata[0].canary + strata[1].canary
    control = strata[0].control + strata[1].control
    assert canary.length > 1.2 * control.length, "taken together, the canary would look much better"
    turned = [
        Stratum(policy_version=1, draft_length=item.draft_length, canary=item.control, control=item.canary)
        for item in strata
    ]
    for sides in (strata, turned):
        assert not weigh(sides).shows_worse
        assert 0 < lean(sides) < 2 * TOLERANCE
