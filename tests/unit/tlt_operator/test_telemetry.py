"""Metrics, Events and the timeline."""

from __future__ import annotations

import json
import logging

import pytest
from prometheus_client import generate_latest

from tests.support.snapshots import make_job
from tlt_operator.api.names import EventReason
from tlt_operator.config import LogFormat
from tlt_operator.telemetry import timeline
from tlt_operator.telemetry.events import REPEAT_AFTER, EventLog, EventType, EventWrite
from tlt_operator.telemetry.logs import JsonFormatter, configure_logs
from tlt_operator.telemetry.metrics import Metrics, Totals


def note(log: EventLog, *, now: float, subject: str = "pod-0") -> EventWrite | None:
    return log.note(
        make_job(),
        reason=EventReason.LEASE_GRANTED,
        subject=subject,
        message="lent",
        kind=EventType.NORMAL,
        now=now,
        wall_time="2026-01-01T00:00:00.000000Z",
        instance="operator-0",
    )


def test_repeated_news_is_one_event_with_a_count() -> None:
    log = EventLog()
    first = note(log, now=0.0)
    assert first is not None
    assert first.count == 1
    assert first.body["regarding"]["uid"] == "job-uid"
    assert note(log, now=1.0) is None
    assert note(log, now=2.0) is None
    later = note(log, now=REPEAT_AFTER)
    assert later is not None
    assert (later.name, later.count) == (first.name, 4)


def test_news_of_another_subject_is_another_event() -> None:
    log = EventLog()
    first, second = note(log, now=0.0), note(log, now=0.0, subject="pod-1")
    assert first is not None
    assert second is not None
    assert first.name != second.name


def test_line_of_the_timeline(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=timeline.LOGGER):
        logging.getLogger(timeline.LOGGER).propagate = True
        timeline.write_transition(
            at=12.34567, job="a/b", kind="worker", pod="p", from_state=None, to_state="Idle", edgeToLease=0.01
        )
    line = json.loads(caplog.messages[0])
    assert line == {
        "at": 12.346,
        "job": "a/b",
        "kind": "worker",
        "pod": "p",
        "from": None,
        "to": "Idle",
        "edgeToLease": 0.01,
    }


def test_timeline_has_standard_output_for_itself(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:]
    try:
        configure_logs(log_format=LogFormat.JSON, level="INFO")
        logging.getLogger("x").warning("told")
        timeline.write(at=1.0, job="a/b", kind="swap", pod="p", revision="r", seconds=0.1, stall=0.01)
    finally:
        root.handlers[:] = before
        logging.getLogger(timeline.LOGGER).handlers.clear()
        logging.getLogger(timeline.LOGGER).propagate = True
    out, err = capsys.readouterr()
    assert json.loads(out)["kind"] == "swap"
    assert json.loads(err)["message"] == "told"


def test_log_line_holds_the_traceback() -> None:
    try:
        raise ValueError("bad")
    except ValueError:
        import sys

        record = logging.LogRecord("x", logging.ERROR, "f", 1, "it %s", ("broke",), sys.exc_info())
    line = json.loads(JsonFormatter().format(record))
    assert line["message"] == "it broke"
    assert "ValueError: bad" in line["traceback"]


def test_totals_count_across_reboots() -> None:
    totals = Totals()
    grown = [totals.grown(boot, "tokens", total) for boot, total in [("a", 5), ("a", 9), ("b", 2), ("a", 9), ("b", 1)]]
    assert grown == [5, 4, 2, 0, 0]


def test_totals_begin_again_with_what_they_are_counted_from() -> None:
    totals = Totals()
    steps = [("r1", 5), ("r1", 9), ("r2", 3), ("r2", 2), ("r3", 4)]
    assert [totals.grown("a", "drafts", total, since=since) for since, total in steps] == [5, 4, 3, 0, 4]


def test_totals_keep_nothing_of_pods_that_are_gone() -> None:
    totals = Totals()
    for boot in ("a", "b"):
        totals.grown(boot, "tokens", 5)
    totals.keep({"b"})
    assert [totals.grown(boot, "tokens", 5) for boot in ("a", "b")] == [5, 0]


def test_deleted_job_leaves_no_series() -> None:
    metrics = Metrics()
    metrics.show_states("a/b", {"Idle": 1})
    metrics.leases.labels(job="a/b", result="granted").inc()
    metrics.show_revision("a/b", "r1", accept_length=1.5)
    metrics.show_revision("a/b", "r2", accept_length=1.6)
    text = generate_latest(metrics.registry).decode()
    assert 'tlt_acceptance_length{job="a/b",revision="r2"} 1.6' in text
    assert 'revision="r1"' not in text
    metrics.forget("a/b")
    assert 'job="a/b"' not in generate_latest(metrics.registry).decode()
