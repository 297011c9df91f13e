"""Whatever is observed in whatever order: one holder per device, Unknown is never lent, every lease ends."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.snapshots import (
    make_job,
    make_lease,
    make_pod,
    make_rollout,
    make_snapshot,
    make_state,
    make_trainer,
)
from tlt_operator.plan.actions import CreateTrainer, GrantLease, RevokeLease
from tlt_operator.plan.decision import Memory, decide
from tlt_operator.plan.lending import LeaseTerms
from tlt_operator.plan.snapshot import Fault, RolloutView, Snapshot, TrainerView
from tlt_operator.plan.worker import WorkerState
from tlt_workloads.contract import LeasePhase, RevokeReason, TrainerPhase
from tlt_workloads.rollout.lease import LeaseBook, LeaseHeldError

NAMES = ("a", "b", "c")
TERMS = LeaseTerms(ttl=10.0, window=600.0)


def mostly(draw: st.DrawFn, usual: Any, others: st.SearchStrategy[Any]) -> Any:
    """The usual value nine times out of ten: a device is lent only when all fits, so little may be odd at once."""
    return usual if draw(st.integers(0, 9)) else draw(others)


@st.composite
def rollouts(draw: st.DrawFn, name: str) -> RolloutView:
    odd_lease = st.builds(
        make_lease,
        st.sampled_from([make_trainer(name).pod.holder, "stranger/1"]),
        phase=st.sampled_from(LeasePhase),
        revoking_for=st.floats(0, 100),
    )
    idle = draw(st.booleans())
    state = make_state(
        running=mostly(draw, 0 if idle else 2, st.integers(0, 2)),
        waiting=mostly(draw, 0, st.just(1)),
        idle=mostly(draw, idle, st.booleans()),
        idle_for=draw(st.floats(0, 100)),
        paused=mostly(draw, False, st.just(True)),
        updating=mostly(draw, False, st.just(True)),
        lease=mostly(draw, None, odd_lease),
    )
    pod = make_pod(
        name,
        ready=mostly(draw, True, st.just(False)),
        deleting=mostly(draw, False, st.just(True)),
        phase=mostly(draw, "Running", st.just("Failed")),
    )
    return make_rollout(
        name,
        mostly(draw, state, st.none()),
        pod=pod,
        age=mostly(draw, 0.0, st.sampled_from([29.0, 31.0])),
        fault=mostly(draw, None, st.sampled_from(Fault)),
        granting=mostly(draw, False, st.just(True)),
    )


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    names = [name for name in NAMES if mostly(draw, True, st.just(False))]
    views: list[RolloutView | TrainerView] = [draw(rollouts(name)) for name in names]
    views += [
        make_trainer(
            name,
            phase=mostly(draw, TrainerPhase.WAITING, st.sampled_from(TrainerPhase)),
            available=mostly(draw, 1000, st.just(0)),
            age=mostly(draw, 0.0, st.just(31.0)),
            fault=mostly(draw, None, st.sampled_from(Fault)),
        )
        for name in NAMES
        if mostly(draw, True, st.just(False))
    ]
    job = make_job(
        suspend=draw(st.sampled_from([False, False, True])),
        deleting=mostly(draw, False, st.just(True)),
        idle={"scope": draw(st.sampled_from(["Tail", "AnyIdle"]))},
    )
    return make_snapshot(*views, job=job)


@given(snapshots())
@settings(max_examples=300, deadline=None)
def test_grants_go_to_idle_pods_with_a_warm_trainer_only(snapshot: Snapshot) -> None:
    decision = decide(snapshot, Memory(), terms=TERMS)
    grants = [item for item in decision.actions if isinstance(item, GrantLease)]
    views = {view.pod.uid: view for view in snapshot.rollouts}
    for grant in grants:
        view = views[grant.rollout_uid]
        assert decision.workers[grant.rollout_uid] is WorkerState.IDLE
        assert view.state is not None
        assert view.state.idle
        assert view.state.lease is None
        assert view.fault is None
        assert view.age <= snapshot.limits.stale_after
        assert not view.granting
        trainer = next(item for item in snapshot.trainers if item.pod.uid == grant.trainer_uid)
        assert trainer.pod.rollout_uid == grant.rollout_uid
        assert grant.request.holder == trainer.pod.holder
        assert grant.request.ttl > 0
        assert grant.request.window > 0
        assert not snapshot.job.spec.suspend
        assert not snapshot.job.deleting
    holders = [grant.request.holder for grant in grants]
    assert len(set(holders)) == len(holders)
    held = sum(
        decision.workers[uid] in (WorkerState.LENT, WorkerState.REVOKING)
        or (view.granting and decision.workers[uid] is WorkerState.IDLE)
        for uid, view in views.items()
    )
    assert not grants or held + len(grants) <= 1


@given(snapshots())
@settings(max_examples=300, deadline=None)
def test_never_two_trainers_for_one_device(snapshot: Snapshot) -> None:
    decision = decide(snapshot, Memory(), terms=TERMS)
    wanted = [item.rollout_uid for item in decision.actions if isinstance(item, CreateTrainer)]
    present = [view.pod.rollout_uid for view in snapshot.trainers]
    assert len(set(wanted)) == len(wanted)
    assert not set(wanted) & set(present)


class Leases(RuleBasedStateMachine):
    """Three pods with the real lease book, trainers that may die or hang, an operator whose news may be old."""

    @initialize(scope=st.sampled_from(["Tail", "AnyIdle"]))
    def start(self, scope: str) -> None:
        self.job = make_job(idle={"scope": scope})
        self.now = 0.0
        self.memory = Memory()
        self.books = {name: LeaseBook() for name in NAMES}
        self.running = dict.fromkeys(NAMES, 0)
        self.quiet_since = dict.fromkeys(NAMES, 0.0)
        self.alive = dict.fromkeys(NAMES, True)  # the trainer beats and obeys
        self.reachable = dict.fromkeys(NAMES, True)  # the operator hears the pod
        self.heard = {name: self._look(name) for name in NAMES}
        self.training: set[str] = set()
        self.late: list[GrantLease | RevokeLease] = []

    @rule(name=st.sampled_from(NAMES))
    def request_arrives(self, name: str) -> None:
        self.running[name] += 1
        self.books[name].revoke(RevokeReason.REQUEST, now=self.now)

    @rule(name=st.sampled_from(NAMES))
    def requests_end(self, name: str) -> None:
        self.running[name] = 0
        self.quiet_since[name] = self.now

    @rule(name=st.sampled_from(NAMES), alive=st.booleans())
    def trainer_dies_or_revives(self, name: str, alive: bool) -> None:
        self.alive[name] = alive

    @rule(name=st.sampled_from(NAMES), reachable=st.booleans())
    def network_breaks_or_heals(self, name: str, reachable: bool) -> None:
        self.reachable[name] = reachable

    @rule(seconds=st.sampled_from([0.1, 1.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for name, book in self.books.items():
            book.pass_time(now=self.now)
            holder = self._holder(name)
            if not self.alive[name]:
                continue
            if book.current is not None and book.current.phase is LeasePhase.REVOKING:
                book.release(holder, now=self.now)
            book.heartbeat(holder, now=self.now)

    @rule()
    def news_arrives(self) -> None:
        for name in NAMES:
            if self.reachable[name]:
                self.heard[name] = self._look(name)

    @rule(deliver=st.booleans())
    def operator_decides(self, deliver: bool) -> None:
        views: list[RolloutView | TrainerView] = [
            dataclasses.replace(view, fault=None if self.reachable[name] else Fault.UNREACHABLE)
            for name, view in self.heard.items()
        ]
        views += [make_trainer(name) for name in NAMES if self.alive[name]]
        decision = decide(make_snapshot(*views, job=self.job, now=self.now), self.memory, terms=TERMS)
        self.memory = decision.memory
        for action in decision.actions:
            if isinstance(action, GrantLease):
                name = action.rollout_uid.removesuffix("-uid")
                assert self.reachable[name], "a pod that cannot be asked was lent"
            if isinstance(action, GrantLease | RevokeLease):
                self.late.append(action)
        if deliver:
            self.deliver()

    @precondition(lambda self: bool(getattr(self, "late", None)))
    @rule()
    def deliver(self) -> None:
        """Actions arrive, perhaps long after they were decided."""
        for action in self.late:
            name = action.rollout_uid.removesuffix("-uid")
            book = self.books[name]
            if isinstance(action, RevokeLease):
                book.revoke(action.reason, now=self.now)
                continue
            if self.running[name]:
                continue  # the pod's own check: 409 NotIdle
            try:
                book.grant(action.request, id=str(self.now), now=self.now)
            except LeaseHeldError:
                continue
        self.late = []

    @invariant()
    def one_holder_per_device(self) -> None:
        for name, book in getattr(self, "books", {}).items():
            if book.current is not None:
                assert book.current.holder == self._holder(name), "a trainer holds another pod's device"

    @invariant()
    def every_lease_has_an_end(self) -> None:
        for book in getattr(self, "books", {}).values():
            if book.current is not None:
                deadline = book.next_deadline()
                assert deadline is not None
                assert deadline <= self.now + TERMS.ttl

    def _holder(self, name: str) -> str:
        return make_trainer(name).pod.holder

    def _look(self, name: str) -> RolloutView:
        book, running = self.books[name], self.running[name]
        quiet = self.now - self.quiet_since[name]
        is_idle = running == 0 and quiet >= 0.5
        return make_rollout(
            name,
            make_state(
                running=running, idle=is_idle, idle_for=quiet if is_idle else 0.0, lease=book.view(now=self.now)
            ),
        )


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
