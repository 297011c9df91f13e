"""Whatever is observed in whatever order: one holder per device, Unknown is never lent, every lease ends."""

from __future__ import annotations

from typing import Any

import pytest
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
    make_trainer_pod,
)
from tests.support.world import TERMS, Device, World
from tlt_operator.api.reasons import EXPLANATIONS
from tlt_operator.plan.actions import CreateTrainer, GrantLease
from tlt_operator.plan.decision import Memory, decide
from tlt_operator.plan.snapshot import Fault, Limits, RolloutView, Snapshot, TrainerView
from tlt_operator.plan.worker import WorkerState
from tlt_workloads.contract import LeasePhase, TrainerPhase

NAMES = ("a", "b", "c")


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
            pod=make_trainer_pod(name, deleting=mostly(draw, False, st.just(True))),
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
@settings(max_examples=200, deadline=None)
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
        assert snapshot.age(view) <= snapshot.limits.stale_after
        assert not view.granting
        trainer = next(item for item in snapshot.trainers if item.pod.uid == grant.trainer_uid)
        assert trainer.pod.rollout_uid == grant.rollout_uid
        assert grant.request.holder == trainer.pod.holder
        assert not trainer.pod.deleting
        assert trainer.fault is None
        assert trainer.age <= snapshot.limits.stale_after
        assert trainer.state is not None
        assert trainer.state.phase is TrainerPhase.WAITING
        assert not view.state.paused
        assert not view.state.updating
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
@settings(max_examples=200, deadline=None)
def test_conditions_have_listed_reasons_only(snapshot: Snapshot) -> None:
    for condition in decide(snapshot, Memory(), terms=TERMS).conditions:
        assert condition.reason in EXPLANATIONS[condition.type]


@given(snapshots())
@settings(max_examples=200, deadline=None)
def test_never_two_trainers_for_one_device(snapshot: Snapshot) -> None:
    decision = decide(snapshot, Memory(), terms=TERMS)
    wanted = [item.rollout_uid for item in decision.actions if isinstance(item, CreateTrainer)]
    present = [view.pod.rollout_uid for view in snapshot.trainers]
    assert len(set(wanted)) == len(wanted)
    assert not set(wanted) & set(present)


class Leases(RuleBasedStateMachine):
    """Three pods, whatever may happen to them, and an operator whose news and orders may be late."""

    @initialize(scope=st.sampled_from(["Tail", "AnyIdle"]), seconds=st.sampled_from([0.0, 5.0]))
    def start(self, scope: str, seconds: float) -> None:
        """One pod generates for the whole time, unless something happens to it; mostly another one is lent already."""
        self.world = World(NAMES, idle={"scope": scope})
        self.world.request(NAMES[0])
        self.world.live(seconds)

    @rule(name=st.sampled_from(NAMES))
    def request_arrives(self, name: str) -> None:
        self.world.request(name)

    @rule(name=st.sampled_from(NAMES))
    def requests_end(self, name: str) -> None:
        self.world.finish(name)

    @rule(name=st.sampled_from(NAMES), begins=st.booleans())
    def weights_are_updated(self, name: str, begins: bool) -> None:
        self.world.update(name, begins=begins)

    @rule(name=st.sampled_from(NAMES), paused=st.booleans())
    def pod_is_paused(self, name: str, paused: bool) -> None:
        self.world.pause(name, paused=paused)

    @rule(name=st.sampled_from(NAMES), whole=st.booleans())
    def pod_is_lost(self, name: str, whole: bool) -> None:
        if whole:
            self.world.replace_pod(name)
        else:
            self.world.restart_server(name)

    @rule(name=st.sampled_from(NAMES), reachable=st.booleans())
    def network_breaks_or_heals(self, name: str, reachable: bool) -> None:
        self.world.devices[name].reachable = reachable

    @rule(trouble=st.sampled_from(["dies", "hangs", "refuses", "recovers"]), number=st.integers(0, 2))
    def trainer_is_in_trouble(self, trouble: str, number: int) -> None:
        if number < len(self.world.trainers):
            trainer = self.world.trainers[number]
            trainer.alive = trainer.alive and trouble != "dies"
            trainer.uses = trainer.uses and trainer.alive
            trainer.beats = trouble != "hangs"
            trainer.obeys = trouble != "refuses"

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 11.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.tick(seconds)

    @rule(names=st.sets(st.sampled_from(NAMES)))
    def news_arrives(self, names: set[str]) -> None:
        for name in names:
            self.world.hear(name)

    @rule(suspend=st.booleans())
    def job_is_changed(self, suspend: bool) -> None:
        self.world.set_suspend(suspend)

    @rule()
    def deletions_finish(self) -> None:
        self.world.finish_deletions()

    @rule()
    def claims_are_free_again(self) -> None:
        self.world.forget_reservations()

    @rule(deliver=st.booleans())
    def operator_decides(self, deliver: bool) -> None:
        existing = [(trainer.device, trainer.pod.uid) for trainer in self.world.trainers]
        reserved = {claim for claim, consumers in self.world.reserved.items() if consumers}
        decision = self.world.operate()
        devices = {device.uid: device for device in self.world.devices.values()}
        for action in decision.actions:
            if isinstance(action, GrantLease):
                self.check_grant(action, devices[action.rollout_uid])
            if isinstance(action, CreateTrainer):
                name = devices[action.rollout_uid].name
                assert all(device != name for device, _ in existing), "the claim has a trainer"
                assert not devices[action.rollout_uid].pod.claim_names & reserved, "the claim remembers a trainer"
        for move in decision.worker_transitions:
            device = devices.get(move.uid)
            assert move.expected or device is None or device.late_grant, (move.from_state, move.to_state)
        if deliver:
            self.world.deliver()

    @rule(seconds=st.sampled_from([2.0, 5.0, 15.0]), busy=st.sets(st.sampled_from(NAMES), min_size=1, max_size=2))
    def usual_life_goes_on(self, seconds: float, busy: set[str]) -> None:
        """From which the odd cases begin."""
        for name in NAMES:
            self.world.pause(name, paused=False)
            self.world.update(name, begins=False)
            self.world.finish(name)
        for name in busy:
            self.world.request(name)
        self.world.set_suspend(False)
        self.world.live(seconds)

    @precondition(lambda self: self.world.mail)
    @rule()
    def orders_arrive_late(self) -> None:
        self.world.deliver(late=True)

    @rule()
    def operator_restarts(self) -> None:
        self.world.restart_operator()

    def check_grant(self, grant: GrantLease, device: Device) -> None:
        heard = device.heard
        assert heard is not None
        assert device.reachable, "a pod that cannot be asked was lent"
        assert self.world.now - device.heard_at <= 30.0, "old news was believed"
        assert heard.idle
        assert heard.lease is None
        assert heard.running == heard.waiting == 0
        assert not heard.paused
        assert not heard.updating
        trainer = next(item for item in self.world.trainers if item.pod.holder == grant.request.holder)
        assert trainer.device == device.name
        assert trainer.alive
        assert trainer.beats
        assert not trainer.deleting
        assert not self.world.job.spec.suspend
        assert grant.request.ttl > 0
        assert grant.request.window > 0

    @invariant()
    def one_user_per_device(self) -> None:
        for name in NAMES:
            users = [item for item in self.world.trainers if item.device == name and item.uses]
            assert len(users) <= 1
            assert len([item for item in self.world.trainers if item.device == name]) <= 1

    @invariant()
    def one_lease_per_job(self) -> None:
        """A process that has restarted knows nothing of the orders that its predecessor had under way."""
        held = [device for device in self.world.devices.values() if device.book.current is not None]
        assert len(held) <= 1 or self.world.restarted or any(device.late_grant for device in held)

    @invariant()
    def every_lease_has_an_end(self) -> None:
        for device in self.world.devices.values():
            lease = device.book.current
            if lease is None:
                continue
            deadline = device.book.next_deadline()
            assert deadline is not None
            assert deadline <= self.world.now + TERMS.ttl
            holders = [item for item in self.world.trainers if item.pod.holder == lease.holder]
            if not any(item.alive and item.beats for item in holders):
                assert self.world.now <= lease.seen_at + TERMS.ttl, "nobody beats for it"

    def teardown(self) -> None:
        """However it stands: a job that lends no more gets everything back, whoever hangs, refuses or is cut off."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.deliver()
        world.set_suspend(True)
        world.live(world.job.spec.reclaim.grace + Limits().stuck_after + TERMS.ttl + 4.0)
        assert all(device.book.current is None for device in world.devices.values())
        assert not any(trainer.uses for trainer in world.trainers)


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("reachable", [True, False])
@pytest.mark.parametrize("beats", [True, False])
@pytest.mark.parametrize("obeys", [True, False])
def test_suspended_job_gets_its_device_back_whatever_is_wrong(obeys: bool, beats: bool, reachable: bool) -> None:
    world = World(NAMES, idle={"scope": "AnyIdle"})
    world.live(5.0)
    (holder,) = [trainer for trainer in world.trainers if trainer.uses]
    holder.obeys, holder.beats = obeys, beats
    device = world.devices[holder.device]
    device.reachable = reachable
    world.set_suspend(True)
    world.live(world.job.spec.reclaim.grace + Limits().stuck_after + TERMS.ttl + 4.0)
    assert device.book.current is None
    assert not any(trainer.uses for trainer in world.trainers)


def test_job_lends_again_after_a_trainer_went_wild() -> None:
    """Its rollout server has restarted and knows of no lease, and it works on."""
    world = World(NAMES, idle={"scope": "AnyIdle"})
    world.live(5.0)
    (wild,) = [trainer for trainer in world.trainers if trainer.uses]
    wild.obeys = False
    world.restart_server(wild.device)
    world.live(5.0)
    assert wild.uses
    assert not any(device.book.current for device in world.devices.values()), "not two at once"
    world.live(10.0)
    assert wild not in world.trainers
    assert any(trainer.uses for trainer in world.trainers)


@given(st.lists(st.sampled_from(["obeys", "hangs", "refuses"]), min_size=3, max_size=3))
@settings(max_examples=9)
def test_without_an_operator_every_lease_still_ends(manners: list[str]) -> None:
    """Dead holders lose it by its time to live, live ones when its window is over."""
    world = World(NAMES, idle={"scope": "AnyIdle"})
    world.live(5.0)
    (held,) = [device for device in world.devices.values() if device.book.current is not None]
    lease = held.book.current
    assert lease is not None
    for trainer, manner in zip(world.trainers, manners, strict=True):
        trainer.beats, trainer.obeys = manner != "hangs", manner != "refuses"
    holder = next(trainer for trainer in world.trainers if trainer.pod.holder == lease.holder)
    world.tick(TERMS.ttl + 1)
    assert (held.book.current is None) == (not holder.beats)
    world.tick(TERMS.window)
    current = held.book.current
    assert current is None or (not holder.obeys and current.phase is LeasePhase.REVOKING)
