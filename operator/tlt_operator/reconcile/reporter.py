"""Tells the outside what a pass found: timeline, metrics and Events of ended leases."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

from tlt_operator.api.job import Job
from tlt_operator.api.names import EventReason, Reason, RevisionPhase
from tlt_operator.plan.conditions import Status
from tlt_operator.plan.decision import Decision, Transition
from tlt_operator.plan.ledger import Ledger
from tlt_operator.plan.lending import window_error
from tlt_operator.plan.revisions import Rollout
from tlt_operator.plan.rulings import log10
from tlt_operator.plan.snapshot import Snapshot, TrainerView
from tlt_operator.plan.standing import Remark
from tlt_operator.plan.trial import Side, Trial
from tlt_operator.plan.worker import WorkerState
from tlt_operator.reconcile.context import Context
from tlt_operator.reconcile.recorder import Recorder
from tlt_operator.telemetry import timeline
from tlt_operator.telemetry.metrics import WindowResult
from tlt_workloads.contract import RolloutState, TrainerPhase, TrainerState

METRICS_INTERVAL = 1.0
_HELD = (WorkerState.LENT.value, WorkerState.REVOKING.value)

logger = logging.getLogger(__name__)


class Reporter:
    """What is told of one job."""

    def __init__(self, context: Context, recorder: Recorder) -> None:
        self._context = context
        self._recorder = recorder
        self._shown_at = float("-inf")
        self._edges: dict[str, float] = {}
        self._told: frozenset[Reason] = frozenset()  # obstacles that Events tell of
        self._remarked: frozenset[Remark] = frozenset()

    def lease_granted(self, job: Job, rollout_uid: str, *, edge_to_lease: float) -> None:
        """Keeps the reaction time for the timeline's line to `Lent`."""
        self._edges[rollout_uid] = edge_to_lease
        self._context.metrics.edge_to_lease.labels(job=job.key).observe(edge_to_lease)

    def report(self, snapshot: Snapshot, decision: Decision) -> None:
        """Everything that this pass found to be new."""
        job = snapshot.job
        for item in decision.worker_transitions:
            view = snapshot.by_uid.get(item.uid)
            self._worker(job, item, view.state if view is not None else None)
        for item in decision.trainer_transitions:
            self._transition(job, "trainer", item, {"rollout": _partner(snapshot, item.uid)})
        metrics = self._context.metrics
        for counted in decision.ended_leases:
            lease = counted.lease
            metrics.training_window.labels(job=job.key).observe(lease.duration)
            metrics.leases.labels(job=job.key, result=lease.reason.value if lease.reason else "returned").inc()
            if lease.reason is not None:
                metrics.reclaim.labels(job=job.key).observe(lease.hand_back)
            self._recorder.normal(
                job,
                EventReason.LEASE_ENDED,
                f"Device of pod {counted.pod} came back after {lease.duration:.1f}s"
                + (
                    f" ({lease.reason.value}), {lease.hand_back * 1000:.0f} ms after it was asked for"
                    if lease.reason
                    else ""
                ),
                subject=counted.pod,
            )
        for window in decision.closed_windows:
            metrics.idle_window.labels(job=job.key).observe(window.seconds)
        self._skipped(snapshot)
        self._remark(job, decision.rollout)
        now = self._context.clock.steady()
        if now - self._shown_at >= METRICS_INTERVAL:
            self._shown_at = now
            self._show(snapshot, decision)

    def _skipped(self, snapshot: Snapshot) -> None:
        """One Event for each reason that keeps pods from being lent, not one for each pod."""
        by_reason = {item.reason: item for item in snapshot.obstacles.values()}
        for reason, obstacle in by_reason.items():
            if reason not in self._told:
                self._recorder.warning(
                    snapshot.job, EventReason.POD_SKIPPED, obstacle.message, subject=f"skipped for {reason.value}"
                )
        self._told = frozenset(by_reason)

    def _remark(self, job: Job, rollout: Rollout) -> None:
        """Each remark once, for as long as it holds."""
        for remark in rollout.remarks:
            if remark not in self._remarked:
                self._recorder.warning(job, remark.reason, remark.message, subject=remark.subject)
        self._remarked = frozenset(rollout.remarks)

    def _worker(self, job: Job, item: Transition, state: RolloutState | None) -> None:
        extra: dict[str, timeline.Value] = {}
        if item.to_state == WorkerState.LENT.value and item.uid in self._edges:
            extra["edgeToLease"] = round(self._edges.pop(item.uid), 4)
        if not item.expected:
            self._context.metrics.unexpected_moves.labels(
                job=job.key, before=item.from_state, after=item.to_state
            ).inc()
            logger.warning(
                "%s: pod %s went from %s to %s: it was lent although it was not seen idle",
                job.key,
                item.pod,
                item.from_state,
                item.to_state,
            )
        last = state.last_lease if state is not None else None
        if item.from_state in _HELD and item.to_state not in _HELD and last is not None:
            extra["handBack"] = round(last.hand_back, 4)
            extra["reason"] = last.reason.value if last.reason is not None else None
        self._transition(job, "worker", item, extra)

    def _transition(self, job: Job, kind: str, item: Transition, extra: Mapping[str, timeline.Value]) -> None:
        timeline.write_transition(
            at=self._context.clock.wall() - item.age,
            job=job.key,
            kind=kind,
            pod=item.pod,
            from_state=item.from_state,
            to_state=item.to_state,
            **extra,
        )

    def _show(self, snapshot: Snapshot, decision: Decision) -> None:
        job, metrics = snapshot.job.key, self._context.metrics
        counts = Counter(decision.workers.values())
        metrics.show_states(job, {state.value: counts.get(state, 0) for state in WorkerState})
        metrics.lendable_gpus.labels(job=job).set(len(decision.memory.windows.open))
        self._show_seconds(job, decision.memory.ledger)
        states = [view.state for view in snapshot.rollouts if view.state is not None]
        self._show_pods(job, states)
        trained = [(view, view.state) for view in snapshot.trainers if view.state is not None]
        for trainer, state in trained:
            self._show_training(job, trainer, state)
        # What any trainer tells is how far the job's one drafter has come: together they have not done it twice.
        progress = max((state.trained_tokens for _, state in trained), default=0)
        metrics.training_tokens.labels(job=job).inc(metrics.totals(job).grown("training", "trained", progress))
        metrics.team_size.labels(job=job).set(max((state.replicas for _, state in trained), default=0))
        metrics.totals(job).keep(
            {"ledger", "training", *(state.boot for state in states), *(state.boot for _, state in trained)}
        )
        metrics.available_tokens.labels(job=job).set(decision.available_tokens)
        metrics.trainers.labels(job=job).set(len(snapshot.trainers))
        metrics.failing_trainers.labels(job=job).set(len(_failing(snapshot)))
        metrics.suspended.labels(job=job).set(snapshot.job.spec.suspend)
        rollout = decision.rollout
        metrics.show_revision(job, rollout.active.name if rollout.active else None, accept_length=rollout.accept_length)
        self._show_trial(job, rollout.trial)
        phases = Counter(revision.phase or RevisionPhase.CANDIDATE for revision in snapshot.revisions)
        for phase in RevisionPhase:
            metrics.revisions.labels(job=job, phase=phase.value).set(phases.get(phase, 0))
        for condition in decision.conditions:
            metrics.show_reason(job, condition.type.value, condition.reason.value)
            for status in Status:
                metrics.condition.labels(job=job, type=condition.type.value, status=status.value).set(
                    condition.status is status
                )

    def _show_trial(self, job: str, trial: Trial | None) -> None:
        metrics = self._context.metrics
        if trial is None:
            metrics.end_trial(job)
            return
        for side, counts in ((Side.CANARY, trial.canary), (Side.CONTROL, trial.control)):
            metrics.trial_drafts.labels(job=job, side=side.value).set(counts.drafts)
            if counts.drafts:
                metrics.trial_acceptance.labels(job=job, side=side.value).set(counts.length)
        for claim, evidence in (("Worse", trial.evidence.worse), ("Fine", trial.evidence.fine)):
            metrics.trial_evidence.labels(job=job, claim=claim).set(log10(evidence))

    def _show_seconds(self, job: str, ledger: Ledger) -> None:
        metrics = self._context.metrics
        for state, total in (("busy", ledger.busy), ("idle", ledger.idle), ("harvested", ledger.harvested)):
            metrics.gpu_seconds.labels(job=job, state=state).inc(metrics.totals(job).grown("ledger", state, total))

    def _show_pods(self, job: str, states: Sequence[RolloutState]) -> None:
        metrics = self._context.metrics
        grown = metrics.totals(job).grown
        captures = [(state.boot, state.capture) for state in states]
        metrics.capture_tokens.labels(job=job).inc(sum(grown(boot, "tokens", seen.tokens) for boot, seen in captures))
        metrics.capture_bytes.labels(job=job).inc(sum(grown(boot, "bytes", seen.bytes) for boot, seen in captures))
        metrics.capture_dropped.labels(job=job).inc(
            sum(grown(boot, "dropped", seen.dropped_tokens) for boot, seen in captures)
        )
        metrics.drafts.labels(job=job).inc(
            sum(grown(it.boot, "drafts", it.acceptance.drafts, since=it.drafter_revision) for it in states)
        )
        metrics.accepted_tokens.labels(job=job).inc(
            sum(grown(it.boot, "accepted", it.acceptance.accepted_tokens, since=it.drafter_revision) for it in states)
        )

    def _show_training(self, job: str, trainer: TrainerView, state: TrainerState) -> None:
        metrics = self._context.metrics
        grown = metrics.totals(job).grown
        metrics.skipped_shards.labels(job=job).inc(grown(state.boot, "skipped", state.skipped_shards))
        window = state.last_window
        if window is None or not grown(state.boot, "windows", state.windows):
            return
        if window_error(trainer) is not None:
            result = WindowResult.FAILED
        else:
            result = WindowResult.TRAINED if window.steps else WindowResult.NO_STEP
        metrics.training_windows.labels(job=job, result=result.value).inc()
        if window.lease_to_first_step is not None:
            metrics.detect_to_train.labels(job=job).observe(window.lease_to_first_step)


def _failing(snapshot: Snapshot) -> set[str]:
    """Devices, by uid of their rollout pod, whose trainer does not come up or failed in its last window."""
    found = set(snapshot.trainer_failures)
    found |= {view.pod.rollout_uid for view in snapshot.trainers if view.pod.rollout_uid and _fails(snapshot, view)}
    return found


def _fails(snapshot: Snapshot, trainer: TrainerView) -> bool:
    if trainer.state is None:
        overdue = trainer.known_for > snapshot.limits.silence and not trainer.pod.deleting
        return overdue and trainer.pod.trouble is not None
    return trainer.state.phase is TrainerPhase.FAILED or window_error(trainer) is not None


def _partner(snapshot: Snapshot, trainer_uid: str) -> str | None:
    """Name of the rollout pod whose device a trainer shares."""
    trainer = next((view.pod for view in snapshot.trainers if view.pod.uid == trainer_uid), None)
    rollout = snapshot.by_uid.get(trainer.rollout_uid or "") if trainer is not None else None
    return rollout.pod.name if rollout is not None else None
