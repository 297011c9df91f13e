"""The bandit against engines whose best arm is known."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlt_workloads.contract import DraftSource
from tlt_workloads.rollout.bandit import BanditSettings, DraftBandit
from tlt_workloads.rollout.plans import OFF, DraftPlan

LONGEST = 3
BOTH = frozenset(DraftSource)


@dataclass
class Engine:
    """A roofline: a step costs `fixed`, or what its tokens cost when these are more, and something for each draft."""

    acceptance: dict[DraftSource, tuple[float, ...]]  # chance of each position, given the one before
    fixed: float = 1.0
    per_token: float = 0.1
    per_draft: float = 0.05
    seed: int = 0
    pace: float = 1.0  # how many times as long everything takes

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    def seconds(self, plan: DraftPlan, batch: int) -> float:
        drafting = self.per_draft * plan if plan.source is DraftSource.LEARNED else 0.01
        return self.pace * (max(self.fixed, self.per_token * batch * (1 + plan)) + (drafting if plan else 0.0))

    def accepted(self, plan: DraftPlan) -> int:
        count = 0
        for chance in self.acceptance[plan.source][: int(plan)]:
            if self.dice.random() >= chance:
                break
            count += 1
        return count

    def rate(self, plan: DraftPlan, batch: int) -> float:
        """Tokens a second in the long run."""
        expected, alive = 1.0, 1.0
        for chance in self.acceptance[plan.source][: int(plan)]:
            alive *= chance
            expected += alive
        return batch * expected / self.seconds(plan, batch)

    def best(self, batch: int) -> float:
        plans = [OFF, *(DraftPlan(length, source) for source in DraftSource for length in range(1, LONGEST + 1))]
        return max(self.rate(plan, batch) for plan in plans)


def run(bandit: DraftBandit, engine: Engine, batches: Sequence[int]) -> tuple[float, float, list[DraftPlan]]:
    """Tokens, seconds and the plans of a run."""
    tokens = total = 0.0
    plans: list[DraftPlan] = []
    for batch in batches:
        plan = bandit.choose(batch)
        accepted = {str(number): engine.accepted(plan) for number in range(batch)}
        bandit.note_running(accepted.keys())
        seconds = engine.seconds(plan, batch) * engine.dice.uniform(0.97, 1.03)
        if plans and plans[-1] == plan:
            bandit.note_step(batch, plan, seconds)
        if plan.source is DraftSource.LEARNED and plan:
            bandit.note_drafts(batch, plan, accepted.items())
        tried = DraftPlan(LONGEST, DraftSource.NGRAM)  # on what was generated, whoever drafted
        bandit.note_drafts(batch, tried, [(name, engine.accepted(tried)) for name in accepted])
        tokens, total = tokens + batch + sum(accepted.values()), total + seconds
        plans.append(plan)
    return tokens, total, plans


def new_bandit(sources: frozenset[DraftSource] = BOTH, **changes: float) -> DraftBandit:
    bandit = DraftBandit(BanditSettings(longest=LONGEST, **changes), dice=random.Random(1))  # type: ignore[arg-type]
    bandit.offer(sources, longest=LONGEST)
    return bandit


GOOD, POOR = (0.8, 0.75, 0.7), (0.05, 0.02, 0.02)


def usual(plans: list[DraftPlan], *, last: int = 400) -> DraftPlan:
    return max(set(plans[-last:]), key=plans[-last:].count)


def test_a_good_drafter_is_used_while_the_accelerator_waits_for_memory_and_not_beyond() -> None:
    engine = Engine({DraftSource.LEARNED: GOOD, DraftSource.NGRAM: POOR})
    bandit = new_bandit()
    assert usual(run(bandit, engine, [1] * 1500)[2]) == DraftPlan(3)
    assert usual(run(bandit, engine, [32] * 1500)[2]) == OFF


def test_a_useless_drafter_is_left_alone() -> None:
    engine = Engine({DraftSource.LEARNED: POOR, DraftSource.NGRAM: (0.0, 0.0, 0.0)}, per_draft=0.1)
    assert usual(run(new_bandit(), engine, [1] * 1500)[2]) == OFF


def test_ngrams_are_used_until_there_is_a_drafter_and_when_it_is_worse() -> None:
    engine = Engine({DraftSource.LEARNED: GOOD, DraftSource.NGRAM: (0.5, 0.5, 0.5)})
    bandit = new_bandit(frozenset({DraftSource.NGRAM}))
    assert usual(run(bandit, engine, [2] * 600)[2]).source is DraftSource.NGRAM
    bandit.offer(BOTH, longest=LONGEST)
    assert usual(run(bandit, engine, [2] * 1500)[2]).source is DraftSource.LEARNED
    engine.acceptance[DraftSource.LEARNED] = POOR
    bandit.forget(DraftSource.LEARNED)
    assert usual(run(bandit, engine, [2] * 1500)[2]).source is DraftSource.NGRAM


def test_a_better_revision_is_noticed_although_the_last_one_was_useless() -> None:
    engine = Engine({DraftSource.LEARNED: POOR, DraftSource.NGRAM: POOR}, per_draft=0.1)
    bandit = new_bandit()
    run(bandit, engine, [1] * 3000)
    engine.acceptance[DraftSource.LEARNED] = GOOD
    bandit.forget(DraftSource.LEARNED)
    assert usual(run(bandit, engine, [1] * 1500)[2]) == DraftPlan(3)


def test_a_new_batch_size_begins_with_what_its_neighbour_knows() -> None:
    engine = Engine({DraftSource.LEARNED: GOOD, DraftSource.NGRAM: POOR}, per_token=0.05)
    bandit = new_bandit(epsilon=0.0)
    run(bandit, engine, [4] * 600)
    plans = run(bandit, engine, [3] * 50)[2]
    assert (set(plans[:8]), set(plans[8:])) == ({OFF}, {DraftPlan(3)})


def test_the_tail_of_a_rollout_begins_with_what_more_requests_have_shown() -> None:
    """Drafting was a loss among many; how little as many rows as it has now took then is enough to try it at once."""
    engine = Engine({DraftSource.LEARNED: GOOD, DraftSource.NGRAM: POOR})
    bandit = new_bandit(epsilon=0.0)
    assert usual(run(bandit, engine, [16] * 200)[2], last=100) == OFF
    run(bandit, engine, [8] * 16)
    plans = run(bandit, engine, [2] * 50)[2]
    assert set(plans[:8]) == {OFF}
    assert OFF not in plans[8:]


def test_decisions_are_held_for_an_episode() -> None:
    engine = Engine({DraftSource.LEARNED: GOOD, DraftSource.NGRAM: POOR})
    plans = run(new_bandit(epsilon=0.5, hopeless=1.0), engine, [1] * 800)[2]
    changes = [index for index in range(1, len(plans)) if plans[index] != plans[index - 1]]
    assert changes
    assert all(index % 8 == 0 for index in changes)


def test_an_arm_that_loses_much_is_left_before_its_episode_is_over() -> None:
    engine = Engine({DraftSource.LEARNED: POOR, DraftSource.NGRAM: POOR}, per_token=1.0)
    plans = run(new_bandit(epsilon=0.9), engine, [8] * 2500)[2]
    episodes = [list(steps) for plan, steps in itertools.groupby(plans) if plan]
    assert len(episodes) > 3
    assert all(len(steps) == 1 + 3 for steps in episodes), "the first step verifies other drafts and tells no time"


def test_without_any_drafter_nothing_is_drafted() -> None:
    engine = Engine({DraftSource.LEARNED: GOOD, DraftSource.NGRAM: GOOD})
    assert set(run(new_bandit(frozenset()), engine, [1] * 100)[2]) == {OFF}


@settings(max_examples=12, deadline=None)
@given(
    learned=st.lists(st.floats(0, 0.95), min_size=3, max_size=3),
    ngram=st.lists(st.floats(0, 0.95), min_size=3, max_size=3),
    per_token=st.floats(0.01, 0.6),
    per_draft=st.floats(0.0, 0.3),
    seed=st.integers(0, 1000),
)
def test_the_long_run_is_never_worse_than_no_speculation(
    learned: list[float], ngram: list[float], per_token: float, per_draft: float, seed: int
) -> None:
    """At every batch size, whatever drafters and accelerator are like."""
    engine = Engine(
        {DraftSource.LEARNED: tuple(learned), DraftSource.NGRAM: tuple(ngram)},
        per_token=per_token,
        per_draft=per_draft,
        seed=seed,
    )
    bandit = new_bandit()
    for batch in (1, 6, 20):
        run(bandit, engine, [batch] * 1500)  # learning is paid once
        tokens, seconds, _ = run(bandit, engine, [batch] * 1500)
        assert tokens / seconds >= 0.98 * 0.98 * engine.rate(OFF, batch)  # the noise of this many steps
        assert tokens / seconds >= 0.9 * engine.best(batch)


def test_what_trying_costs_stays_within_its_share() -> None:
    engine = Engine({DraftSource.LEARNED: POOR, DraftSource.NGRAM: POOR}, per_token=1.0)  # every draft is a loss
    bandit = new_bandit(epsilon=0.9)
    run(bandit, engine, [8] * 2500)
    assert 0 < bandit.lost_share < 0.02


def test_the_report_tells_what_was_measured() -> None:
    engine = Engine({DraftSource.LEARNED: (1.0, 1.0, 1.0), DraftSource.NGRAM: (0.0, 0.0, 0.0)})
    bandit = new_bandit()
    run(bandit, engine, [1] * 400)
    [bucket] = bandit.report()
    assert (bucket.largest_batch, bucket.source, bucket.draft_length) == (1, DraftSource.LEARNED, 3)
    accepted = {(arm.source, arm.draft_length): arm.accept_length for arm in bucket.arms}
    seconds = {(arm.source, arm.draft_length): arm.step_seconds for arm in bucket.arms}
    assert (accepted[DraftSource.LEARNED, 3], accepted[DraftSource.LEARNED, 0]) == (4.0, 1.0)
    assert seconds[DraftSource.LEARNED, 0] == pytest.approx(1.0, rel=0.05)
    assert seconds[DraftSource.LEARNED, 3] == pytest.approx(1.15, rel=0.05)


def test_a_machine_that_becomes_slower_makes_nothing_else_look_better() -> None:
    """What was timed while it was fast is no reason to leave the best arm; a cheaper draft is."""
    engine = Engine({DraftSource.LEARNED: (0.6, 0.5, 0.4), DraftSource.NGRAM: POOR})
    bandit = new_bandit()
    run(bandit, engine, [9] * 3000)  # drafts of one token are worse by a seventh, and were timed
    engine.pace = 1.4
    plans = run(bandit, engine, [9] * 400)[2]
    assert plans.count(OFF) >= 400 - 2 * 8, "but for a look at others"
    [bucket] = bandit.report()
    [off] = [arm for arm in bucket.arms if arm.draft_length == 0]
    assert off.step_seconds == pytest.approx(1.4, rel=0.05), "what is told is what a step takes now"
    engine.pace, engine.per_token = 1.0, 0.05
    assert usual(run(bandit, engine, [9] * 3000)[2]) == DraftPlan(1), "the batch fits the accelerator now"
