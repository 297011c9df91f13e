"""Which revision is made, tried, promoted and withdrawn, which pods load it, and what people may ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from tests.support.fake_rollout import manifest
from tests.support.snapshots import (
    NOW,
    busy,
    holds,
    idle,
    make_job,
    make_pod,
    make_revision,
    make_rollout,
    make_snapshot,
    make_state,
    make_trainer,
)
from tlt_operator.api.job import Job
from tlt_operator.api.names import EventReason, RevisionPhase, RevisionReason
from tlt_operator.api.revision import Revision, Wish
from tlt_operator.plan.actions import CreateRevision, LoadDrafter, MarkRevision, PodCounts, UnloadDrafter
from tlt_operator.plan.candidates import beats_parent
from tlt_operator.plan.revisions import ReleaseMemory, Rollout, decide_revisions
from tlt_operator.plan.snapshot import Fault, RolloutView, Snapshot
from tlt_operator.plan.worker import classify_all
from tlt_workloads.contract import AcceptanceCounters

ACTIVE, CANARY, CANDIDATE = RevisionPhase.ACTIVE, RevisionPhase.CANARY, RevisionPhase.CANDIDATE
ROLLED_BACK, SUPERSEDED = RevisionPhase.ROLLED_BACK, RevisionPhase.SUPERSEDED
AT_ONCE = make_job(release={"canary": {"replicas": 0}})


def decide(snapshot: Snapshot, before: ReleaseMemory | None = None) -> Rollout:
    return decide_revisions(snapshot, classify_all(snapshot), before)


def created(rollout: Rollout) -> list[str]:
    return [item.manifest.revision for item in rollout.actions if isinstance(item, CreateRevision)]


def loads(rollout: Rollout) -> dict[str, str]:
    return {item.rollout_uid: item.load.revision for item in rollout.actions if isinstance(item, LoadDrafter)}


def marks(rollout: Rollout) -> dict[str, RevisionPhase]:
    return {item.revision.name: item.phase for item in rollout.actions if isinstance(item, MarkRevision)}


def reason(rollout: Rollout, name: str) -> RevisionReason | None:
    """Why a revision is marked as it is."""
    found = [item for item in rollout.actions if isinstance(item, MarkRevision) and item.revision.name == name]
    return found[-1].ruling.reason if found and found[-1].ruling is not None else None


def unloads(rollout: Rollout) -> set[str]:
    return {item.rollout_uid for item in rollout.actions if isinstance(item, UnloadDrafter)}


def drafting(name: str, revision: int | None, drafts: int, accepted: int, **fields: Any) -> RolloutView:
    counters = AcceptanceCounters(drafts=drafts, draft_tokens=3 * drafts, accepted_tokens=accepted)
    return busy(name, **(holds(revision) if revision else {}), acceptance=counters, **fields)


def trial(
    *revisions: Revision,
    job: Job | None = None,
    canary: tuple[int, float],
    control: tuple[int, float],
    seconds: float = 10.0,
    tokens: int = 0,
    pods: Sequence[str] = ("a", "b"),
    own: int | None = 2,
    last: int | None = 1,
) -> Rollout:
    """A trial of revision `own` against `last`, after so many drafts with these accept lengths on the two sides.

    `tokens`: that each pod has generated meanwhile.
    """
    rollout = decide(
        make_snapshot(*(drafting(name, last, 0, 0) for name in pods), revisions=revisions, job=job or make_job())
    )
    assert rollout.trial is not None
    canaries = {arm.pod for arm in rollout.trial.canaries}
    for step in range(2):
        views = []
        for name in pods:
            drafts, length = canary if name in canaries else control
            accepted = round(step * drafts * (length - 1))
            revision = own if name in canaries else last
            views.append(drafting(name, revision, step * drafts, accepted, generated_tokens=step * tokens))
        at = NOW + step * 1.0
        memory = rollout.memory
        if step and memory.trial is not None:
            memory = dataclasses.replace(memory, trial=dataclasses.replace(memory.trial, seconds=seconds))
        rollout = decide(make_snapshot(*views, revisions=revisions, now=at, job=job or make_job()), memory)
    return rollout


def test_newest_candidate_that_beats_its_parent_is_made() -> None:
    candidates = (
        manifest("demo", 1),
        manifest("demo", 2, accept_length=1.6, parent=1.5),
        manifest("demo", 3, accept_length=1.4, parent=1.5),
    )
    assert created(decide(make_snapshot(busy("a"), make_trainer("a", candidates=candidates)))) == ["demo-r2"]


def test_known_and_older_candidates_are_not_made_again() -> None:
    candidates = (manifest("demo", 1), manifest("demo", 2))
    snapshot = make_snapshot(
        busy("a", **holds(2)), make_trainer("a", candidates=candidates), revisions=(make_revision(2, ACTIVE),)
    )
    assert created(decide(snapshot)) == []


@pytest.mark.parametrize("changes", [{"revision": "other-r9"}, {"revision": "demo-r9/../x"}, {"sha256": "short"}])
def test_ill_formed_candidate_is_ignored(changes: dict[str, str]) -> None:
    bad = dataclasses.replace(manifest("demo", 9), **changes)
    assert created(decide(make_snapshot(busy("a"), make_trainer("a", candidates=(bad,))))) == []


def test_equal_quality_is_no_reason_to_swap() -> None:
    assert beats_parent(manifest("demo", 1))
    assert not beats_parent(manifest("demo", 2, accept_length=1.5, parent=1.5))


def test_without_canaries_pods_load_it_one_by_one_and_those_that_cannot_do_not_block() -> None:
    silent = make_rollout("c", make_state(), fault=Fault.UNREACHABLE)
    plain = busy("d", drafter_method=None)
    updating = busy("e", updating=True)
    snapshot = make_snapshot(busy("a"), idle("b"), silent, plain, updating, revisions=(make_revision(1),), job=AT_ONCE)
    rollout = decide(snapshot)
    assert len(loads(rollout)) == 1
    assert set(loads(rollout)) <= {"a-uid", "b-uid"}
    assert rollout.counts == PodCounts(total=3, loaded=0, failed=0)
    assert marks(rollout) == {"demo-r1": CANDIDATE}


def test_without_canaries_a_revision_is_active_when_every_pod_has_it_and_then_supersedes() -> None:
    pods = (busy("a", **holds(2)), idle("b", **holds(2)))
    first, second = make_revision(1, ACTIVE), make_revision(2, CANDIDATE)
    rollout = decide(make_snapshot(*pods, revisions=(first, second), job=AT_ONCE))
    assert marks(rollout)["demo-r2"] is ACTIVE
    assert reason(rollout, "demo-r2") is RevisionReason.WITHOUT_CANARY
    second = make_revision(2, ACTIVE)
    rollout = decide(make_snapshot(*pods, revisions=(first, second), job=AT_ONCE))
    assert marks(rollout) == {"demo-r2": ACTIVE, "demo-r1": SUPERSEDED}
    assert rollout.active == second
    assert loads(rollout) == {}


def test_same_name_with_another_digest_is_loaded_again() -> None:
    pod = busy("a", drafter_revision="demo-r1", drafter_digest="0" * 64)
    assert loads(decide(make_snapshot(pod, revisions=(make_revision(1, ACTIVE),)))) == {"a-uid": "demo-r1"}


def test_without_canaries_refused_by_most_is_rolled_back_and_the_last_one_stays() -> None:
    pods = [dataclasses.replace(busy(name, **holds(1)), refusals={"demo-r2": "bad shape"}) for name in ("a", "b")]
    revisions = (make_revision(1, ACTIVE, promoted=True), make_revision(2, CANDIDATE))
    rollout = decide(make_snapshot(*pods, revisions=revisions, job=AT_ONCE))
    (mark,) = [item for item in rollout.actions if isinstance(item, MarkRevision) and item.revision.number == 2]
    assert mark.phase is ROLLED_BACK
    assert "bad shape" in mark.message
    assert loads(rollout) == {}
    after = decide(make_snapshot(*pods, revisions=(revisions[0], make_revision(2, ROLLED_BACK)), job=AT_ONCE))
    assert after.active == revisions[0]
    assert loads(after) == {}


def test_without_canaries_one_odd_pod_does_not_stop_a_revision() -> None:
    odd = dataclasses.replace(busy("b", **holds(1)), refusals={"demo-r2": "another model"})
    rollout = decide(make_snapshot(busy("a", **holds(2)), odd, revisions=(make_revision(2, CANDIDATE),), job=AT_ONCE))
    assert marks(rollout) == {"demo-r2": ACTIVE}
    assert rollout.refusals == {"b": "another model"}
    assert loads(rollout) == {}


def test_accept_length_is_measured_over_the_pods_that_have_it_and_compared_with_the_last() -> None:
    counters = AcceptanceCounters(drafts=100, draft_tokens=300, accepted_tokens=80)
    pods = (busy("a", **holds(2), acceptance=counters), busy("b", **holds(1), acceptance=AcceptanceCounters(drafts=9)))
    before = make_revision(1, SUPERSEDED, accept_length=1.4, promoted=True)
    rollout = decide(make_snapshot(*pods, revisions=(before, make_revision(2, ACTIVE))))
    assert rollout.accept_length == pytest.approx(1.8)
    assert rollout.baseline == 1.4


def test_last_figures_of_a_leaving_revision_are_kept() -> None:
    counters = AcceptanceCounters(drafts=10, draft_tokens=30, accepted_tokens=5)
    snapshot = make_snapshot(
        busy("a", **holds(1), acceptance=counters), revisions=(make_revision(1, ACTIVE), make_revision(2))
    )
    (mark,) = [
        item for item in decide(snapshot).actions if isinstance(item, MarkRevision) and item.revision.number == 1
    ]
    assert mark.phase is ACTIVE
    assert mark.evidence is not None
    assert mark.evidence.accept_length == pytest.approx(1.5)


class TestTrial:
    FIRST = make_revision(1, ACTIVE, promoted=True)

    def test_one_pod_tries_it_and_no_other(self) -> None:
        pods = [busy(name, **holds(1)) for name in "abcd"]
        rollout = decide(make_snapshot(*pods, revisions=(self.FIRST, make_revision(2))))
        assert list(loads(rollout).values()) == ["demo-r2"]
        assert marks(rollout) == {"demo-r1": ACTIVE, "demo-r2": CANARY}

    def test_a_pod_that_lost_its_drafter_gets_what_its_side_has(self) -> None:
        pods = [busy(name, **holds(1)) for name in "abcd"]
        revisions = (self.FIRST, make_revision(2, CANARY))
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

    def test_a_worse_one_is_rolled_back(self) -> None:
        rollout = trial(self.FIRST, make_revision(2, CANARY), canary=(2000, 1.01), control=(2000, 1.4))
        assert marks(rollout)["demo-r2"] is ROLLED_BACK
        assert reason(rollout, "demo-r2") is RevisionReason.WORSE
        assert loads(rollout) == {next(arm.uid for arm in rollout.trial.canaries): "demo-r1"} if rollout.trial else 0

    def test_a_better_one_is_promoted_and_stays_so_whatever_is_counted_later(self) -> None:
        revisions = (self.FIRST, make_revision(2, CANARY))
        rollout = trial(*revisions, canary=(4000, 1.9), control=(4000, 1.4))
        assert marks(rollout)["demo-r2"] is ACTIVE
        assert reason(rollout, "demo-r2") is RevisionReason.TEST_PASSED
        views = [drafting(name, 1, 99999, 0) for name in "ab"]
        later = decide(make_snapshot(*views, revisions=revisions, now=NOW + 2), rollout.memory)
        assert marks(later)["demo-r2"] is ACTIVE

    def test_once_promoted_it_comes_to_the_others(self) -> None:
        revisions = (self.FIRST, make_revision(2, ACTIVE, promoted=True))
        rollout = decide(make_snapshot(busy("a", **holds(2)), busy("b", **holds(1)), revisions=revisions))
        assert loads(rollout) == {"b-uid": "demo-r2"}
        assert marks(rollout) == {"demo-r2": ACTIVE, "demo-r1": SUPERSEDED}

    @pytest.mark.parametrize("length", [1.3, 1.9])
    def test_nothing_is_promoted_nor_doubted_before_enough_drafts(self, length: float) -> None:
        for seconds in (10.0, 10_000.0):
            rollout = trial(
                self.FIRST, make_revision(2, CANARY), canary=(499, length), control=(5000, 1.4), seconds=seconds
            )
            assert marks(rollout)["demo-r2"] is CANARY
            assert reason(rollout, "demo-r2") is RevisionReason.ON_TRIAL

    def test_harm_that_is_certain_does_not_wait_for_them(self) -> None:
        sides: Any = {"control": (1000, 2.2)}
        revisions = (self.FIRST, make_revision(2, CANARY))
        rollout = trial(*revisions, canary=(300, 1.02), **sides)
        assert marks(rollout)["demo-r2"] is ROLLED_BACK
        assert reason(rollout, "demo-r2") is RevisionReason.WORSE
        assert marks(trial(*revisions, canary=(49, 1.0), **sides))["demo-r2"] is CANARY

    def test_one_that_engines_avoid_is_rolled_back_before_its_time_is_over(self) -> None:
        """Adaptive engines draft no more with a drafter that is bad enough, so that it never has enough drafts."""
        revisions = (self.FIRST, make_revision(2, CANARY))
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
    def test_after_the_time_limit_the_mean_decides(
        self, length: float, phase: RevisionPhase, why: RevisionReason
    ) -> None:
        revisions = (self.FIRST, make_revision(2, CANARY))
        sides: Any = {"canary": (600, length), "control": (600, 1.5)}
        assert marks(trial(*revisions, **sides, seconds=590.0))["demo-r2"] is CANARY
        rollout = trial(*revisions, **sides, seconds=600.0)
        assert marks(rollout)["demo-r2"] is phase
        assert reason(rollout, "demo-r2") is why

    def test_without_auto_rollback_a_person_is_asked(self) -> None:
        job = make_job(release={"autoRollback": False})
        rollout = trial(self.FIRST, make_revision(2, CANARY), job=job, canary=(2000, 1.01), control=(2000, 1.4))
        assert marks(rollout)["demo-r2"] is CANARY
        (remark,) = rollout.remarks
        assert remark.reason is EventReason.REVISION_HELD
        assert "tlt.dev/rollback" in remark.message

    @pytest.mark.parametrize("automatic", [True, False])
    def test_a_refusal_by_a_canary_ends_it(self, automatic: bool) -> None:
        job = make_job(release={"autoRollback": automatic})
        pods = [busy(name, **holds(1)) for name in "abc"]
        revisions = (self.FIRST, make_revision(2, CANARY))
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

    def test_canaries_that_crash_again_and_again_end_it(self) -> None:
        revisions = (self.FIRST, make_revision(2, CANARY))
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

    def test_the_newest_waits_while_another_one_is_tried_and_those_between_are_overtaken(self) -> None:
        revisions = (self.FIRST, make_revision(2, CANARY), make_revision(3, CANDIDATE), make_revision(4))
        rollout = decide(make_snapshot(busy("a", **holds(1)), busy("b", **holds(1)), revisions=revisions))
        assert marks(rollout) == {
            "demo-r1": ACTIVE,
            "demo-r2": CANARY,
            "demo-r3": SUPERSEDED,
            "demo-r4": CANDIDATE,
        }
        assert rollout.candidate == revisions[3]

    def test_one_that_gets_no_drafts_makes_room_for_a_newer_one_when_its_time_is_over(self) -> None:
        sides: Any = {"canary": (100, 1.9), "control": (5000, 1.4)}
        revisions = (self.FIRST, make_revision(2, CANARY), make_revision(3, CANDIDATE))
        assert marks(trial(*revisions, **sides, seconds=590.0))["demo-r2"] is CANARY
        rollout = trial(*revisions, **sides, seconds=600.0)
        assert marks(rollout)["demo-r2"] is SUPERSEDED
        assert reason(rollout, "demo-r2") is RevisionReason.OVERTAKEN
        assert set(loads(rollout).values()) == {"demo-r1"}, "its canary goes back"
        assert marks(trial(*revisions[:2], **sides, seconds=600.0))["demo-r2"] is CANARY, "nobody waits"

    def test_one_older_than_the_active_one_is_overtaken_whatever_its_parent(self) -> None:
        revisions = (make_revision(2, CANDIDATE), make_revision(3, ACTIVE), make_revision(4, parent="demo-r1"))
        rollout = decide(make_snapshot(busy("a", **holds(3)), busy("b", **holds(3)), revisions=revisions))
        assert marks(rollout) == {"demo-r2": SUPERSEDED, "demo-r3": ACTIVE, "demo-r4": CANARY}

    def test_a_first_one_is_tried_against_the_servers_own_drafter(self) -> None:
        sides: Any = {"own": 1, "last": None}
        better = trial(make_revision(1, CANARY), canary=(3000, 1.4), control=(3000, 1.01), **sides)
        assert marks(better) == {"demo-r1": ACTIVE}
        worse = trial(make_revision(1, CANARY), canary=(3000, 1.01), control=(3000, 1.4), **sides)
        assert marks(worse) == {"demo-r1": ROLLED_BACK}
        assert worse.trial is not None
        assert unloads(worse) == {arm.uid for arm in worse.trial.canaries}

    @pytest.mark.parametrize(("length", "phase"), [(1.2, ACTIVE), (1.01, ROLLED_BACK)])
    def test_a_first_one_must_help_where_the_others_draft_nothing(self, length: float, phase: RevisionPhase) -> None:
        rollout = trial(
            make_revision(1, CANARY), canary=(900, length), control=(0, 1.0), own=1, last=None, seconds=700.0
        )
        assert marks(rollout) == {"demo-r1": phase}

    def test_a_suspended_job_tries_nothing_new_and_judges_nothing(self) -> None:
        job = make_job(suspend=True)
        pods = [busy(name, **holds(1)) for name in "ab"]
        rollout = decide(make_snapshot(*pods, revisions=(self.FIRST, make_revision(2)), job=job))
        assert marks(rollout) == {"demo-r1": ACTIVE, "demo-r2": CANDIDATE}
        assert loads(rollout) == {}
        running = trial(
            self.FIRST, make_revision(2, CANARY), job=job, canary=(9000, 1.0), control=(9000, 2.0), seconds=1e6
        )
        assert marks(running)["demo-r2"] is CANARY

    def test_a_restart_of_the_operator_changes_nothing(self) -> None:
        from tlt_operator.plan.trial import write_trial

        revisions = (self.FIRST, make_revision(2, CANARY))
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

    def test_an_only_pod_first_shows_what_the_last_one_was_worth(self) -> None:
        revisions = (self.FIRST, make_revision(2, CANARY))
        rollout = decide(make_snapshot(drafting("a", 1, 0, 0), revisions=revisions))
        assert loads(rollout) == {}
        for drafts in (2000, 2000):
            rollout = decide(make_snapshot(drafting("a", 1, drafts, 1000), revisions=revisions), rollout.memory)
        assert loads(rollout) == {"a-uid": "demo-r2"}
        for drafts in (0, 3000):
            rollout = decide(make_snapshot(drafting("a", 2, drafts, 0), revisions=revisions), rollout.memory)
        assert marks(rollout)["demo-r2"] is ROLLED_BACK


class TestRollback:
    FIRST = make_revision(1, SUPERSEDED, promoted=True)
    SECOND = make_revision(2, ACTIVE, promoted=True)

    def test_by_hand_brings_the_last_one_back(self) -> None:
        pods = [busy(name, **holds(2)) for name in "ab"]
        second = dataclasses.replace(self.SECOND, wish=Wish.ROLL_BACK)
        rollout = decide(make_snapshot(*pods, revisions=(self.FIRST, second)))
        assert marks(rollout) == {"demo-r2": ROLLED_BACK, "demo-r1": ACTIVE}
        assert reason(rollout, "demo-r1") is RevisionReason.RESTORED
        assert set(loads(rollout).values()) == {"demo-r1"}

    def test_it_goes_on_when_only_half_of_it_was_written(self) -> None:
        pods = [busy(name, **holds(2)) for name in "ab"]
        rollout = decide(make_snapshot(*pods, revisions=(self.FIRST, make_revision(2, ROLLED_BACK))))
        assert marks(rollout) == {"demo-r1": ACTIVE}
        assert set(loads(rollout).values()) == {"demo-r1"}

    def test_never_to_one_that_was_not_promoted(self) -> None:
        overtaken = make_revision(1, SUPERSEDED)
        pods = [busy(name, **holds(2)) for name in "ab"]
        rollout = decide(make_snapshot(*pods, revisions=(overtaken, make_revision(2, ROLLED_BACK))))
        assert rollout.active is None
        assert loads(rollout) == {}
        assert unloads(rollout) == {"a-uid", "b-uid"}

    def test_most_pods_refusing_the_active_one_bring_back_the_last_one_that_is_still_about(self) -> None:
        refusing = [
            dataclasses.replace(busy(name, **holds(1)), refusals={"demo-r2": "too large"}) for name in ("a", "b")
        ]
        rollout = decide(make_snapshot(*refusing, busy("c", **holds(2)), revisions=(self.FIRST, self.SECOND)))
        assert marks(rollout)["demo-r2"] is ROLLED_BACK

    def test_pods_that_refuse_everything_cost_no_revision(self) -> None:
        """As when the store is not mounted: what is wrong is the pods."""
        refusing = [
            dataclasses.replace(busy(name), refusals={"demo-r1": "Unreadable", "demo-r2": "Unreadable"})
            for name in ("a", "b")
        ]
        rollout = decide(make_snapshot(*refusing, revisions=(self.FIRST, self.SECOND)))
        assert marks(rollout)["demo-r2"] is ACTIVE
        assert len(rollout.refusals) == 2

    def test_a_pod_with_an_unknown_drafter_is_left_alone(self) -> None:
        stranger = busy("a", drafter_revision="other-r9", drafter_digest="f" * 64)
        assert unloads(decide(make_snapshot(stranger))) == set()


class TestByHand:
    PODS = tuple(busy(name, **holds(1)) for name in ("a", "b", "c"))
    FIRST = make_revision(1, ACTIVE, promoted=True)

    def test_promotion_needs_no_drafts(self) -> None:
        wanted = make_revision(2, CANARY, wish=Wish.PROMOTE)
        rollout = decide(make_snapshot(*self.PODS, revisions=(self.FIRST, wanted)))
        assert marks(rollout)["demo-r2"] is ACTIVE
        assert reason(rollout, "demo-r2") is RevisionReason.BY_HAND
        assert list(loads(rollout).values()) == ["demo-r2"]

    @pytest.mark.parametrize("phase", [None, CANDIDATE, CANARY])
    def test_a_candidate_is_withdrawn_and_its_canaries_go_back(self, phase: RevisionPhase | None) -> None:
        unwanted = make_revision(2, phase, wish=Wish.ROLL_BACK)
        pods = (busy("a", **holds(2)), *self.PODS[1:])
        rollout = decide(make_snapshot(*pods, revisions=(self.FIRST, unwanted)))
        assert marks(rollout)["demo-r2"] is ROLLED_BACK
        assert loads(rollout) == {"a-uid": "demo-r1"}

    def test_what_was_rolled_back_is_not_promoted_and_somebody_is_told(self) -> None:
        unwanted = make_revision(2, ROLLED_BACK, wish=Wish.PROMOTE)
        rollout = decide(make_snapshot(*self.PODS, revisions=(self.FIRST, unwanted)))
        assert loads(rollout) == {}
        assert "demo-r2" not in marks(rollout)
        (remark,) = rollout.remarks
        assert "spec.release.pin" in remark.message

    @pytest.mark.parametrize("phase", [None, SUPERSEDED, ROLLED_BACK])
    def test_a_pin_holds_the_job_to_one_whatever_became_of_it(self, phase: RevisionPhase | None) -> None:
        revisions = (make_revision(1, phase), make_revision(2, ACTIVE, promoted=True), make_revision(3))
        job = make_job(release={"pin": "demo-r1"})
        pods = [busy(name, **holds(2)) for name in "ab"]
        rollout = decide(make_snapshot(*pods, revisions=revisions, job=job))
        assert set(loads(rollout).values()) == {"demo-r1"}
        assert marks(rollout)["demo-r1"] is ACTIVE
        assert marks(rollout)["demo-r3"] is CANDIDATE
        assert reason(rollout, "demo-r1") is RevisionReason.PINNED

    def test_a_pin_that_names_nothing_changes_nothing_and_says_so(self) -> None:
        job = make_job(release={"pin": "demo-r9"})
        rollout = decide(make_snapshot(*self.PODS, revisions=(self.FIRST,), job=job))
        assert rollout.active == self.FIRST
        assert rollout.missing_pin == "demo-r9"
        assert rollout.remarks

    def test_a_wish_that_says_nothing_is_told(self) -> None:
        odd = make_revision(2, odd_wishes=("tlt.dev/promote",))
        rollout = decide(make_snapshot(*self.PODS, revisions=(self.FIRST, odd)))
        (remark,) = rollout.remarks
        assert 'must be "true"' in remark.message


def test_a_pod_is_not_lent_while_it_gets_its_first_drafter() -> None:
    rollout = decide(make_snapshot(idle("a"), busy("b", **holds(1)), revisions=(make_revision(1, ACTIVE),)))
    assert rollout.arriving == {"a-uid"}
