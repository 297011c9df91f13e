"""The line in front of the pods, driven by arbitrary histories."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from tlt_workloads.gateway.dispatch import Dispatcher, Ticket

ADDRESSES = ["a", "b", "c"]


class Line(RuleBasedStateMachine):
    """Arrivals, answers, deaths and changes of the serving pods in any order."""

    waiting = Bundle("waiting")
    working = Bundle("working")

    @initialize(limit=st.integers(0, 3))
    def begin(self, limit: int) -> None:
        self.line = Dispatcher(limit=limit)
        self.serving: set[str] = set()
        self.queue: list[Ticket] = []  # what should wait, in order
        self.at: dict[Ticket, str] = {}
        self.ended: set[Ticket] = set()

    @rule(addresses=st.sets(st.sampled_from(ADDRESSES)))
    def pods_change(self, addresses: set[str]) -> None:
        self.serving = addresses
        self.line.serve(addresses)
        self.start()

    @rule(target=working)
    def arrive(self) -> Ticket:
        ticket = self.line.submit()
        self.queue.append(ticket)
        self.start()
        return ticket

    @rule(ticket=consumes(working))
    def end(self, ticket: Ticket) -> None:
        """Answered, or its client has gone."""
        self.line.finish(ticket)
        self.at.pop(ticket, None)
        if ticket in self.queue:
            self.queue.remove(ticket)
        self.ended.add(ticket)
        self.start()

    @rule(target=working, ticket=consumes(working))
    def die_under(self, ticket: Ticket) -> object:
        if ticket not in self.at:
            return multiple(ticket)
        del self.at[ticket]
        self.line.put_back(ticket)
        self.queue = sorted([*self.queue, ticket])
        self.start()
        return ticket

    def start(self) -> None:
        for assignment in self.line.assign():
            least = min(self.load(address) for address in self.serving)
            assert self.load(assignment.address) <= max(least, self.load(assignment.address))
            assert assignment.ticket == self.queue.pop(0), "out of order"
            assert assignment.ticket not in self.ended, "started after its end"
            assert assignment.address in self.serving
            self.at[assignment.ticket] = assignment.address

    def load(self, address: str) -> int:
        return sum(at == address for at in self.at.values())

    @invariant()
    def counts_agree(self) -> None:
        assert self.line.queued == len(self.queue)
        assert self.line.outstanding == len(self.at)
        for address in ADDRESSES:
            assert self.line.outstanding_at(address) == self.load(address)

    @invariant()
    def the_limit_holds(self) -> None:
        assert not self.line.limit or all(self.load(address) <= self.line.limit for address in ADDRESSES)

    @invariant()
    def nothing_waits_beside_a_free_pod(self) -> None:
        free = [item for item in self.serving if not self.line.limit or self.load(item) < self.line.limit]
        assert not (self.queue and free)


Line.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestLine = Line.TestCase


def fill(line: Dispatcher, count: int) -> list[str]:
    for _ in range(count):
        line.submit()
    return [assignment.address for assignment in line.assign()]


def test_work_goes_to_the_pod_with_the_least_of_it() -> None:
    line = Dispatcher()
    line.serve(ADDRESSES)
    assert sorted(fill(line, 6)) == ["a", "a", "b", "b", "c", "c"]


def test_the_pod_that_finishes_first_gets_the_next_piece() -> None:
    line = Dispatcher(limit=2)
    line.serve(["a", "b"])
    tickets = [line.submit() for _ in range(6)]
    started = {assignment.ticket: assignment.address for assignment in line.assign()}
    assert len(started) == 4
    first_on_b = next(ticket for ticket in tickets if started.get(ticket) == "b")
    line.finish(first_on_b)
    assert [(item.ticket, item.address) for item in line.assign()] == [(tickets[4], "b")]


def test_a_piece_whose_pod_died_is_first_in_line_and_prefers_another_pod() -> None:
    line = Dispatcher(limit=1)
    line.serve(["a", "b"])
    first, second, third = (line.submit() for _ in range(3))
    assert [assignment.ticket for assignment in line.assign()] == [first, second]
    line.put_back(first)
    line.finish(second)
    assert [(item.ticket, item.address) for item in line.assign()] == [(first, "b"), (third, "a")]


def test_a_piece_returns_to_the_only_pod_when_there_is_no_other() -> None:
    line = Dispatcher()
    line.serve(["a"])
    ticket = line.submit()
    line.assign()
    line.put_back(ticket)
    assert [assignment.address for assignment in line.assign()] == ["a"]
