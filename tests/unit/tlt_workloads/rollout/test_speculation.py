"""What is drafted by mode, and what is learnt from a step."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tlt_workloads.contract import DraftSource, LengthCounters, SpeculationMode, SpeculationSettings
from tlt_workloads.rollout.acceptance import AcceptanceMeter
from tlt_workloads.rollout.counters import CounterPage
from tlt_workloads.rollout.plans import OFF, DraftPlan
from tlt_workloads.rollout.speculation import (
    SchedulerTap,
    Speculation,
    SpeculationOrder,
    SpeculationRefusedError,
    check_settings,
)

LONGEST, LARGEST_BATCH = 3, 4
NGRAM = DraftSource.NGRAM


@pytest.fixture
def page(tmp_path: Path) -> CounterPage:
    return CounterPage(tmp_path / "page")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def made(page: CounterPage | None, mode: SpeculationMode, *, draft_length: int = LONGEST, **order: Any) -> Speculation:
    speculation = Speculation(longest=LONGEST, page=page, is_working=lambda: True, clock=Clock())
    settings = SpeculationSettings(mode=mode, draft_length=draft_length)
    speculation.obey(SpeculationOrder(settings=settings, largest_batch=LARGEST_BATCH, **{"has_drafter": True} | order))
    return speculation


def test_a_plan_is_a_number_on_every_way_and_keeps_its_drafter() -> None:
    plan = DraftPlan(2, NGRAM)
    for other in (pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan)):
        assert (other, other.source) == (2, NGRAM)
    assert [-1] * plan == [-1, -1]
    assert plan != DraftPlan(2)
    assert DraftPlan(0, NGRAM) == OFF == 0
    assert len({plan, DraftPlan(2), DraftPlan(2, NGRAM)}) == 2


def test_static_drafts_alike_up_to_the_largest_batch(page: CounterPage) -> None:
    speculation = made(page, SpeculationMode.STATIC, draft_length=2)
    assert [speculation[batch] for batch in range(1, 7)] == [DraftPlan(2)] * 4 + [OFF] * 2


def test_off_drafts_nothing(page: CounterPage) -> None:
    assert made(page, SpeculationMode.OFF)[1] == OFF


def test_drafts_are_fetched_only_after_steps_that_make_some(page: CounterPage) -> None:
    speculation = made(page, SpeculationMode.STATIC, draft_length=2)
    assert not speculation.is_drafting
    for batch in (LARGEST_BATCH, LARGEST_BATCH + 1):
        plan = speculation[batch]
        assert speculation.is_drafting == (plan > 0)


def test_ngram_waits_until_it_can(page: CounterPage) -> None:
    speculation = made(page, SpeculationMode.NGRAM)
    assert speculation[1] == OFF
    page.put("ngram_ready", 1)
    assert speculation[1] == DraftPlan(3, NGRAM)


def test_adaptive_has_only_the_drafters_that_there_are(page: CounterPage) -> None:
    speculation = made(page, SpeculationMode.ADAPTIVE, has_drafter=False)
    assert {speculation[1] for _ in range(100)} == {OFF}
    assert speculation.report().sources == ()
    page.put("ngram_ready", 1)
    assert speculation.report().sources == (NGRAM,)


def test_what_was_decided_is_on_the_page(page: CounterPage) -> None:
    assert page.drafting() is None
    _ = made(page, SpeculationMode.STATIC)[2]
    drafting = page.drafting()
    assert drafting is not None
    assert (drafting.batch, drafting.source, drafting.draft_length) == (2, DraftSource.LEARNED, 3)


def test_orders_survive_the_way_to_another_process() -> None:
    order = SpeculationOrder(
        settings=SpeculationSettings(mode=SpeculationMode.NGRAM, draft_length=2), has_drafter=True, largest_batch=8
    )
    assert SpeculationOrder.decoded(order.encoded()) == order


@pytest.mark.parametrize("length", [-1, 4])
def test_longer_drafts_than_the_server_was_started_for_are_refused(length: int) -> None:
    with pytest.raises(SpeculationRefusedError, match="draftLength"):
        check_settings(SpeculationSettings(draft_length=length), longest=LONGEST, has_ngrams=True)


def test_ngrams_are_refused_where_the_newest_tokens_never_reach_the_host() -> None:
    settings = SpeculationSettings(mode=SpeculationMode.NGRAM)
    check_settings(settings, longest=LONGEST, has_ngrams=True)
    with pytest.raises(SpeculationRefusedError, match="--no-async-scheduling"):
        check_settings(settings, longest=LONGEST, has_ngrams=False)


# -- steps ---------------------------------------------------------------------------------------------------------


def step(plan: DraftPlan, drafts: dict[str, int], *, prompt: dict[str, int] | None = None) -> Any:
    """A scheduler's output that verifies so many drafted tokens and drafts by `plan`."""
    counts = {name: 1 + length for name, length in drafts.items()} | (prompt or {})
    return SimpleNamespace(
        total_num_scheduled_tokens=sum(counts.values()),
        num_spec_tokens_to_schedule=plan,
        num_scheduled_tokens=counts,
        scheduled_spec_decode_tokens={name: [7] * length for name, length in drafts.items() if length},
    )


def outcome(**sampled: int) -> Any:
    """So many tokens for each request."""
    return SimpleNamespace(
        req_id_to_index={name: index for index, name in enumerate(sampled)},
        sampled_token_ids=[[7] * count for count in sampled.values()],
    )


def test_drafts_are_counted_for_whom_made_them_and_by_length(page: CounterPage) -> None:
    meter = AcceptanceMeter(page)
    tap = SchedulerTap(made(page, SpeculationMode.STATIC))
    steps = [
        (step(DraftPlan(3), {"a": 0, "b": 0}), outcome(a=1, b=1)),
        (step(DraftPlan(2, NGRAM), {"a": 3, "b": 3}), outcome(a=4, b=2)),
        (step(DraftPlan(1), {"a": 2, "b": 0}), outcome(a=1, b=1)),  # nothing was found for b
        (step(OFF, {"a": 1, "b": 1}), outcome(a=2, b=1)),
    ]
    for scheduled, found in steps:
        tap.scheduled(scheduled)
        tap.finished(scheduled, found)
    learned, ngram = meter.learned(), meter.ngram()
    assert (learned.drafts, learned.draft_tokens, learned.accepted_tokens) == (4, 8, 5)
    assert learned.by_length == (
        LengthCounters(draft_length=1, drafts=2, accepted_tokens=1),
        LengthCounters(draft_length=3, drafts=2, accepted_tokens=4),
    )
    assert (ngram.drafts, ngram.accepted_tokens) == (1, 0)
    meter.restart()
    assert meter.learned().drafts == 0


def test_drafts_are_counted_beside_the_prompts_of_others(page: CounterPage) -> None:
    """What is accepted does not depend on who else is in the step, so counts must not depend on when requests come."""
    tap, meter = SchedulerTap(made(page, SpeculationMode.STATIC)), AcceptanceMeter(page)
    mixed = step(DraftPlan(3), {"a": 3, "b": 0}, prompt={"c": 40})
    for scheduled, found in (
        (step(DraftPlan(3), {"a": 0, "b": 0}), outcome(a=1, b=1)),
        (mixed, outcome(a=3, b=1, c=0)),
        (step(DraftPlan(3), {"c": 3}), outcome(c=2)),
    ):
        tap.scheduled(scheduled)
        tap.finished(scheduled, found)
    learned = meter.learned()
    assert (learned.drafts, learned.draft_tokens, learned.accepted_tokens) == (2, 6, 3)


def test_asynchronous_scheduling_mixes_no_steps_up(page: CounterPage) -> None:
    """The next step is planned before the outcome of this one is known."""
    tap, meter = SchedulerTap(made(page, SpeculationMode.STATIC)), AcceptanceMeter(page)
    first, second, third = step(DraftPlan(3), {"a": 0}), step(DraftPlan(1), {"a": 3}), step(OFF, {"a": 1})
    tap.scheduled(first)
    tap.scheduled(second)
    tap.finished(first, outcome(a=1))
    tap.scheduled(third)
    tap.finished(second, outcome(a=3))
    tap.finished(third, outcome(a=2))
    assert [(item.draft_length, item.accepted_tokens) for item in meter.learned().by_length] == [(1, 1), (3, 2)]


def test_times_belong_to_steps_that_verify_what_they_draft(page: CounterPage) -> None:
    clock = Clock()
    working = [True]
    speculation = Speculation(longest=LONGEST, page=page, is_working=lambda: working[0], clock=clock)
    settings = SpeculationSettings(mode=SpeculationMode.ADAPTIVE, draft_length=LONGEST)
    speculation.obey(SpeculationOrder(settings=settings, has_drafter=True, largest_batch=LARGEST_BATCH))

    def note(verified: DraftPlan, plan: DraftPlan, seconds: float, *, has_prompts: bool = False) -> None:
        clock.now += seconds
        drafts = {"a": int(verified)}
        speculation.note_step(verified=verified, made=plan, drafts=drafts, accepted={}, has_prompts=has_prompts)

    note(OFF, OFF, 5.0)  # nobody knows when it began
    note(OFF, OFF, 1.0)
    note(OFF, DraftPlan(3), 9.0)  # a mixture
    note(DraftPlan(3), DraftPlan(3), 2.0)
    note(DraftPlan(3), DraftPlan(3), 9.0, has_prompts=True)
    note(DraftPlan(3), DraftPlan(3), 2.0)
    working[0] = False
    note(DraftPlan(3), DraftPlan(3), 2.0)
    working[0] = True
    note(DraftPlan(3), DraftPlan(3), 50.0)  # it was idle in between
    [bucket] = speculation.report().buckets
    assert {arm.draft_length: arm.step_seconds for arm in bucket.arms} == pytest.approx({0: 1.0, 3: 2.0}, rel=0.01)


def test_ngrams_are_tried_on_what_is_generated_without_them(page: CounterPage) -> None:
    """An answer that repeats itself makes them the choice, although they were never asked."""
    page.put("ngram_ready", 1)
    clock, tokens = Clock(), [1, 2, 3, 4, 5, 6]
    speculation = Speculation(
        longest=LONGEST, page=page, is_working=lambda: True, tokens_of={"a": tokens}.get, clock=clock
    )
    settings = SpeculationSettings(mode=SpeculationMode.ADAPTIVE, draft_length=LONGEST)
    speculation.obey(SpeculationOrder(settings=settings, has_drafter=False, largest_batch=LARGEST_BATCH))
    plans = []
    for number in range(40):
        plans.append(speculation[1])
        clock.now += 1.0
        tokens.append(1 + number % 6)
        speculation.note_step(
            verified=OFF, made=OFF, drafts={"a": 0}, accepted={}, has_prompts=False
        )  # whoever else decides that nothing is drafted
    assert plans[:8] == [OFF] * 8
    assert {plan.source for plan in plans[8:]} == {NGRAM}


def test_a_step_of_another_decider_is_left_alone(page: CounterPage) -> None:
    tap = SchedulerTap(made(page, SpeculationMode.STATIC))
    foreign = step(DraftPlan(1), {"a": 3})
    foreign.num_spec_tokens_to_schedule = 3
    tap.scheduled(foreign)
    tap.finished(foreign, outcome(a=2))
    assert AcceptanceMeter(page).learned().drafts == 0


def test_what_is_known_outlives_another_mode_and_another_draft_length(page: CounterPage) -> None:
    clock = Clock()
    speculation = Speculation(longest=LONGEST, page=page, is_working=lambda: True, clock=clock)

    def ask(mode: SpeculationMode, draft_length: int) -> None:
        settings = SpeculationSettings(mode=mode, draft_length=draft_length)
        speculation.obey(SpeculationOrder(settings=settings, has_drafter=True, largest_batch=LARGEST_BATCH))

    def live(steps: int) -> set[int]:
        plans = set()
        for _ in range(steps):
            plan = speculation[1]
            plans.add(int(plan))
            clock.now += 1.0 + 0.1 * plan
            drafts, accepted = {"a": int(plan)}, {"a": int(plan)}
            speculation.note_step(verified=plan, made=plan, drafts=drafts, accepted=accepted, has_prompts=False)
        return plans

    ask(SpeculationMode.ADAPTIVE, LONGEST)
    assert live(8) == {0}, "a new batch size begins without drafts"
    live(100)
    ask(SpeculationMode.STATIC, 1)
    assert live(8) == {1}
    ask(SpeculationMode.ADAPTIVE, LONGEST)
    assert live(8) == {LONGEST}, "nothing is learnt again"
    [bucket] = speculation.report().buckets
    assert {0, 1, LONGEST} <= {arm.draft_length for arm in bucket.arms}, "and fixed modes teach as well"
    ask(SpeculationMode.ADAPTIVE, 2)
    assert max(live(200)) == 2, "no more than is asked for"
