"""Which revision is made, which pods load it, and what becomes of the last one."""

from __future__ import annotations

import dataclasses

import pytest

from tests.support.fake_rollout import manifest
from tests.support.snapshots import (
    busy,
    holds,
    idle,
    make_revision,
    make_rollout,
    make_snapshot,
    make_state,
    make_trainer,
)
from tlt_operator.api.names import RevisionPhase
from tlt_operator.plan.actions import CreateRevision, LoadDrafter, MarkRevision, PodCounts
from tlt_operator.plan.revisions import Rollout, beats_parent, decide_revisions
from tlt_operator.plan.snapshot import Fault, Snapshot
from tlt_operator.plan.worker import classify_all
from tlt_workloads.contract import AcceptanceCounters

ACTIVE, CANDIDATE = RevisionPhase.ACTIVE, RevisionPhase.CANDIDATE


def decide(snapshot: Snapshot) -> Rollout:
    return decide_revisions(snapshot, classify_all(snapshot))


def created(rollout: Rollout) -> list[str]:
    return [item.manifest.revision for item in rollout.actions if isinstance(item, CreateRevision)]


def loads(rollout: Rollout) -> dict[str, str]:
    return {item.rollout_uid: item.load.revision for item in rollout.actions if isinstance(item, LoadDrafter)}


def marks(rollout: Rollout) -> dict[str, RevisionPhase]:
    return {item.revision.name: item.phase for item in rollout.actions if isinstance(item, MarkRevision)}


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


def test_all_reachable_pods_load_it_and_the_others_do_not_block() -> None:
    silent = make_rollout("c", make_state(), fault=Fault.UNREACHABLE)
    plain = busy("d", drafter_method=None)
    updating = busy("e", updating=True)
    snapshot = make_snapshot(busy("a"), idle("b"), silent, plain, updating, revisions=(make_revision(1),))
    rollout = decide(snapshot)
    assert loads(rollout) == {"a-uid": "demo-r1", "b-uid": "demo-r1"}
    assert rollout.counts == PodCounts(total=3, loaded=0, failed=0)
    assert marks(rollout) == {"demo-r1": CANDIDATE}


def test_revision_is_active_when_every_reachable_pod_has_it_and_then_supersedes() -> None:
    pods = (busy("a", **holds(2)), idle("b", **holds(2)))
    first, second = make_revision(1, ACTIVE), make_revision(2, CANDIDATE)
    assert marks(decide(make_snapshot(*pods, revisions=(first, second)))) == {"demo-r2": ACTIVE}
    second = make_revision(2, ACTIVE)
    rollout = decide(make_snapshot(*pods, revisions=(first, second)))
    assert marks(rollout) == {"demo-r2": ACTIVE, "demo-r1": RevisionPhase.SUPERSEDED}
    assert rollout.active == second
    assert loads(rollout) == {}


def test_same_name_with_another_digest_is_loaded_again() -> None:
    pod = busy("a", drafter_revision="demo-r1", drafter_digest="0" * 64)
    assert loads(decide(make_snapshot(pod, revisions=(make_revision(1, ACTIVE),)))) == {"a-uid": "demo-r1"}


def test_refused_everywhere_is_rolled_back_and_the_parent_stays() -> None:
    pods = [dataclasses.replace(busy(name, **holds(1)), refusals={"demo-r2": "bad shape"}) for name in ("a", "b")]
    revisions = (make_revision(1, ACTIVE), make_revision(2, CANDIDATE))
    rollout = decide(make_snapshot(*pods, revisions=revisions))
    (mark,) = [item for item in rollout.actions if isinstance(item, MarkRevision) and item.revision.number == 2]
    assert mark.phase is RevisionPhase.ROLLED_BACK
    assert "bad shape" in mark.message
    assert loads(rollout) == {}
    after = decide(make_snapshot(*pods, revisions=(revisions[0], make_revision(2, RevisionPhase.ROLLED_BACK))))
    assert after.wanted == revisions[0]
    assert loads(after) == {}


def test_one_odd_pod_does_not_stop_a_revision() -> None:
    odd = dataclasses.replace(busy("b", **holds(1)), refusals={"demo-r2": "another model"})
    rollout = decide(make_snapshot(busy("a", **holds(2)), odd, revisions=(make_revision(2, CANDIDATE),)))
    assert marks(rollout) == {"demo-r2": ACTIVE}
    assert rollout.refusals == {"b": "another model"}
    assert loads(rollout) == {}


def test_accept_length_is_measured_over_the_pods_that_have_it_and_compared_with_the_last() -> None:
    counters = AcceptanceCounters(drafts=100, draft_tokens=300, accepted_tokens=80)
    pods = (busy("a", **holds(2), acceptance=counters), busy("b", **holds(1), acceptance=AcceptanceCounters(drafts=9)))
    before = make_revision(1, RevisionPhase.SUPERSEDED, accept_length=1.4)
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
