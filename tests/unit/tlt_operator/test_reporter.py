"""What a pass leaves in the metrics: read as Prometheus reads them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from tests.support.snapshots import (
    busy,
    holds,
    idle,
    lent,
    make_job,
    make_revision,
    make_snapshot,
    make_state,
    make_trainer,
)
from tests.support.snapshots import make_pod as make_any_pod
from tlt_operator.api.job import Job
from tlt_operator.api.names import EventReason, Reason, RevisionPhase
from tlt_operator.api.reasons import Obstacle
from tlt_operator.config import Settings
from tlt_operator.plan.decision import Memory, decide
from tlt_operator.plan.lending import LeaseTerms
from tlt_operator.plan.snapshot import Snapshot, TrainerView
from tlt_operator.reconcile.clock import Clock
from tlt_operator.reconcile.context import Context
from tlt_operator.reconcile.recorder import Recorder
from tlt_operator.reconcile.reporter import METRICS_INTERVAL, Reporter
from tlt_workloads.contract import AcceptanceCounters, TrainerPhase, WindowReport

JOB = "default/demo"


def window(**fields: Any) -> WindowReport:
    values: dict[str, Any] = {
        "lease_id": "lease",
        "started_ago": 1.0,
        "seconds": 1.0,
        "lease_to_first_step": 0.2,
        "steps": 5,
        "tokens": 100,
        "loss_first": 2.0,
        "loss_last": 1.0,
        "stop_reason": "Request",
        "stop_seconds": 0.1,
    }
    return WindowReport(**{**values, **fields})


def after_windows(count: int, last: WindowReport) -> TrainerView:
    trainer = make_trainer("a")
    assert trainer.state is not None
    return replace(trainer, state=replace(trainer.state, windows=count, last_window=last))


class Notebook(Recorder):
    """Keeps warnings instead of writing them to a cluster."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.warnings: list[str] = []

    def warning(self, job: Job, reason: EventReason, message: str, *, subject: str) -> None:
        self.warnings.append(message)


@dataclass
class Desk:
    """A reporter without a cluster; each report is a pass long enough after the last one."""

    now: float = 0.0
    context: Context = field(init=False)
    memory: Memory = field(default_factory=Memory)

    def __post_init__(self) -> None:
        clock = Clock(steady=lambda: self.now, wall=lambda: self.now)
        self.context = Context(kube=cast(Any, None), session=cast(Any, None), settings=Settings(), clock=clock)
        self.notebook = Notebook(self.context)
        self.reporter = self.new_reporter()

    def new_reporter(self) -> Reporter:
        return Reporter(self.context, self.notebook)

    def report(self, snapshot: Snapshot) -> None:
        self.now += METRICS_INTERVAL
        decision = decide(replace(snapshot, now=self.now), self.memory, terms=LeaseTerms())
        self.memory = decision.memory
        self.reporter.report(snapshot, decision)

    def value(self, name: str, **labels: str) -> float | None:
        return self.context.metrics.registry.get_sample_value(name, {"job": JOB, **labels})


def test_a_device_counts_as_lendable_only_within_the_jobs_scope() -> None:
    desk = Desk()
    desk.report(make_snapshot(idle("a"), lent("b"), busy("c")))
    assert desk.value("tlt_lendable_gpus") == 2
    desk.report(make_snapshot(idle("a"), idle("b")))
    assert desk.value("tlt_lendable_gpus") == 0, "spec.idle.scope is Tail, and nobody generates"


def test_counters_that_alerts_look_at_are_there_before_the_first_event() -> None:
    desk = Desk()
    desk.report(make_snapshot(busy("a")))
    for name in ("tlt_rollbacks_total", "tlt_drafts_total", "tlt_accepted_tokens_total", "tlt_reclaim_seconds_count"):
        assert desk.value(name) == 0, name
    assert desk.value("tlt_training_windows_total", result="Failed") == 0


def test_windows_are_counted_once_and_by_what_became_of_them() -> None:
    desk = Desk()
    trained, empty = window(), window(steps=0, lease_to_first_step=None)
    broken = window(steps=0, lease_to_first_step=None, stop_reason="Error: out of memory")
    for number, last in ((1, trained), (1, trained), (2, empty), (3, broken), (3, broken)):
        desk.report(make_snapshot(busy("a"), after_windows(number, last)))
    counted = {result: desk.value("tlt_training_windows_total", result=result) for result in ("Trained", "NoStep")}
    assert counted == {"Trained": 1, "NoStep": 1}
    assert desk.value("tlt_training_windows_total", result="Failed") == 1
    assert desk.value("tlt_detect_to_train_seconds_count") == 1


def test_shards_that_a_trainer_left_out_are_counted() -> None:
    desk = Desk()
    desk.report(make_snapshot(busy("a")))
    for skipped in (1, 1, 3):
        trainer = make_trainer("a")
        assert trainer.state is not None
        desk.report(make_snapshot(busy("a"), replace(trainer, state=replace(trainer.state, skipped_shards=skipped))))
    assert desk.value("tlt_skipped_shards_total") == 3


def test_drafts_add_up_over_drafters() -> None:
    desk = Desk()
    for revision, drafts, accepted in ((None, 10, 5), ("r1", 4, 4), ("r1", 6, 8)):
        state = make_state(
            running=1,
            drafter_revision=revision,
            acceptance=AcceptanceCounters(drafts=drafts, draft_tokens=3 * drafts, accepted_tokens=accepted),
        )
        desk.report(make_snapshot(replace(busy("a"), state=state)))
    assert desk.value("tlt_drafts_total") == 16
    assert desk.value("tlt_accepted_tokens_total") == 13


def test_a_job_whose_loop_starts_anew_counts_nothing_twice() -> None:
    desk = Desk()
    snapshot = make_snapshot(busy("a", busy_seconds=30.0))
    desk.report(snapshot)
    desk.reporter = desk.new_reporter()
    desk.report(snapshot)
    assert desk.value("tlt_gpu_seconds_total", state="busy") == 30


def test_devices_whose_trainers_fail_are_counted_whatever_fails() -> None:
    desk = Desk()
    failure = Obstacle(reason=Reason.TRAINER_FAILED, message="exit code 1")
    crashed = make_snapshot(busy("a"), busy("b"), trainer_failures={"a-uid": failure})
    desk.report(crashed)
    assert desk.value("tlt_failing_trainers") == 1
    failed = make_trainer("b", phase=TrainerPhase.FAILED)
    desk.report(replace(crashed, trainers=(failed,)))
    assert desk.value("tlt_failing_trainers") == 2
    stuck = replace(make_trainer("b"), state=None, pod=replace(failed.pod, trouble="ErrImagePull: no such image"))
    desk.report(make_snapshot(busy("a"), busy("b"), stuck))
    assert desk.value("tlt_failing_trainers") == 1
    desk.report(make_snapshot(busy("a"), busy("b"), make_trainer("a"), make_trainer("b")))
    assert desk.value("tlt_failing_trainers") == 0


def test_revisions_are_counted_by_phase() -> None:
    desk = Desk()
    desk.report(
        make_snapshot(
            busy("a"),
            revisions=(
                make_revision(1, RevisionPhase.ROLLED_BACK),
                make_revision(2, RevisionPhase.ACTIVE),
                make_revision(3),
            ),
        )
    )
    counts = {phase.value: desk.value("tlt_revisions", phase=phase.value) for phase in RevisionPhase}
    assert counts == {"Candidate": 1, "Canary": 0, "Active": 1, "Superseded": 0, "RolledBack": 1}


def test_a_condition_shows_its_reason_of_now_only() -> None:
    desk = Desk()
    unclaimed = replace(idle("a"), pod=make_any_pod("a", claims=()))
    desk.report(make_snapshot(unclaimed, busy("b")))
    assert desk.value("tlt_condition_reason", type="Degraded", reason="NoResourceClaim") == 1
    desk.report(make_snapshot(idle("a"), busy("b")))
    assert desk.value("tlt_condition_reason", type="Degraded", reason="NoResourceClaim") is None
    assert desk.value("tlt_condition_reason", type="Degraded", reason="AsExpected") == 1


def test_pods_that_cannot_be_lent_are_told_once_for_each_reason() -> None:
    desk = Desk()
    unclaimed = [replace(idle(name), pod=make_any_pod(name, claims=())) for name in ("a", "b")]
    plain = make_snapshot(*unclaimed, busy("c"))
    for _ in range(3):
        desk.report(plain)
    assert len(desk.notebook.warnings) == 1
    assert "resources.claims" in desk.notebook.warnings[0]
    desk.report(make_snapshot(busy("c")))
    desk.report(plain)
    assert len(desk.notebook.warnings) == 2, "it is news again after it was gone"


def test_a_deleted_job_that_comes_back_starts_from_nothing() -> None:
    desk = Desk()
    snapshot = make_snapshot(busy("a", busy_seconds=30.0), job=make_job())
    desk.report(snapshot)
    desk.context.metrics.forget(JOB)
    assert desk.value("tlt_gpu_seconds_total", state="busy") is None
    desk.report(snapshot)
    assert desk.value("tlt_gpu_seconds_total", state="busy") == 30
    assert desk.value("tlt_condition_reason", type="Degraded", reason="AsExpected") == 1


def test_move_that_the_table_lacks_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    with caplog.at_level(logging.WARNING, logger="tlt_operator.reconcile.reporter"):
        desk.report(make_snapshot(busy("a"), idle("b")))
        desk.report(make_snapshot(lent("a"), lent("b"), make_trainer("a"), make_trainer("b")))
    assert desk.value("tlt_unexpected_moves_total", before="Busy", after="Lent") == 1
    assert desk.value("tlt_unexpected_moves_total", before="Idle", after="Lent") is None
    assert [record.getMessage().split(":")[1] for record in caplog.records] == [" pod a went from Busy to Lent"]


def test_a_trial_is_shown_while_it_runs_and_a_remark_is_made_once() -> None:
    desk = Desk()
    odd = make_revision(2, odd_wishes=("tlt.dev/promote",))
    revisions = (make_revision(1, RevisionPhase.ACTIVE), odd)
    pods = [busy(name, **holds(1)) for name in "ab"]
    for _ in range(3):
        desk.report(make_snapshot(*pods, revisions=revisions))
    assert desk.value("tlt_trial_drafts", side="Canary") == 0
    assert desk.value("tlt_trial_evidence", claim="Worse") == 0
    assert sum("tlt.dev/promote" in warning for warning in desk.notebook.warnings) == 1
    desk.report(make_snapshot(*pods, revisions=revisions[:1]))
    assert desk.value("tlt_trial_drafts", side="Canary") is None
    desk.report(make_snapshot(*pods, revisions=revisions))
    assert sum("tlt.dev/promote" in warning for warning in desk.notebook.warnings) == 2, "it is news again"
