"""Which revision is made, tried, promoted and withdrawn, which pods load it, and what people may ask for."""

from __future__ import annotations

import dataclasses

import pytest

from tests.support.fake_rollout import manifest
from tests.support.release_decisions import created, decide, loads, marks, reason, unloads
from tests.support.snapshots import (
    busy,
    holds,
    idle,
    make_job,
    make_revision,
    make_rollout,
    make_snapshot,
    make_state,
    make_trainer,
)
from tlt_operator.api.names import RevisionPhase, RevisionReason
from tlt_operator.api.revision import Wish
from tlt_operator.plan.actions import MarkRevision, PodCounts
from tlt_operator.plan.candidates import beats_parent
from tlt_operator.plan.snapshot import Fault
from tlt_workloads.contract import AcceptanceCounters

ACTIVE, CANARY, CANDIDATE = RevisionPhase.ACTIVE, RevisionPhase.CANARY, RevisionPhase.CANDIDATE
ROLLED_BACK, SUPERSEDED = RevisionPhase.ROLLED_BACK, RevisionPhase.SUPERSEDED
AT_ONCE = make_job(release={"canary": {"replicas": 0}})


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
