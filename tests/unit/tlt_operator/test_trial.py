"""A trial's record: who is on which side, and which of what the pods count is counted."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from tests.support.snapshots import busy, holds, make_pod, make_revision, make_rollout, make_snapshot
from tlt_operator.api.names import RevisionPhase
from tlt_operator.plan.acceptance import DraftCounts
from tlt_operator.plan.sequential_test import Stratum
from tlt_operator.plan.snapshot import Fault, RolloutView
from tlt_operator.plan.trial import (
    CONTROLS,
    LOST_AFTER,
    MOST_STRATA,
    Comparison,
    Setup,
    Side,
    Trial,
    follow_trial,
    read_trial,
    write_trial,
)
from tlt_workloads.contract import AcceptanceCounters, LengthCounters

SETUP = Setup(
    candidate=make_revision(2),
    active=make_revision(1, RevisionPhase.ACTIVE),
    replicas=1,
    min_drafts=100,
    time_limit=600.0,
)


def pod(
    name: str, revision: int | None, drafts: int = 0, accepted: int = 0, length: int = 3, **fields: Any
) -> RolloutView:
    counters = AcceptanceCounters(drafts=drafts, draft_tokens=length * drafts, accepted_tokens=accepted)
    return busy(name, **(holds(revision) if revision else {}), acceptance=counters, **fields)


def look(trial: Trial, views: Sequence[RolloutView], setup: Setup = SETUP, *, elapsed: float = 1.0) -> Trial:
    snapshot = make_snapshot(*views)
    reachable = [view for view in snapshot.rollouts if view.state is not None and view.fault is None]
    return follow_trial(trial, snapshot, setup, reachable=reachable, elapsed=elapsed)


def sides(trial: Trial) -> dict[str, Side]:
    return {arm.pod: arm.side for arm in trial.arms}


def begin(*names: str, setup: Setup = SETUP) -> tuple[Trial, str, list[str]]:
    """A trial over pods with the last revision; its first canary and its controls."""
    trial = look(Trial(), [pod(name, 1) for name in names], setup)
    return trial, trial.canaries[0].pod, [name for name in names if sides(trial).get(name) is Side.CONTROL]


def test_one_pod_tries_it_and_the_others_go_on() -> None:
    trial, canary, controls = begin("a", "b", "c")
    assert trial.comparison is Comparison.SIDE_BY_SIDE
    assert len(controls) == 2
    assert canary not in controls


def test_never_all_pods_are_canaries() -> None:
    trial, _, controls = begin("a", "b", "c", setup=dataclasses.replace(SETUP, replicas=50))
    assert len(trial.canaries) == 2
    assert len(controls) == 1


def test_a_few_controls_are_enough() -> None:
    trial, _, controls = begin(*(f"pod-{number}" for number in range(300)))
    assert len(trial.canaries) == 1
    assert len(controls) == CONTROLS


def test_another_revision_is_tried_by_another_pod() -> None:
    names = [f"pod-{number}" for number in range(20)]
    chosen = {
        begin(*names, setup=dataclasses.replace(SETUP, candidate=make_revision(number)))[1] for number in range(2, 12)
    }
    assert len(chosen) > 3


def test_sides_are_kept_while_pods_answer() -> None:
    trial, canary, controls = begin("a", "b", "c")
    again = look(trial, [pod(name, 2 if name == canary else 1) for name in ("c", "b", "a", "d")])
    assert again.canaries[0].pod == canary
    assert set(controls) <= set(sides(again))


def test_a_silent_canary_is_replaced() -> None:
    trial, canary, _ = begin("a", "b", "c")
    views = [pod(name, 1) if name != canary else make_rollout(name, None, silent_for=31.0) for name in "abc"]
    assert look(trial, views).canaries[0].pod != canary


def test_a_canary_that_does_not_come_to_load_it_is_replaced_for_good() -> None:
    trial, slow, _ = begin("a", "b", "c")
    for _ in range(40):
        trial = look(trial, [pod(name, 1) for name in "abc"])
        if trial.canaries[0].pod != slow:
            break
    other = trial.canaries[0].pod
    assert other != slow
    trial = look(trial, [pod(name, 2 if name == other else 1) for name in "abc"])
    assert trial.canaries[0].pod == other


def test_only_what_was_drafted_during_the_trial_counts() -> None:
    _, canary, (control,) = begin("a", "b")
    trial = look(Trial(), [pod(canary, 2, 700, 500), pod(control, 1, 9000, 8000)])
    assert trial.strata == (), "a first look has nothing to subtract from"
    trial = look(trial, [pod(canary, 2, 800, 540), pod(control, 1, 9400, 8200)])
    (stratum,) = trial.strata
    assert stratum == Stratum(
        policy_version=1, draft_length=3, canary=DraftCounts(100, 40), control=DraftCounts(400, 200)
    )
    assert trial.has_seen(100)
    assert not trial.has_seen(101)


def test_what_is_drafted_between_loading_and_the_next_look_counts() -> None:
    """An engine that turns away from a bad drafter does so within a second, and drafts no more with it."""
    trial, canary, (control,) = begin("a", "b")
    trial = look(trial, [pod(canary, 1, 700, 500), pod(control, 1)])
    trial = look(trial, [pod(canary, 2, 50, 20), pod(control, 1, 400, 200)])
    (stratum,) = trial.strata
    assert (stratum.canary, stratum.control) == (DraftCounts(50, 20), DraftCounts(400, 200))
    trial = look(trial, [pod(canary, 2, 60, 24), pod(control, 1, 400, 200)])
    assert trial.canary == DraftCounts(60, 24), "and counts once"


def test_what_was_drafted_for_two_policies_since_loading_is_dropped() -> None:
    trial, canary, (control,) = begin("a", "b")
    trial = look(trial, [pod(canary, 2, 50, 20, policy_version=2), pod(control, 1, policy_version=2)])
    assert trial.strata == ()


def test_policies_are_kept_apart_and_what_spans_two_is_dropped() -> None:
    trial, canary, (control,) = begin("a", "b")
    for version, drafts in ((1, 0), (1, 100), (2, 200), (2, 300)):
        views = [
            pod(name, revision, drafts, drafts, policy_version=version)
            for name, revision in ((canary, 2), (control, 1))
        ]
        trial = look(trial, views)
    assert [(item.policy_version, item.canary.drafts, item.control.drafts) for item in trial.strata] == [
        (1, 100, 100),
        (2, 100, 100),
    ]


def test_a_change_of_the_draft_length_begins_anew() -> None:
    trial, canary, (control,) = begin("a", "b")
    for length, drafts in ((3, 100), (5, 200), (5, 300)):
        trial = look(trial, [pod(canary, 2, drafts, drafts, draft_length=length), pod(control, 1)])
    assert [(item.draft_length, item.canary) for item in trial.strata] == [
        (3, DraftCounts(100, 100)),
        (5, DraftCounts(100, 100)),
    ]


def test_a_pod_that_drafts_by_batch_size_is_counted_by_draft_length() -> None:
    trial, canary, (control,) = begin("a", "b")

    def drafted(name: str, revision: int, lengths: dict[int, tuple[int, int]]) -> RolloutView:
        counters = AcceptanceCounters(
            drafts=sum(drafts for drafts, _ in lengths.values()),
            by_length=tuple(
                LengthCounters(draft_length=length, drafts=drafts, accepted_tokens=accepted)
                for length, (drafts, accepted) in lengths.items()
            ),
        )
        return busy(name, **holds(revision), acceptance=counters)

    for lengths in ({2: (100, 50)}, {2: (150, 75)}, {2: (150, 75), 5: (30, 60)}):
        trial = look(trial, [drafted(canary, 2, lengths), drafted(control, 1, {})])
    assert {item.draft_length: item.canary for item in trial.strata} == {
        2: DraftCounts(150, 75),
        5: DraftCounts(30, 60),
    }


def test_a_pod_that_restarts_counts_on_when_it_has_its_drafter_again() -> None:
    trial, canary, (control,) = begin("a", "b")
    steps = [
        pod(canary, 2, 100, 50),
        pod(canary, None, 900, 900, boot="second"),  # the server's own drafter
        pod(canary, 2, 40, 20, boot="second"),
        pod(canary, 2, 90, 45, boot="second"),
        pod(canary, 2, 30, 15, boot="third"),  # since when it has counted these, nobody saw
        pod(canary, 2, 35, 17, boot="third"),
    ]
    for view in steps:
        trial = look(trial, [view, pod(control, 1)])
    assert trial.canary == DraftCounts(100 + 90 + 5, 50 + 45 + 2)


def test_an_answer_that_is_old_news_is_not_counted_twice() -> None:
    trial, canary, (control,) = begin("a", "b")
    for view in (pod(canary, 2, 10, 5), pod(canary, 2, 110, 55), pod(canary, 2, 110, 55)):
        trial = look(trial, [view, pod(control, 1)])
    silent = dataclasses.replace(pod(canary, 2, 500, 400), fault=Fault.UNREACHABLE)
    trial = look(trial, [silent, pod(control, 1)])
    assert trial.canary == DraftCounts(110, 55)


def test_restarts_of_canaries_that_had_the_revision_are_counted() -> None:
    trial, canary, (control,) = begin("a", "b")

    def restarted(times: int, revision: int | None) -> list[RolloutView]:
        view = pod(canary, revision)
        return [dataclasses.replace(view, pod=make_pod(canary, restarts=times)), pod(control, 1)]

    trial = look(trial, restarted(1, 1))
    assert trial.crashes == 0, "it had not loaded it yet"
    trial = look(look(trial, restarted(1, 2)), restarted(2, None))
    assert trial.crashes == 1
    trial = look(trial, restarted(3, None))
    assert trial.crashes == 1, "it crashed without the revision"
    trial = look(look(trial, restarted(3, 2)), restarted(4, None))
    assert trial.crashes == 2


def test_the_only_pod_is_its_own_control_first() -> None:
    trial = look(Trial(), [pod("a", 1, 1000, 500)])
    assert trial.comparison is Comparison.BEFORE_AFTER
    assert sides(trial) == {"a": Side.CONTROL}
    trial = look(trial, [pod("a", 1, 1399, 699)])
    assert trial.canaries == ()
    trial = look(look(trial, [pod("a", 1, 1400, 700)]), [pod("a", 1, 1400, 700)])
    assert sides(trial) == {"a": Side.CANARY}
    trial = look(look(trial, [pod("a", 2, 0, 0)]), [pod("a", 2, 300, 200)])
    (stratum,) = trial.strata
    assert (stratum.canary, stratum.control) == (DraftCounts(300, 200), DraftCounts(400, 200))


def test_an_only_pod_with_few_drafts_needs_the_least_number_before_and_half_of_the_time() -> None:
    trial = look(look(Trial(), [pod("a", 1)]), [pod("a", 1, 99, 50)])
    trial = look(trial, [pod("a", 1, 99, 50)], elapsed=400.0)
    assert trial.canaries == ()
    trial = look(trial, [pod("a", 1, 100, 50)])
    assert len(look(trial, [pod("a", 1, 100, 50)]).canaries) == 1


def test_an_only_pod_that_drafts_nothing_goes_on_after_half_of_the_time() -> None:
    trial = look(Trial(), [pod("a", 1)], elapsed=0.0)
    assert trial.canaries == ()
    trial = look(look(trial, [pod("a", 1)], elapsed=300.0), [pod("a", 1)])
    assert len(trial.canaries) == 1


def test_a_second_pod_begins_the_comparison_anew_and_a_lost_one_ends_it() -> None:
    alone = look(look(Trial(), [pod("a", 1, 10, 5)]), [pod("a", 1, 60, 30)])
    both = look(alone, [pod("a", 1), pod("b", 1)])
    assert (both.comparison, both.strata) == (Comparison.SIDE_BY_SIDE, ())
    lost = make_rollout("b", None, silent_for=LOST_AFTER + 1)
    assert look(both, [pod("a", 1), lost]).comparison is Comparison.BEFORE_AFTER
    assert look(both, [pod("a", 1), make_rollout("b", None, silent_for=60.0)]).comparison is Comparison.SIDE_BY_SIDE


def test_another_active_revision_begins_the_comparison_anew() -> None:
    trial, canary, (control,) = begin("a", "b")
    for drafts in (10, 400):
        trial = look(trial, [pod(canary, 2, drafts), pod(control, 1, drafts)])
    other = dataclasses.replace(SETUP, active=make_revision(0, RevisionPhase.ACTIVE))
    assert look(trial, [pod(canary, 2, 500), pod(control, 1, 500)], other).strata == ()


def test_the_record_survives_a_restart_and_counts_on() -> None:
    trial, canary, (control,) = begin("a", "b")
    trial = look(trial, [pod(canary, 2, 10, 5), pod(control, 1, 10, 5)])
    known = read_trial(json.loads(json.dumps(write_trial(trial))))
    assert known == trial
    known = look(known, [pod(canary, 2, 60, 30), pod(control, 1, 30, 15)])
    assert (known.canary, known.control) == (DraftCounts(60, 30), DraftCounts(30, 15))


def test_a_record_that_cannot_be_read_begins_anew() -> None:
    assert read_trial({"comparison": "Sideways"}) == Trial()
    assert read_trial(None) == Trial()


def test_the_record_stays_small() -> None:
    trial, canary, (control,) = begin("a", "b")
    for version in range(2, MOST_STRATA + 3):
        for drafts in (0, 1):
            views = [
                pod(name, revision, drafts, policy_version=version) for name, revision in ((canary, 2), (control, 1))
            ]
            trial = look(trial, views)
        assert len(trial.strata) <= MOST_STRATA
    assert len(trial.strata) < 5, "both sides have begun anew, together"
    assert trial.canary == trial.control


def test_time_counts_by_looks() -> None:
    trial, _, _ = begin("a", "b")
    assert look(trial, [pod("a", 1), pod("b", 1)], elapsed=4.0).seconds == trial.seconds + 4.0
