"""Worker states: absent data is never idleness."""

from __future__ import annotations

import pytest

from tests.support.snapshots import busy, idle, lent, make_lease, make_pod, make_rollout, make_state
from tlt_operator.plan.snapshot import Fault, RolloutView
from tlt_operator.plan.worker import WorkerState, classify
from tlt_workloads.contract import LeasePhase


@pytest.mark.parametrize(
    ("view", "state"),
    [
        (busy("a"), WorkerState.BUSY),
        (make_rollout("a", make_state(waiting=1)), WorkerState.BUSY),
        (idle("a"), WorkerState.IDLE),
        (make_rollout("a", make_state()), WorkerState.DRAINING),
        (make_rollout("a", make_state(updating=True)), WorkerState.DRAINING),
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
    assert classify(view, stale_after=30.0) is state


def test_answer_counts_even_when_a_readiness_probe_blinks() -> None:
    view = make_rollout("a", make_state(running=1), pod=make_pod("a", ready=False))
    assert classify(view, stale_after=30.0) is WorkerState.BUSY
