"""The metrics that an operator's user watches; names and labels are public."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

_WINDOWS = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800)
_REACTIONS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class WindowResult(enum.StrEnum):
    """What a trainer made of an idle window; a value of the label `result`."""

    TRAINED = "Trained"
    NO_STEP = "NoStep"  # ended before the first step: too short, or nothing to learn from
    FAILED = "Failed"


class Metrics:
    """All metrics on one registry.  `job` is "<namespace>/<name>", which is why scrapes need `honor_labels: true`."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        own = self.registry
        self.gpus = Gauge("tlt_gpus", "Rollout pods (devices) by state", ["job", "state"], registry=own)
        self.lendable_gpus = Gauge(
            "tlt_lendable_gpus", "Devices that are lent, or idle and within spec.idle.scope", ["job"], registry=own
        )
        self.gpu_seconds = Counter(
            "tlt_gpu_seconds",
            "Device seconds since the job was made; harvested ones are idle ones as well",
            ["job", "state"],
            registry=own,
        )
        self.idle_window = Histogram(
            "tlt_idle_window_seconds", "How long pods stayed lendable", ["job"], buckets=_WINDOWS, registry=own
        )
        self.training_window = Histogram(
            "tlt_training_window_seconds", "How long devices were lent", ["job"], buckets=_WINDOWS, registry=own
        )
        self.edge_to_lease = Histogram(
            "tlt_edge_to_lease_seconds",
            "From the news of an idle pod to its lease",
            ["job"],
            buckets=_REACTIONS,
            registry=own,
        )
        self.detect_to_train = Histogram(
            "tlt_detect_to_train_seconds",
            "From the lease to the first training step",
            ["job"],
            buckets=_REACTIONS,
            registry=own,
        )
        self.reclaim = Histogram(
            "tlt_reclaim_seconds", "From asking a device back to having it", ["job"], buckets=_REACTIONS, registry=own
        )
        self.leases = Counter("tlt_lease", "Leases by what became of them", ["job", "result"], registry=own)
        self.unexpected_moves = Counter(
            "tlt_unexpected_moves", "Moves that the table of moves lacks", ["job", "before", "after"], registry=own
        )
        self.acceptance = Gauge(
            "tlt_acceptance_length",
            "Mean tokens per verification step since the revision was loaded, bonus token counted",
            ["job", "revision"],
            registry=own,
        )
        self.drafts = Counter("tlt_drafts", "Verification steps of speculative decoding", ["job"], registry=own)
        self.accepted_tokens = Counter(
            "tlt_accepted_tokens",
            "Drafted tokens that were accepted; 1 + these / drafts is the accept length",
            ["job"],
            registry=own,
        )
        self.revision = Gauge("tlt_revision_info", "The revision in use", ["job", "revision"], registry=own)
        self.revisions = Gauge("tlt_revisions", "DrafterRevisions by phase", ["job", "phase"], registry=own)
        self.rollbacks = Counter("tlt_rollbacks", "Revisions that were withdrawn", ["job"], registry=own)
        self.trial_drafts = Gauge(
            "tlt_trial_drafts", "Verification steps of the trial that runs", ["job", "side"], registry=own
        )
        self.trial_acceptance = Gauge(
            "tlt_trial_acceptance_length",
            "Mean tokens per verification step in the trial that runs, bonus token counted",
            ["job", "side"],
            registry=own,
        )
        self.trial_evidence = Gauge(
            "tlt_trial_evidence",
            "Log10 of the e-value for a claim about the canary; Worse decides at 2, Fine at 1.3",
            ["job", "claim"],
            registry=own,
        )
        self.training_tokens = Counter("tlt_training_tokens", "Tokens trained on", ["job"], registry=own)
        self.team_size = Gauge(
            "tlt_team_size", "Trainers that train together as one; 0 while none trains", ["job"], registry=own
        )
        self.training_windows = Counter(
            "tlt_training_windows", "Idle windows by what the trainer made of them", ["job", "result"], registry=own
        )
        self.capture_tokens = Counter("tlt_capture_tokens", "Tokens recorded", ["job"], registry=own)
        self.capture_bytes = Counter("tlt_capture_bytes", "Bytes recorded", ["job"], registry=own)
        self.capture_dropped = Counter(
            "tlt_capture_dropped", "Tokens not recorded for lack of time or budget", ["job"], registry=own
        )
        self.available_tokens = Gauge(
            "tlt_available_tokens", "Recorded tokens not yet trained on", ["job"], registry=own
        )
        self.skipped_shards = Counter(
            "tlt_skipped_shards",
            "Recorded shards that a trainer left out: cut off, of another model, or gone when wanted",
            ["job"],
            registry=own,
        )
        self.trainers = Gauge("tlt_trainers", "Trainer pods", ["job"], registry=own)
        self.failing_trainers = Gauge(
            "tlt_failing_trainers", "Devices whose trainer, or its last window, failed", ["job"], registry=own
        )
        self.suspended = Gauge("tlt_suspended", "1 when the job lends nothing by request", ["job"], registry=own)
        self.condition = Gauge(
            "tlt_condition", "1 for the status that a condition has", ["job", "type", "status"], registry=own
        )
        self.condition_reason = Gauge(
            "tlt_condition_reason", "1 for the reason that a condition has", ["job", "type", "reason"], registry=own
        )
        self.reconcile = Histogram(
            "tlt_reconcile_seconds",
            "One pass over one job",
            ["job"],
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1),
            registry=own,
        )
        self.action_failures = Counter("tlt_action_failures", "Actions that failed", ["job", "action"], registry=own)
        self.api_writes = Counter("tlt_api_writes", "Writes to the API server", ["job", "kind"], registry=own)
        self.heartbeat = Gauge(
            "tlt_heartbeat_timestamp_seconds",
            "When all jobs were last looked at; 0 in an operator that stands by",
            registry=own,
        )
        ProcessCollector(registry=own)  # processor time and memory of the operator itself
        self._totals: dict[str, Totals] = {}
        self._reasons: dict[tuple[str, str], str] = {}

    def totals(self, job: str) -> Totals:
        """What the counters of a job contain already; as long-lived as they are."""
        if job not in self._totals:
            self._totals[job] = Totals()
            self._begin(job)
        return self._totals[job]

    def _begin(self, job: str) -> None:
        # A counter that appears with 1 has not grown in Prometheus's eyes, and its first event would never be seen.
        for metric in (self.reclaim, self.rollbacks, self.drafts, self.accepted_tokens, self.skipped_shards):
            metric.labels(job=job)
        for result in WindowResult:
            self.training_windows.labels(job=job, result=result.value)

    def forget(self, job: str) -> None:
        """Drops all series of a job that was deleted."""
        self._totals.pop(job, None)
        self._reasons = {key: reason for key, reason in self._reasons.items() if key[0] != job}
        for metric in vars(self).values():
            if isinstance(metric, Counter | Gauge | Histogram) and metric is not self.heartbeat:
                metric.remove_by_labels({"job": job})

    def show_states(self, job: str, counts: Mapping[str, int]) -> None:
        """Sets the number of devices for each state."""
        for state, count in counts.items():
            self.gpus.labels(job=job, state=state).set(count)

    def show_reason(self, job: str, condition: str, reason: str) -> None:
        """Names why a condition is what it is; the reason before is dropped."""
        before = self._reasons.get((job, condition))
        if before == reason:
            return
        if before is not None:
            self.condition_reason.remove(job, condition, before)
        self.condition_reason.labels(job=job, type=condition, reason=reason).set(1)
        self._reasons[(job, condition)] = reason

    def show_revision(self, job: str, revision: str | None, *, accept_length: float | None) -> None:
        """Names the revision in use and its accept length; the one before is dropped."""
        for metric in (self.revision, self.acceptance):
            metric.remove_by_labels({"job": job})
        if revision is None:
            return
        self.revision.labels(job=job, revision=revision).set(1)
        if accept_length is not None:
            self.acceptance.labels(job=job, revision=revision).set(accept_length)

    def end_trial(self, job: str) -> None:
        """No revision is on trial."""
        for metric in (self.trial_drafts, self.trial_acceptance, self.trial_evidence):
            metric.remove_by_labels({"job": job})


class Totals:
    """Turns totals that pods count since their boot into increments of one counter, across reboots."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], tuple[str | None, float]] = {}

    def grown(self, source: str, what: str, total: float, *, since: str | None = None) -> float:
        """By how much the total of a source (a boot id) has grown since it was last seen.

        `since` names what the source counts from, besides its boot: with another name it has begun at 0 again.
        """
        known, before = self._last.get((source, what), (since, 0.0))
        if known != since:
            before = 0.0
        self._last[(source, what)] = (since, max(before, total))
        return max(0.0, total - before)

    def keep(self, sources: Collection[str]) -> None:
        """Forgets all other sources: a boot that is over does not come back."""
        self._last = {key: value for key, value in self._last.items() if key[0] in sources}
