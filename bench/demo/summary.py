"""Recordings -> rows, totals and the metrics of bench/results/demo.json.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.demo.recording import Recording
from bench.results import percentile

HARVESTED_STATES = frozenset({"Lent", "Revoking"})
IDLE_STATES = HARVESTED_STATES | {"Idle"}
HEADINGS = ("step", "wall s", "gen s", "sync s", "learn s", "tokens", "tok/s", "idle s", "harvest s", "windows", "revs",
            "accept", "reward", "logp diff")  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A pod was in one state from `begin` to `end`."""

    state: str
    begin: float
    end: float

    def overlap(self, begin: float, end: float) -> float:
        """Seconds of it inside [begin, end]."""
        return max(0.0, min(self.end, end) - max(self.begin, begin))


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """One RL step.  Seconds and counts; device seconds are summed over the pods."""

    step: int
    wall: float
    generation: float
    sync: float
    learner: float
    tokens: int
    idle: float
    harvested: float
    windows: int  # training windows that began while the step was generating
    revisions: int  # that became active
    accept_length: float | None  # None: nothing was drafted
    reward: float
    logp_difference: float | None

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of HEADINGS."""
        return (
            str(self.step), f"{self.wall:.1f}", f"{self.generation:.1f}", f"{self.sync:.1f}", f"{self.learner:.1f}",
            str(self.tokens), f"{self.tokens / self.generation:.1f}" if self.generation else "-", f"{self.idle:.1f}",
            f"{self.harvested:.1f}", str(self.windows), str(self.revisions), _optional(self.accept_length, 2),
            f"{self.reward:.2f}", _optional(self.logp_difference, 4),
        )  # fmt: skip


def intervals(recording: Recording, pod: str) -> list[Interval]:
    """What a rollout pod did, in order, to the end of the recording."""
    changes = sorted(
        (event for event in recording.events if event["kind"] == "worker" and event["pod"] == pod),
        key=lambda event: float(event["at"]),
    )
    ends = [*(float(event["at"]) for event in changes), recording.ended][1:]
    return [
        Interval(str(event["to"]), float(event["at"]), end)
        for event, end in zip(changes, ends, strict=True)
        if event["to"] != "Gone" and end > float(event["at"])
    ]


def training_begins(recording: Recording) -> list[float]:
    """When windows began: a worker process took the device."""
    return [
        float(event["at"]) for event in recording.events if event["kind"] == "trainer" and event["to"] == "Training"
    ]


def accept_length(samples: Iterable[dict[str, Any]], *, begin: float, end: float) -> float | None:
    """Mean tokens per verification step of all pods, bonus token counted; None when nothing was verified.

    The counters start again with each drafter, so only what they grew by between two samples is summed.
    """
    drafts = accepted = 0
    last: dict[str, tuple[str | None, int, int]] = {}
    for sample in sorted(samples, key=lambda item: float(item["at"])):
        state = sample["state"]
        counters = state["acceptance"]
        now = (state["drafterRevision"], int(counters["drafts"]), int(counters["acceptedTokens"]))
        before = last.get(sample["pod"])
        last[sample["pod"]] = now
        if before is None or not begin < float(sample["at"]) <= end:
            continue
        if before[0] != now[0] or now[1] < before[1]:
            before = (now[0], 0, 0)
        drafts += now[1] - before[1]
        accepted += now[2] - before[2]
    return 1 + accepted / drafts if drafts else None


def rows(recording: Recording) -> list[StepRow]:
    """One row for each RL step."""
    by_pod = [intervals(recording, pod) for pod in recording.pods]
    begins = training_begins(recording)
    active = [
        float(event["at"]) for event in recording.events if event["kind"] == "revision" and event["to"] == "Active"
    ]
    return [_row(line, recording=recording, by_pod=by_pod, begins=begins, active=active) for line in recording.steps]


def _row(
    line: dict[str, Any],
    *,
    recording: Recording,
    by_pod: Sequence[Sequence[Interval]],
    begins: Sequence[float],
    active: Sequence[float],
) -> StepRow:
    begin, end = float(line["began"]), float(line["ended"])
    generating = [span for span in line["spans"] if span["activity"] == "generate"]
    everything = [interval for pod in by_pod for interval in pod]
    return StepRow(
        step=line["step"],
        wall=line["wallSeconds"],
        generation=line["generationSeconds"],
        sync=line["syncSeconds"],
        learner=line["learnerSeconds"],
        tokens=line["tokens"],
        idle=sum(item.overlap(begin, end) for item in everything if item.state in IDLE_STATES),
        harvested=sum(item.overlap(begin, end) for item in everything if item.state in HARVESTED_STATES),
        windows=sum(any(span["begin"] <= at <= span["end"] for span in generating) for at in begins),
        revisions=sum(begin <= at < end for at in active),
        accept_length=accept_length(recording.samples, begin=begin, end=end),
        reward=line["reward"],
        logp_difference=line["samplingLogpDifference"],
    )


def metrics(recording: Recording) -> dict[str, float | int | None]:
    """The part of bench/results/demo.json that the run with everything on shows."""
    steps = rows(recording)
    lengths = [row.accept_length for row in steps if row.accept_length is not None]
    last = _last_states(recording)
    return {
        "rl_steps": len(steps),
        "windows_during_generation": sum(row.windows for row in steps),
        "steps_without_window": sum(not row.windows for row in steps),
        "idle_s": sum(row.idle for row in steps),
        "harvested_s": sum(row.harvested for row in steps),
        "failed_requests": sum(int(state["failedRequests"]) for state in last)
        + int(recording.gateway.get("failedRequests", 0)),
        "aborted_requests": sum(int(state["abortedRequests"]) for state in last),
        "policy_changes_by_drafter": recording.policy_changes,
        "accept_length_start": lengths[0] if lengths else None,
        "accept_length_end": lengths[-1] if lengths else None,
        "revisions": sum(row.revisions for row in steps),
        "edge_to_lease_p50_s": percentile(_values(recording, "worker", "edgeToLease"), 0.5),
        "hand_back_p95_s": percentile(_values(recording, "worker", "handBack"), 0.95),
        "swap_stall_p95_s": percentile(_values(recording, "swap", "stall"), 0.95),
    }  # fmt: skip


def comparison(demo: Sequence[StepRow], baseline: Sequence[StepRow]) -> dict[str, float | None]:
    """The run with everything on against the one without; above 1 is better for us.

    Answers differ in length from run to run, so generation is compared by tokens in a second, not by seconds.
    """
    return {
        "generation_rate_ratio": _divide(_rate(demo), _rate(baseline)),
        "step_wall_ratio": _divide(_mean([row.wall for row in baseline]), _mean([row.wall for row in demo])),
        "rollout_share": _divide(sum(row.generation for row in demo), sum(row.wall for row in demo)),
        "baseline_step_wall_s": _mean([row.wall for row in baseline]),
        "step_wall_s": _mean([row.wall for row in demo]),
    }


def table(steps: Sequence[StepRow]) -> str:
    """The rows as aligned text."""
    cells = [HEADINGS, *(row.cells() for row in steps)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def markdown(steps: Sequence[StepRow]) -> str:
    """The rows as a table for a page."""
    lines = [HEADINGS, tuple("---:" for _ in HEADINGS), *(row.cells() for row in steps)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _values(recording: Recording, kind: str, name: str) -> list[float]:
    return [float(event[name]) for event in recording.events if event["kind"] == kind and name in event]


def _last_states(recording: Recording) -> list[dict[str, Any]]:
    in_order = sorted(recording.samples, key=lambda item: float(item["at"]))
    return list({sample["pod"]: sample["state"] for sample in in_order}.values())


def _rate(steps: Sequence[StepRow]) -> float | None:
    return _divide(sum(row.tokens for row in steps), sum(row.generation for row in steps))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _divide(value: float | None, by: float | None) -> float | None:
    return value / by if value is not None and by else None


def _optional(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
