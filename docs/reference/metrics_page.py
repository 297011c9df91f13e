"""The page about metrics, made from the collectors themselves."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tlt_operator.api.names import ConditionType, RevisionPhase
from tlt_operator.plan.conditions import Status
from tlt_operator.plan.trial import Side
from tlt_operator.plan.worker import WorkerState
from tlt_operator.telemetry.metrics import Metrics, WindowResult
from tlt_workloads.contract import GatewayBackend, GatewayState, RevokeReason, RolloutState
from tlt_workloads.gateway.metrics import GatewayMetrics
from tlt_workloads.rollout.metrics import PodCollector

LABELS: tuple[tuple[str, str, Iterable[str]], ...] = (
    ("tlt_gpus", "state", WorkerState),
    ("tlt_gpu_seconds_total", "state", ("busy", "idle", "harvested")),
    ("tlt_lease_total", "result", ("granted", "refused", "returned", *RevokeReason)),
    ("tlt_training_windows_total", "result", WindowResult),
    ("tlt_revisions", "phase", RevisionPhase),
    ("tlt_trial_drafts, tlt_trial_acceptance_length", "side", Side),
    ("tlt_trial_evidence", "claim", ("Worse", "Fine")),
    ("tlt_condition, tlt_condition_reason", "type", ConditionType),
    ("tlt_condition", "status", Status),
)

HEAD = """# Metrics

Made from the collectors by `python docs/reference/generate.py`. [How to get them to Prometheus](../how-to/monitor.md).

## Operator

On `/metrics` of the Service `<release>-tlt-operator-metrics`, port 9090. `job` is `<namespace>/<TLTJob>`; Prometheus
overwrites that label with the name of the scrape unless `honor_labels: true` is set, as the chart's ServiceMonitor
does. A deleted job takes its series with it. Beside these there are Prometheus's own `process_*` for processor, memory
and open files of the operator.
"""

ROLLOUT = """
## Rollout pods

On vLLM's own `/metrics`, beside vLLM's metrics, without a token. All of them count for one pod since its boot.
"""

GATEWAY = """
## Gateway

On `/metrics` of the gateway's port, without a token. `pod` is an address.
"""

END = """
## What is not there

- **Trainer pods** serve no `/metrics`. They live for some windows only, and a scrape would miss most of what they do;
  the operator reads their state on an open request and counts it (`tlt_training_*`, `tlt_detect_to_train_seconds`,
  `tlt_trainers`, `tlt_team_size`, `tlt_failing_trainers`).
- **Energy by use** (`tlt_energy_joules_total`) is not measured. It needs the counter of each GPU that DCGM exports,
  `DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION`, split by the moments at which a lease begins and ends.
"""


def metrics_page() -> str:
    """The whole page."""
    return "\n".join(
        [
            HEAD,
            *_table(_operator_rows()),
            "",
            "| metric | label | values |",
            "|---|---|---|",
            *(
                f"| `{name}` | `{label}` | {', '.join(f'`{value}`' for value in values)} |"
                for name, label, values in LABELS
            ),
            ROLLOUT,
            *_table(_rows(PodCollector(_Blank()).collect())),  # type: ignore[arg-type]
            GATEWAY,
            *_table(_rows(_gateway())),
            END.rstrip(),
            "",
        ]
    )


class _Blank:
    """A pod that has done nothing yet: names and labels are all that is wanted of it."""

    def facts(self) -> RolloutState:
        found: RolloutState = _blank(RolloutState)
        return found


def _operator_rows() -> Iterator[tuple[str, str, Iterable[str], str]]:
    for metric in vars(Metrics()).values():
        if isinstance(metric, Counter | Gauge | Histogram):
            (family,) = metric.describe()
            yield _series(family.name, family.type), family.type, metric._labelnames, family.documentation


def _rows(families: Iterable[Metric]) -> Iterator[tuple[str, str, Iterable[str], str]]:
    for family in families:
        labels = dict.fromkeys(label for sample in family.samples for label in sample.labels if label != "le")
        yield _series(family.name, family.type), family.type, labels, family.documentation


def _gateway() -> Iterable[Metric]:
    backend = GatewayBackend(address="10.0.0.1:8000", outstanding=0, healthy=True)
    state: GatewayState = dataclasses.replace(_blank(GatewayState), backends=(backend,))
    families = text_string_to_metric_families(GatewayMetrics(lambda: state).page().decode())
    return (family for family in families if not family.name.endswith("_created"))


def _series(name: str, kind: str) -> str:
    return name + {"counter": "_total", "info": "_info"}.get(kind, "")


def _table(rows: Iterable[tuple[str, str, Iterable[str], str]]) -> Iterator[str]:
    yield "| metric | kind | labels | meaning |"
    yield "|---|---|---|---|"
    for name, kind, labels, meaning in rows:
        named = ", ".join(f"`{label}`" for label in labels)
        yield f"| `{name}` | {kind} | {named} | {meaning[:1].upper()}{meaning[1:]} |"


def _blank(kind: Any) -> Any:
    """A dataclass with empty values in all fields that have no default."""
    hints = typing.get_type_hints(kind)
    return kind(**{item.name: _empty(hints[item.name]) for item in dataclasses.fields(kind) if _is_required(item)})


def _is_required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _empty(hint: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return None
    if dataclasses.is_dataclass(hint):
        return _blank(hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return next(iter(hint))
    empty: Mapping[Any, Any] = {int: 0, float: 0.0, bool: False, str: ""}
    return empty.get(hint, ())
