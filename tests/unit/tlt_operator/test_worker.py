"""Worker states: absent data is never idleness."""

from __future__ import annotations

import pytest

from tests.support.snapshots import NOW, busy, idle, lent, make_lease, make_pod, make_rollout, make_snapshot, make_state
from tlt_operator.plan.decision import Memory, decide
from tlt_operator.plan.lending import LeaseTerms
from tlt_operator.plan.snapshot import Fault, RolloutView
from tlt_operator.plan.worker import MEANINGS, MOVES, WorkerState, classify, is_legal
from tlt_workloads.contract import LeasePhase


@pytest.mark.parametrize(
    ("view", "state"),
    [
        (busy("a"), WorkerState.BUSY),
        (make_rollout("a", make_state(waiting=1)), WorkerState.BUSY),
        (idle("a"), WorkerState.IDLE),
        (make_rollout("a", make_state()), WorkerState.DRAINING),
        (make_rollout("a", make_state(updating=True)), WorkerState.DRAINING),
        (make_rollout("a", make_state(idle=True, updating=True)), WorkerState.DRAINING),
        (make_rollout("a", make_state(idle=True, paused=True)), WorkerState.DRAINING),
        (lent("a"), WorkerState.LENT),
        (make_rollout("a", make_state(lease=make_lease("t", phase=LeasePhase.REVOKING))), WorkerState.REVOKING),
        (make_rollout("a"), WorkerState.UNKNOWN),
        (make_rollout("a", make_state(idle=True), age=31.0), WorkerState.UNKNOWN),
        (make_rollout("a", make_state(idle=True), fault=Fault.UNREACHABLE), WorkerState.UNKNOWN),
        (make_rollout("a", make_state(idle=True), fault=Fault.TOKEN_REFUSED), WorkerState.UNKNOWN),
        (make_rollout("a", pod=make_pod("a", ready=False)), WorkerState.UNAVAILABLE),
        (make_rollout("a", make_state(idle=True), pod=make_pod("a", deleting=True)), WorkerState.UNAVAILABLE),
        (make_rollout("a", make_state(idle=True), pod=make_pod("a", phase="Failed")), WorkerState.UNAVAILABLE),
        (make_rollout("a", pod=make_pod("a", ip=None)), WorkerState.UNAVAILABLE),
    ],
)
def test_state_follows_from_pod_and_last_answer(view: RolloutView, state: WorkerState) -> None:
    assert classify(view, now=NOW, stale_after=30.0) is state


def test_answer_counts_even_when_a_readiness_probe_blinks() -> None:
    view = make_rollout("a", make_state(running=1), pod=make_pod("a", ready=False))
    assert classify(view, now=NOW, stale_after=30.0) is WorkerState.BUSY


def test_no_row_of_the_table_of_moves_repeats_another_or_stands_still() -> None:
    pairs = [(before, after) for move in MOVES for before in move.before for after in move.after]
    assert len(set(pairs)) == len(pairs)
    assert all(before is not after for before, after in pairs)
    assert set(MEANINGS) == set(WorkerState)


def test_every_state_can_be_reached_and_left_by_the_table() -> None:
    assert {after for move in MOVES for after in move.after} == set(WorkerState)
    assert {before for move in MOVES for before in move.before} == set(WorkerState)


def test_what_the_table_lacks_is_a_lease_on_a_device_that_was_not_idle() -> None:
    missing = {(before, after) for before in WorkerState for after in WorkerState if not is_legal(before, after)}
    assert missing == {
        (WorkerState.BUSY, WorkerState.LENT),
        (WorkerState.BUSY, WorkerState.REVOKING),
        (WorkerState.DRAINING, WorkerState.LENT),
        (WorkerState.DRAINING, WorkerState.REVOKING),
        (WorkerState.REVOKING, WorkerState.LENT),
    }
    assert all(is_legal(None, state) for state in WorkerState)


def test_move_outside_the_table_is_told_apart() -> None:
    before = decide(make_snapshot(busy("a"), busy("b")), Memory(), terms=LeaseTerms()).memory
    decision = decide(make_snapshot(lent("a"), make_rollout("b", make_state())), before, terms=LeaseTerms())
    found = {item.pod: item.expected for item in decision.worker_transitions}
    assert found == {"a": False, "b": True}
