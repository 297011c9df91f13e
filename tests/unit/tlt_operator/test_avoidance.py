"""Engines that turn away from a drafter on trial: when that is held against it, and when it is nobody's choice."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from tlt_operator.plan.acceptance import DraftCounts
from tlt_operator.plan.avoidance import is_avoided, is_useless
from tlt_operator.plan.sequential_test import Stratum
from tlt_operator.plan.trial import Arm, Side, Trial


def avoided(canary: dict[str, int], control: dict[str, int], *, min_drafts: int = 100) -> bool:
    """Whether the canary's engine turned away, after both sides have made this of it."""
    strata: dict[int, Stratum] = {}
    arms = []
    for side, made in ((Side.CANARY, canary), (Side.CONTROL, control)):
        length = made.get("length", 3)
        found = strata.get(length) or Stratum(policy_version=1, draft_length=length)
        counts = DraftCounts(made["drafts"], made["accepted"])
        strata[length] = replace(found, canary=counts) if side is Side.CANARY else replace(found, control=counts)
        arms.append(Arm(pod=side.value, uid=side.value, side=side, written=made["generated_tokens"]))
    return is_avoided(Trial(arms=tuple(arms), strata=tuple(strata.values())), min_drafts)


GOOD = {"drafts": 1000, "accepted": 800, "generated_tokens": 2000}


def test_a_drafter_that_engines_stop_drafting_with_is_noticed() -> None:
    assert avoided({"drafts": 80, "accepted": 5, "generated_tokens": 2000}, GOOD)


def test_few_drafts_of_few_tokens_are_nobodys_choice() -> None:
    assert not avoided({"drafts": 80, "accepted": 5, "generated_tokens": 390}, GOOD)
    assert avoided({"drafts": 0, "accepted": 0, "generated_tokens": 600}, GOOD)
    assert not avoided({"drafts": 0, "accepted": 0, "generated_tokens": 590}, GOOD)
    longer = {"drafts": 50, "accepted": 20, "length": 4}
    assert avoided({**longer, "generated_tokens": 600}, GOOD), "nothing to compare with"
    assert not avoided({**longer, "generated_tokens": 590}, GOOD)
    assert not avoided({"drafts": 80, "accepted": 5, "generated_tokens": 2000}, {**GOOD, "drafts": 0, "accepted": 0})


def test_a_drafter_of_which_hardly_a_token_is_accepted_leaves_much_sooner() -> None:
    useless = {"drafts": 30, "accepted": 4}  # where the control's drafter would have had 24 tokens
    assert avoided({**useless, "generated_tokens": 200}, GOOD, min_drafts=500)
    assert not avoided({**useless, "generated_tokens": 190}, GOOD, min_drafts=500), "it has not turned away yet"
    assert not avoided({"drafts": 30, "accepted": 5, "generated_tokens": 200}, GOOD, min_drafts=500)
    assert not avoided({"drafts": 29, "accepted": 0, "generated_tokens": 200}, GOOD, min_drafts=500), "too few to tell"
    assert not avoided({"drafts": 90, "accepted": 4, "generated_tokens": 200}, GOOD, min_drafts=500), "it goes on"
    longer, shorter = {**useless, "length": 5}, {**useless, "length": 1}  # where the control drafts three tokens
    assert avoided({**longer, "generated_tokens": 200}, GOOD, min_drafts=500), "it should have had as many at least"
    assert not avoided({**shorter, "generated_tokens": 200}, GOOD, min_drafts=500), "it could have a third only"
    assert avoided({**shorter, "drafts": 91, "generated_tokens": 600}, GOOD, min_drafts=500)


def test_a_drafter_that_is_as_good_hardly_ever_looks_useless() -> None:
    """Four answers on each side, of which some are much easier to draft than others; looked at after each step."""
    dice = random.Random(7)

    def side() -> list[float]:
        return [dice.betavariate(10, 10) for _ in range(4)]

    def step(answers: Sequence[float]) -> DraftCounts:
        accepted = [next((count for count in range(3) if dice.random() >= chance), 3) for chance in answers]
        return DraftCounts(len(answers), sum(accepted))

    def looks_useless() -> bool:
        ours, theirs = side(), side()
        canary, control = DraftCounts(), DraftCounts()
        for _ in range(50):
            canary, control = canary + step(ours), control + step(theirs)
            stratum = Stratum(policy_version=1, draft_length=3, canary=canary, control=control)
            if is_useless(Trial(strata=(stratum,))):
                return True
        return False

    assert sum(looks_useless() for _ in range(300)) <= 3


def test_few_drafts_that_do_well_are_not_held_against_it() -> None:
    assert not avoided({"drafts": 80, "accepted": 100, "generated_tokens": 2000}, GOOD)


def test_batches_that_differ_do_not_count_as_turning_away() -> None:
    assert not avoided({"drafts": 400, "accepted": 100, "generated_tokens": 2000}, GOOD)
