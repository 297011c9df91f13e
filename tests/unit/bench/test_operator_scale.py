"""The scale benchmark's own arithmetic."""

from __future__ import annotations

from bench.operator_scale.__main__ import reactions
from bench.operator_scale.fleet import METRICS_PAGE, Fleet, address_of, name_of
from bench.operator_scale.scraper import LINE


def test_each_edge_is_met_by_the_next_line_about_the_same_pods_rest() -> None:
    edges = [(0.0, {"pod": "a", "at": 10.0}), (0.0, {"pod": "a", "at": 20.0}), (0.0, {"pod": "b", "at": 11.0})]
    lines = [
        (9.9, {"kind": "worker", "pod": "a", "to": "Idle"}),
        (10.01, {"kind": "worker", "pod": "a", "to": "Draining"}),
        (10.02, {"kind": "trainer", "pod": "a", "to": "Idle"}),
        (10.03, {"kind": "worker", "pod": "a", "to": "Idle"}),
        (20.05, {"kind": "worker", "pod": "a", "to": "Lent"}),
    ]
    found, missed = reactions(edges, lines, begin=10.0, end=30.0)
    assert [round(seconds, 3) for seconds in found] == [0.03, 0.05]
    assert missed == 1
    assert reactions(edges, lines, begin=12.0, end=15.0) == ([], 0)


def test_pods_have_names_and_addresses_of_their_own() -> None:
    assert len({address_of(number) for number in range(1000)}) == 1000
    assert len({name_of(number) for number in range(1000)}) == 1000


def test_the_peer_reads_running_and_waiting_requests_off_the_page() -> None:
    assert len(LINE.findall(METRICS_PAGE.read_text())) == 2


def test_a_change_answers_those_who_wait_and_moves_the_number() -> None:
    pod = Fleet(1, seed=1).pods[address_of(0)]
    waiting = pod.changed
    pod.change(running=3, idle=False)
    assert waiting.is_set()
    assert (pod.state().seq, pod.state().running, pod.state().idle) == (2, 3, False)
