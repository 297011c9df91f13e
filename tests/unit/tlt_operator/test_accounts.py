"""Device seconds, captured tokens and idle windows."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.snapshots import busy, idle, make_rollout, make_snapshot, make_state, make_trainer
from tlt_operator.plan.decision import Memory, decide
from tlt_operator.plan.ledger import Ledger, account
from tlt_operator.plan.lending import LeaseTerms
from tlt_operator.plan.snapshot import Fault
from tlt_operator.plan.status import job_status, ledger_of, percentile, significant
from tlt_operator.plan.tokens import TokenMemory, count_tokens
from tlt_operator.plan.windows import WindowHistory, WindowPhase, advance
from tlt_workloads.contract import CaptureCounters, EndedLease, RevokeReason


def seconds(name: str, boot: str, busy_: float, idle_: float, lent: float = 0.0, **fields: Any) -> Any:
    return make_rollout(
        name, make_state(boot=boot, busy_seconds=busy_, idle_seconds=idle_, lent_seconds=lent, **fields)
    )


def test_totals_grow_by_what_pods_counted_and_survive_their_reboots() -> None:
    ledger, _ = account(Ledger(), make_snapshot(seconds("a", "1", 10, 5, 2)))
    ledger, _ = account(ledger, make_snapshot(seconds("a", "1", 12, 6, 3)))
    assert (ledger.busy, ledger.idle, ledger.harvested) == (12, 6, 3)
    ledger, _ = account(ledger, make_snapshot(seconds("a", "2", 1, 1, 0)))
    assert (ledger.busy, ledger.idle, ledger.harvested) == (13, 7, 3)


def test_answer_that_was_overtaken_subtracts_nothing() -> None:
    ledger, _ = account(Ledger(), make_snapshot(seconds("a", "1", 10, 5)))
    ledger, _ = account(ledger, make_snapshot(seconds("a", "1", 9, 5)))
    ledger, _ = account(ledger, make_snapshot(seconds("a", "1", 11, 5)))
    assert ledger.busy == 11


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.floats(0, 50)), max_size=30))
def test_restarted_operator_neither_loses_nor_repeats(steps: list[tuple[str, bool, float]]) -> None:
    """After each observation the ledger goes through the status, as it would over a restart."""
    boots = {"a": 0, "b": 0}
    counters = {"a": 0.0, "b": 0.0}
    expected, ledger = 0.0, Ledger()
    for pod, reboot, grown in steps:
        if reboot:
            boots[pod] += 1
            counters[pod] = 0.0
        counters[pod] += grown
        expected += grown
        snapshot = make_snapshot(*(seconds(name, f"{name}{boots[name]}", counters[name], 0) for name in boots))
        decision = decide(snapshot, Memory(ledger=ledger), terms=LeaseTerms())
        status = job_status(snapshot, decision, previous={}, gateway_url=None, now="2026-01-01T00:00:00Z")
        ledger = ledger_of(json.loads(json.dumps(status)))
    assert ledger.busy == pytest.approx(expected, abs=0.01 * (len(steps) + 1))


def test_each_ended_lease_is_counted_once() -> None:
    last = EndedLease(id="l1", holder="t", duration=7.0, hand_back=0.1, reason=RevokeReason.REQUEST, ended_ago=1.0)
    ledger, ended = account(Ledger(), make_snapshot(seconds("a", "1", 0, 0, last_lease=last)))
    assert [item.lease.id for item in ended] == ["l1"]
    ledger, ended = account(ledger, make_snapshot(seconds("a", "1", 0, 0, last_lease=last)))
    assert ended == ()
    assert ledger.windows == 1
    assert ledger.recent == (7.0,)


def test_tokens_are_what_the_trainers_say() -> None:
    snapshot = make_snapshot(busy("a"), make_trainer("a", available=70))
    available, _ = count_tokens(snapshot, TokenMemory())
    assert available == 70


def test_tokens_are_estimated_from_capture_before_and_after_there_are_trainers() -> None:
    first = make_snapshot(make_rollout("a", make_state(capture=CaptureCounters(tokens=500))))
    available, memory = count_tokens(first, TokenMemory())
    assert available == 500
    trained = make_snapshot(
        make_rollout("a", make_state(capture=CaptureCounters(tokens=600))), make_trainer("a", available=20)
    )
    available, memory = count_tokens(trained, memory)
    assert available == 20
    gone = make_snapshot(make_rollout("a", make_state(capture=CaptureCounters(tokens=650))))
    assert count_tokens(gone, memory)[0] == 70


def test_window_opens_and_closes_and_is_remembered() -> None:
    history, closed = advance(WindowHistory(), {"a"}, phase=WindowPhase.TAIL, now=10.0)
    assert closed == ()
    history, closed = advance(history, set(), phase=WindowPhase.LEARNER, now=14.0)
    assert [(item.uid, item.phase, item.seconds) for item in closed] == [("a", WindowPhase.TAIL, 4.0)]
    assert history.closed == {WindowPhase.TAIL: (4.0,)}


def test_window_whose_end_nobody_saw_teaches_nothing() -> None:
    pods = make_snapshot(busy("a"), idle("b"), now=10.0)
    memory = decide(pods, Memory(), terms=LeaseTerms()).memory
    blind = make_snapshot(busy("a"), dataclasses.replace(idle("b"), fault=Fault.UNREACHABLE), now=11.0)
    gone = make_snapshot(busy("a"), now=11.0)
    for later in (blind, gone):
        decision = decide(later, memory, terms=LeaseTerms())
        assert decision.closed_windows == ()
        assert decision.memory.windows == WindowHistory()
    seen = decide(make_snapshot(busy("a"), busy("b"), now=11.0), memory, terms=LeaseTerms())
    assert [item.seconds for item in seen.closed_windows] == [1.0]


def test_expected_rest_is_the_median_rest_of_longer_windows() -> None:
    history = WindowHistory(closed={WindowPhase.TAIL: (2.0, 10.0, 20.0, 30.0)})
    history, _ = advance(history, {"a"}, phase=WindowPhase.TAIL, now=100.0)
    assert history.expected_rest("a", now=100.0) == 15.0
    assert history.expected_rest("a", now=105.0) == 15.0
    assert history.expected_rest("a", now=125.0) == 5.0
    assert history.expected_rest("a", now=131.0) is None
    assert history.expected_rest("stranger", now=100.0) is None


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2), (0.95, 4), (1.0, 4), (0.01, 1)])
def test_percentile(share: float, expected: float) -> None:
    assert percentile([4, 2, 3, 1], share) == expected


def test_counters_alone_are_not_significant_but_a_state_is() -> None:
    def status(*views: Any) -> dict[str, Any]:
        snapshot = make_snapshot(*views)
        decision = decide(snapshot, Memory(), terms=LeaseTerms())
        return job_status(snapshot, decision, previous={}, gateway_url=None, now="2026-01-01T00:00:00Z")

    quiet, later = status(seconds("a", "1", 1, 1)), status(seconds("a", "1", 2, 2))
    assert quiet != later
    assert significant(quiet) == significant(later)
    assert significant(status(idle("a"))) != significant(status(busy("a")))
