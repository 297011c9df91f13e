"""How a trial of a revision ends: which pods try it, what a ruling takes, what a restart or a newer one changes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.support.release_decisions import decide, drafting, loads, marks, reason, trial, unloads
from tests.support.snapshots import NOW, busy, holds, make_job, make_pod, make_revision, make_snapshot
from tlt_operator.api.names import EventReason, RevisionPhase, RevisionReason
from tlt_operator.plan.trial import write_trial

ACTIVE, CANARY, CANDIDATE = RevisionPhase.ACTIVE, RevisionPhase.CANARY, RevisionPhase.CANDIDATE
ROLLED_BACK, SUPERSEDED = RevisionPhase.ROLLED_BACK, RevisionPhase.SUPERSEDED
FIRST = make_revision(1, ACTIVE, promoted=True)


def test_one_pod_tries_it_and_no_other() -> None:
    pods = [busy(name, **holds(1)) for name in "abcd"]
    rollout = decide(make_snapshot(*pods, revisions=(FIRST, make_revision(2))))
    assert list(loads(rollout).values()) == ["demo-r2"]
    assert marks(rollout) == {"demo-r1": ACTIVE, "demo-r2": CANARY}


def test_a_pod_that_lost_its_drafter_gets_what_its_side_has() -> None:
    pods = [busy(name, **holds(1)) for name in "abcd"]
    revisions = (FIRST, make_revision(2, CANARY))
    before = decide(make_snapshot(*pods, revisions=revisions))
    (canary,) = loads(before)
    lost = [busy(name) for name in "abcd"]
    found: dict[str, str] = {}
    for _ in range(4):
        views = [
            busy(view.pod.name, **holds(2 if view.pod.uid == canary else 1)) if view.pod.uid in found else view
            for view in lost
        ]
        rollout = decide(make_snapshot(*views, revisions=revisions), before.memory)
        found |= loads(rollout)
    assert found.pop(canary) == "demo-r2"
    assert set(found.values()) == {"demo-r1"}
    assert len(found) == 3


def test_a_worse_one_is_rolled_back() -> None:
    rollout = trial(FIRST, make_revision(2, CANARY), canary=(2000, 1.01), control=(2000, 1.4))
    assert marks(rollout)["demo-r2"] is ROLLED_BACK
    assert reason(rollout, "demo-r2") is RevisionReason.WORSE
    assert loads(rollout) == {next(arm.uid for arm in rollout.trial.canaries): "demo-r1"} if rollout.trial else 0


def test_a_better_one_is_promoted_and_stays_so_whatever_is_counted_later() -> None:
    revisions = (FIRST, make_revision(2, CANARY))
    rollout = trial(*revisions, canary=(4000, 1.9), control=(4000, 1.4))
    assert marks(rollout)["demo-r2"] is ACTIVE
    assert reason(rollout, "demo-r2") is RevisionReason.TEST_PASSED
    views = [drafting(name, 1, 99999, 0) for name in "ab"]
    later = decide(make_snapshot(*views, revisions=revisions, now=NOW + 2), rollout.memory)
    assert marks(later)["demo-r2"] is ACTIVE


def test_once_promoted_it_comes_to_the_others() -> None:
    revisions = (FIRST, make_revision(2, ACTIVE, promoted=True))
    rollout = decide(make_snapshot(busy("a", **holds(2)), busy("b", **holds(1)), revisions=revisions))
    assert loads(rollout) == {"b-uid": "demo-r2"}
    assert marks(rollout) == {"demo-r2": ACTIVE, "demo-r1": SUPERSEDED}


@pytest.mark.parametrize("length", [1.3, 1.9])
def test_nothing_is_promoted_nor_doubted_before_enough_drafts(length: float) -> None:
    for seconds in (10.0, 10_000.0):
        rollout = trial(FIRST, make_revision(2, CANARY), canary=(499, length), control=(5000, 1.4), seconds=seconds)
        assert marks(rollout)["demo-r2"] is CANARY
        assert reason(rollout, "demo-r2") is RevisionReason.ON_TRIAL


def test_harm_that_is_certain_does_not_wait_for_them() -> None:
    sides: Any = {"control": (1000, 2.2)}
    revisions = (FIRST, make_revision(2, CANARY))
    rollout = trial(*revisions, canary=(300, 1.02), **sides)
    assert marks(rollout)["demo-r2"] is ROLLED_BACK
    assert reason(rollout, "demo-r2") is RevisionReason.WORSE
    assert marks(trial(*revisions, canary=(49, 1.0), **sides))["demo-r2"] is CANARY


def test_one_that_engines_avoid_is_rolled_back_before_its_time_is_over() -> None:
    """Adaptive engines draft no more with a drafter that is bad enough, so that it never has enough drafts."""
    revisions = (FIRST, make_revision(2, CANARY))
    sides: Any = {"canary": (80, 1.05), "control": (5000, 1.8)}
    assert marks(trial(*revisions, **sides, seconds=600.0))["demo-r2"] is CANARY, "it wrote nothing"
    rollout = trial(*revisions, **sides, tokens=9000)
    assert marks(rollout)["demo-r2"] is ROLLED_BACK
    assert reason(rollout, "demo-r2") is RevisionReason.AVOIDED


@pytest.mark.parametrize(
    ("length", "phase", "why"),
    [
        (1.5, ACTIVE, RevisionReason.NO_REGRESSION),
        (1.44, ACTIVE, RevisionReason.NO_REGRESSION),
        (1.38, ROLLED_BACK, RevisionReason.SEEMS_WORSE),
    ],
)
def test_after_the_time_limit_the_mean_decides(length: float, phase: RevisionPhase, why: RevisionReason) -> None:
    revisions = (FIRST, make_revision(2, CANARY))
    sides: Any = {"canary": (600, length), "control": (600, 1.5)}
    assert marks(trial(*revisions, **sides, seconds=590.0))["demo-r2"] is CANARY
    rollout = trial(*revisions, **sides, seconds=600.0)
    assert marks(rollout)["demo-r2"] is phase
    assert reason(rollout, "demo-r2") is why


def test_without_auto_rollback_a_person_is_asked() -> None:
    job = make_job(release={"autoRollback": False})
    rollout = trial(FIRST, make_revision(2, CANARY), job=job, canary=(2000, 1.01), control=(2000, 1.4))
    assert marks(rollout)["demo-r2"] is CANARY
    (remark,) = rollout.remarks
    assert remark.reason is EventReason.REVISION_HELD
    assert "tlt.dev/rollback" in remark.message


@pytest.mark.parametrize("automatic", [True, False])
def test_a_refusal_by_a_canary_ends_it(automatic: bool) -> None:
    job = make_job(release={"autoRollback": automatic})
    pods = [busy(name, **holds(1)) for name in "abc"]
    revisions = (FIRST, make_revision(2, CANARY))
    before = decide(make_snapshot(*pods, revisions=revisions, job=job))
    (canary,) = loads(before)
    refused = [
        dataclasses.replace(view, refusals={"demo-r2": "not finite"}) if view.pod.uid == canary else view
        for view in pods
    ]
    rollout = decide(make_snapshot(*refused, revisions=revisions, job=job), before.memory)
    assert marks(rollout)["demo-r2"] is ROLLED_BACK
    assert reason(rollout, "demo-r2") is RevisionReason.REFUSED
    assert loads(rollout) == {}


def test_canaries_that_crash_again_and_again_end_it() -> None:
    revisions = (FIRST, make_revision(2, CANARY))
    rollout = decide(make_snapshot(*(busy(name, **holds(1)) for name in "ab"), revisions=revisions))
    (canary,) = loads(rollout)
    for restarts, revision in ((0, 2), (1, None), (1, 2), (2, None)):
        fields = holds(revision) if revision else {}
        views = [
            dataclasses.replace(busy(name, **fields), pod=make_pod(name, restarts=restarts))
            if f"{name}-uid" == canary
            else busy(name, **holds(1))
            for name in "ab"
        ]
        rollout = decide(make_snapshot(*views, revisions=revisions), rollout.memory)
    assert marks(rollout)["demo-r2"] is ROLLED_BACK
    assert reason(rollout, "demo-r2") is RevisionReason.CRASH_LOOP


def test_the_newest_waits_while_another_one_is_tried_and_those_between_are_overtaken() -> None:
    revisions = (FIRST, make_revision(2, CANARY), make_revision(3, CANDIDATE), make_revision(4))
    rollout = decide(make_snapshot(busy("a", **holds(1)), busy("b", **holds(1)), revisions=revisions))
    assert marks(rollout) == {
        "demo-r1": ACTIVE,
        "demo-r2": CANARY,
        "demo-r3": SUPERSEDED,
        "demo-r4": CANDIDATE,
    }
    assert rollout.candidate == revisions[3]


def test_one_that_gets_no_drafts_makes_room_for_a_newer_one_when_its_time_is_over() -> None:
    sides: Any = {"canary": (100, 1.9), "control": (5000, 1.4)}
    revisions = (FIRST, make_revision(2, CANARY), make_revision(3, CANDIDATE))
    assert marks(trial(*revisions, **sides, seconds=590.0))["demo-r2"] is CANARY
    rollout = trial(*revisions, **sides, seconds=600.0)
    assert marks(rollout)["demo-r2"] is SUPERSEDED
    assert reason(rollout, "demo-r2") is RevisionReason.OVERTAKEN
    assert set(loads(rollout).values()) == {"demo-r1"}, "its canary goes back"
    assert marks(trial(*revisions[:2], **sides, seconds=600.0))["demo-r2"] is CANARY, "nobody waits"


def test_one_older_than_the_active_one_is_overtaken_whatever_its_parent() -> None:
    revisions = (make_revision(2, CANDIDATE), make_revision(3, ACTIVE), make_revision(4, parent="demo-r1"))
    rollout = decide(make_snapshot(busy("a", **holds(3)), busy("b", **holds(3)), revisions=revisions))
    assert marks(rollout) == {"demo-r2": SUPERSEDED, "demo-r3": ACTIVE, "demo-r4": CANARY}


def test_a_first_one_is_tried_against_the_servers_own_drafter() -> None:
    sides: Any = {"own": 1, "last": None}
    better = trial(make_revision(1, CANARY), canary=(3000, 1.4), control=(3000, 1.01), **sides)
    assert marks(better) == {"demo-r1": ACTIVE}
    worse = trial(make_revision(1, CANARY), canary=(3000, 1.01), control=(3000, 1.4), **sides)
    assert marks(worse) == {"demo-r1": ROLLED_BACK}
    assert worse.trial is not None
    assert unloads(worse) == {arm.uid for arm in worse.trial.canaries}


@pytest.mark.parametrize(("length", "phase"), [(1.2, ACTIVE), (1.01, ROLLED_BACK)])
def test_a_first_one_must_help_where_the_others_draft_nothing(length: float, phase: RevisionPhase) -> None:
    rollout = trial(make_revision(1, CANARY), canary=(900, length), control=(0, 1.0), own=1, last=None, seconds=700.0)
    assert marks(rollout) == {"demo-r1": phase}


def test_a_suspended_job_tries_nothing_new_and_judges_nothing() -> None:
    job = make_job(suspend=True)
    pods = [busy(name, **holds(1)) for name in "ab"]
    rollout = decide(make_snapshot(*pods, revisions=(FIRST, make_revision(2)), job=job))
    assert marks(rollout) == {"demo-r1": ACTIVE, "demo-r2": CANDIDATE}
    assert loads(rollout) == {}
    running = trial(FIRST, make_revision(2, CANARY), job=job, canary=(9000, 1.0), control=(9000, 2.0), seconds=1e6)
    assert marks(running)["demo-r2"] is CANARY


def test_a_restart_of_the_operator_changes_nothing() -> None:
    revisions = (FIRST, make_revision(2, CANARY))
    rollout = trial(*revisions, canary=(2000, 1.3), control=(2000, 1.4))
    assert rollout.trial is not None
    assert marks(rollout)["demo-r2"] is CANARY
    known = dataclasses.replace(revisions[1], trial=write_trial(rollout.trial))
    canary = rollout.trial.canaries[0].pod
    views = [drafting(name, 2 if name == canary else 1, 2100, 700) for name in "ab"]
    again = decide(make_snapshot(*views, revisions=(revisions[0], known)))
    assert again.trial is not None
    assert [arm.pod for arm in again.trial.canaries] == [canary]
    assert again.trial.canary.drafts == 2100
    assert loads(again) == {}


def test_an_only_pod_first_shows_what_the_last_one_was_worth() -> None:
    revisions = (FIRST, make_revision(2, CANARY))
    rollout = decide(make_snapshot(drafting("a", 1, 0, 0), revisions=revisions))
    assert loads(rollout) == {}
    for drafts in (2000, 2000):
        rollout = decide(make_snapshot(drafting("a", 1, drafts, 1000), revisions=revisions), rollout.memory)
    assert loads(rollout) == {"a-uid": "demo-r2"}
    for drafts in (0, 3000):
        rollout = decide(make_snapshot(drafting("a", 2, drafts, 0), revisions=revisions), rollout.memory)
    assert marks(rollout)["demo-r2"] is ROLLED_BACK
