"""What the dashboard shows.  It reads the operator's metrics only (docs/reference/metrics.md)."""

from __future__ import annotations

from charts.monitoring.panels import Json, Panel, Query, Row, lay_out

UID = "tlt-operator"
JOB = 'job=~"$job"'


def _rate(metric: str, *, by: str, labels: str = "") -> str:
    chosen = f"{JOB},{labels}" if labels else JOB
    return f"sum by ({by}) (rate({metric}{{{chosen}}}[$window]))"


def _increase(metric: str, *, by: str, over: str = "$window") -> str:
    return f"sum by ({by}) (increase({metric}{{{JOB}}}[{over}]))"


def _quantiles(histogram: str, *quantiles: float) -> list[Query]:
    buckets = f"sum by (le) (rate({histogram}_bucket{{{JOB}}}[$window]))"
    return [Query(expression=f"histogram_quantile({q}, {buckets})", legend=f"p{q * 100:g}") for q in quantiles]


def _harvested_share(over: str) -> str:
    harvested, idle = (
        f'sum(increase(tlt_gpu_seconds_total{{{JOB},state="{state}"}}[{over}]))' for state in ("harvested", "idle")
    )
    return f"{harvested} / {idle}"


FLEET = Row(
    title="Fleet",
    panels=(
        Panel(title="GPUs", kind="stat", width=4, height=4, queries=[Query(expression=f"sum(tlt_gpus{{{JOB}}})")]),
        Panel(
            title="GPU time harvested",
            kind="stat",
            width=5,
            height=4,
            unit="s",
            help="GPU time in which idle GPUs trained the drafter, in the time shown.",
            queries=[
                Query(expression=f'sum(increase(tlt_gpu_seconds_total{{{JOB},state="harvested"}}[$__range]))'),
            ],
        ),
        Panel(
            title="Harvested share of idle time",
            kind="stat",
            width=5,
            height=4,
            unit="percentunit",
            help="In the time shown. Idle time outside of spec.idle.scope counts as idle here.",
            queries=[Query(expression=_harvested_share("$__range"))],
        ),
        Panel(
            title="Jobs that need attention",
            kind="stat",
            width=5,
            height=4,
            red_from=1,
            help="Jobs whose condition Degraded is True.",
            queries=[Query(expression=f'sum(tlt_condition{{{JOB},type="Degraded",status="True"}})')],
        ),
        Panel(
            title="Jobs suspended",
            kind="stat",
            width=5,
            height=4,
            queries=[Query(expression=f"sum(tlt_suspended{{{JOB}}})")],
        ),
        Panel(
            title="GPUs by state",
            width=12,
            height=9,
            stacked=True,
            queries=[Query(expression=f"sum by (state) (tlt_gpus{{{JOB}}})", legend="{{state}}")],
        ),
        Panel(
            title="Harvested share",
            width=12,
            height=9,
            unit="percentunit",
            at_most=1,
            help="Of all idle GPU time, and of the GPUs that spec.idle.scope allows to lend.",
            queries=[
                Query(expression=_harvested_share("$window"), legend="of idle time"),
                Query(
                    expression=f'sum(avg_over_time(tlt_gpus{{{JOB},state="Lent"}}[$window]))'
                    f" / sum(avg_over_time(tlt_lendable_gpus{{{JOB}}}[$window]))",
                    legend="of lendable GPUs",
                ),
            ],
        ),
        Panel(
            title="Jobs by what their lending waits for",
            width=24,
            stacked=True,
            help="The reason of the condition Harvesting; LeaseHeld means that a GPU trains.",
            queries=[
                Query(
                    expression=f'sum by (reason) (tlt_condition_reason{{{JOB},type="Harvesting"}})', legend="{{reason}}"
                )
            ],
        ),
    ),
)

WINDOWS = Row(
    title="Windows and reclaim",
    panels=(
        Panel(
            title="Idle windows: how long GPUs stay lendable",
            unit="s",
            queries=_quantiles("tlt_idle_window_seconds", 0.5, 0.95),
        ),
        Panel(
            title="Training windows: how long GPUs are lent",
            unit="s",
            queries=_quantiles("tlt_training_window_seconds", 0.5, 0.95),
        ),
        Panel(
            title="Training windows by result",
            stacked=True,
            help="NoStep: the window ended before the first training step.",
            queries=[Query(expression=_increase("tlt_training_windows_total", by="result"), legend="{{result}}")],
        ),
        Panel(
            title="Idle edge to lease",
            unit="s",
            help="From the news of an idle pod to its lease.",
            queries=_quantiles("tlt_edge_to_lease_seconds", 0.5, 0.99),
        ),
        Panel(
            title="Lease to first training step",
            unit="s",
            queries=_quantiles("tlt_detect_to_train_seconds", 0.5, 0.99),
        ),
        Panel(
            title="Reclaim: from asking a GPU back to having it",
            unit="s",
            queries=_quantiles("tlt_reclaim_seconds", 0.5, 0.95, 0.99),
        ),
        Panel(
            title="Leases by what became of them",
            width=24,
            stacked=True,
            queries=[Query(expression=_increase("tlt_lease_total", by="result"), legend="{{result}}")],
        ),
    ),
)

DRAFTER = Row(
    title="Drafter",
    panels=(
        Panel(
            title="Accept length",
            unit="none",
            width=12,
            at_least=1,
            help="Tokens per verification step, bonus token counted, as measured in the rollout pods.",
            queries=[
                Query(
                    expression=f"1 + {_rate('tlt_accepted_tokens_total', by='job')}"
                    f" / {_rate('tlt_drafts_total', by='job')}",
                    legend="{{job}}",
                )
            ],
        ),
        Panel(
            title="Accept length by revision, mean since it was loaded",
            unit="none",
            width=12,
            at_least=1,
            queries=[Query(expression=f"tlt_acceptance_length{{{JOB}}}", legend="{{revision}}")],
        ),
        Panel(
            title="Revisions in use",
            kind="table",
            queries=[Query(expression=f"sum by (job, revision) (tlt_revision_info{{{JOB}}})")],
        ),
        Panel(
            title="Revisions by phase",
            stacked=True,
            queries=[Query(expression=f"sum by (phase) (tlt_revisions{{{JOB}}})", legend="{{phase}}")],
        ),
        Panel(
            title="Rollbacks",
            queries=[Query(expression=_increase("tlt_rollbacks_total", by="job"), legend="{{job}}")],
        ),
    ),
)

TRAINING = Row(
    title="Capture and training",
    panels=(
        Panel(
            title="Tokens per second",
            help="Recorded with hidden states, not recorded for lack of time or budget, and trained on.",
            queries=[
                Query(expression=_rate("tlt_capture_tokens_total", by="job"), legend="{{job}} captured"),
                Query(expression=_rate("tlt_capture_dropped_total", by="job"), legend="{{job}} dropped"),
                Query(expression=_rate("tlt_training_tokens_total", by="job"), legend="{{job}} trained"),
            ],
        ),
        Panel(
            title="Captured bytes per second",
            unit="Bps",
            queries=[Query(expression=_rate("tlt_capture_bytes_total", by="job"), legend="{{job}}")],
        ),
        Panel(
            title="Tokens that wait to be trained on",
            queries=[Query(expression=f"tlt_available_tokens{{{JOB}}}", legend="{{job}}")],
        ),
        Panel(
            title="Trainer pods",
            width=24,
            queries=[
                Query(expression=f"tlt_trainers{{{JOB}}}", legend="{{job}}"),
                Query(expression=f"tlt_failing_trainers{{{JOB}}}", legend="{{job}} failing"),
            ],
        ),
    ),
)

OPERATOR = Row(
    title="Operator",
    panels=(
        Panel(
            title="Since the last look at all jobs",
            unit="s",
            queries=[Query(expression="time() - (tlt_heartbeat_timestamp_seconds > 0)", legend="{{pod}}")],
        ),
        Panel(title="One pass over one job", unit="s", queries=_quantiles("tlt_reconcile_seconds", 0.5, 0.99)),
        Panel(
            title="Writes to the API server per second",
            stacked=True,
            queries=[Query(expression=_rate("tlt_api_writes_total", by="kind"), legend="{{kind}}")],
        ),
        Panel(
            title="Failed actions",
            stacked=True,
            help="An action that comes too late (the pod is no longer idle) counts as well; it is tried again.",
            queries=[Query(expression=_increase("tlt_action_failures_total", by="action"), legend="{{action}}")],
        ),
        Panel(
            title="Processor cores",
            unit="none",
            queries=[
                Query(
                    expression="rate(process_cpu_seconds_total[$__rate_interval]) and on (instance) "
                    "tlt_heartbeat_timestamp_seconds",
                    legend="{{pod}}",
                )
            ],
        ),
        Panel(
            title="Memory",
            unit="bytes",
            queries=[
                Query(
                    expression="process_resident_memory_bytes and on (instance) tlt_heartbeat_timestamp_seconds",
                    legend="{{pod}}",
                )
            ],
        ),
    ),
)

ROWS = (FLEET, WINDOWS, DRAFTER, TRAINING, OPERATOR)


def dashboard() -> Json:
    """The dashboard as Grafana imports it."""
    return {
        "uid": UID,
        "title": "TLT operator",
        "description": "Idle rollout GPUs that train a drafter: how many, how well, and at what cost.",
        "tags": ["tlt"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_datasource_choice(), _job_choice(), _window_choice()]},
        "annotations": {"list": [_new_revisions()]},
        "links": [],
        "panels": lay_out(ROWS),
    }


def _datasource_choice() -> Json:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _job_choice() -> Json:
    return {
        "name": "job",
        "label": "Job",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": "label_values(tlt_gpus, job)", "refId": "jobs"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _window_choice() -> Json:
    """Over how long rates and quantiles are taken: windows are minutes apart, so a scrape or two would show gaps."""
    choices = ("5m", "15m", "1h", "6h")
    return {
        "name": "window",
        "label": "Averaged over",
        "type": "custom",
        "query": ",".join(choices),
        "options": [{"text": choice, "value": choice, "selected": choice == "15m"} for choice in choices],
        "current": {"text": "15m", "value": "15m"},
    }


def _new_revisions() -> Json:
    return {
        "name": "Revisions",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "enable": True,
        "iconColor": "blue",
        "expr": f"tlt_revision_info{{{JOB}}} unless tlt_revision_info{{{JOB}}} offset 1m",
        "step": "60s",
        "titleFormat": "New drafter",
        "textFormat": "{{job}}: {{revision}}",
    }
