"""A small world for decisions: pods that lend their devices, trainers that die or hang, an operator that hears late.

Leases and idleness are the rollout pod's own code; what the world adds is everything that can go wrong around them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from tests.support.snapshots import make_job, make_pod, make_rollout, make_snapshot, make_state, make_trainer
from tlt_operator.api.claim import Claim, Consumer
from tlt_operator.api.job import Job
from tlt_operator.api.names import JOB_LABEL, ROLLOUT_UID_LABEL, trainer_name
from tlt_operator.api.pod import DeviceClaim, Pod
from tlt_operator.placement.strategy import Site
from tlt_operator.plan.actions import CreateTrainer, DeleteTrainer, GrantLease, RevokeLease
from tlt_operator.plan.decision import Decision, Memory, decide
from tlt_operator.plan.lending import LeaseTerms
from tlt_operator.plan.snapshot import Fault, RolloutView, TrainerView
from tlt_workloads.contract import LeasePhase, RevokeReason, RolloutState, TrainerPhase
from tlt_workloads.rollout.activity import ActivityClock
from tlt_workloads.rollout.lease import LeaseBook, LeaseHeldError

TERMS = LeaseTerms(ttl=10.0, window=600.0)
POLL = 20.0  # a long poll without news is answered after this long

_numbers = itertools.count()


@dataclass
class Device:
    """A rollout pod on its own claim, and what the operator heard of it."""

    name: str
    uid: str
    activity: ActivityClock
    boot: str = "boot"
    book: LeaseBook = field(default_factory=LeaseBook)
    reachable: bool = True
    heard: RolloutState | None = None
    heard_at: float = float("-inf")
    granting: bool = False  # as far as the operator knows
    late_grant: bool = False  # one was delivered that the operator had decided on an older answer

    @property
    def pod(self) -> Pod:
        return make_pod(self.name, uid=self.uid, claims=(DeviceClaim(name="gpu", claim=f"{self.name}-gpu"),))

    def facts(self, now: float) -> RolloutState:
        self.activity.pass_time(now)
        return make_state(
            boot=self.boot,
            running=self.activity.in_flight,
            idle=self.activity.is_idle(now),
            idle_for=self.activity.idle_for(now),
            paused=self.activity.paused,
            updating=self.activity.updating,
            lease=self.book.view(now=now),
            last_lease=self.book.ended_view(now=now),
            busy_seconds=self.activity.busy_seconds,
            idle_seconds=self.activity.idle_seconds,
        )

    def lendable(self, now: float) -> bool:
        """The pod's own check of a grant."""
        return self.book.current is None and self.activity.is_idle(now)


@dataclass
class Trainer:
    """A trainer pod; `uses` is whether a worker of it has the device open."""

    device: str
    pod: Pod
    alive: bool = True  # its processes run
    beats: bool = True  # it talks to the rollout pod and to the operator
    obeys: bool = True  # it hands back when asked
    deleting: bool = False
    uses: bool = False


class World:
    """Everything about one job.  `tick` moves the clock; the operator does nothing before `operate`."""

    def __init__(self, names: tuple[str, ...], **spec: Any) -> None:
        self.now = 0.0
        self.spec = spec
        self.job: Job = make_job(**spec)
        self.devices = {name: self._device(name, name) for name in names}
        self.trainers: list[Trainer] = []
        self.reserved: dict[str, list[Consumer]] = {}  # by claim; trainers only
        self.memory = Memory()
        self.mail: list[GrantLease | RevokeLease] = []
        self.restarted = False
        self.last: Decision | None = None
        for name in names:
            self.hear(name)

    # -- what happens to the pods ----------------------------------------------------------------------------------

    def request(self, name: str) -> None:
        device = self.devices[name]
        device.activity.arrive(self.now)
        device.book.revoke(RevokeReason.REQUEST, now=self.now)

    def finish(self, name: str) -> None:
        activity = self.devices[name].activity
        while activity.in_flight:
            activity.depart(self.now)

    def update(self, name: str, *, begins: bool) -> None:
        device = self.devices[name]
        device.activity.set_updating(begins, now=self.now)
        if begins:
            device.book.revoke(RevokeReason.POLICY_UPDATE, now=self.now)

    def pause(self, name: str, *, paused: bool) -> None:
        self.devices[name].activity.set_paused(paused, now=self.now)

    def restart_server(self, name: str) -> None:
        """The server of the pod starts again and remembers nothing."""
        device = self.devices[name]
        device.boot, device.book = f"boot-{next(_numbers)}", LeaseBook()
        device.activity = ActivityClock(started_at=self.now)

    def replace_pod(self, name: str) -> None:
        """The pod is gone and another one has its name and its claim, as in a StatefulSet."""
        self.devices[name] = self._device(name, f"{name}-{next(_numbers)}")

    def set_suspend(self, suspend: bool) -> None:
        self.job = make_job(**{**self.spec, "suspend": suspend})

    def _device(self, name: str, uid: str) -> Device:
        return Device(name=name, uid=f"{uid}-uid", activity=ActivityClock(started_at=self.now))

    # -- time ------------------------------------------------------------------------------------------------------

    def tick(self, seconds: float) -> None:
        """Time passes for pods, trainers and long polls, in small steps."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.5)
            for trainer in self.trainers:
                self._train(trainer)
            for name, device in self.devices.items():
                device.book.pass_time(now=self.now)
                if self.now - device.heard_at >= POLL:
                    self.hear(name)

    def _train(self, trainer: Trainer) -> None:
        device = self.devices[trainer.device]
        if not trainer.alive or not trainer.beats:
            return  # a process that hangs keeps what it has open
        lease = device.book.current
        mine = lease is not None and lease.holder == trainer.pod.holder
        if mine:
            device.book.heartbeat(trainer.pod.holder, now=self.now)
        asked_back = lease is not None and lease.phase is LeasePhase.REVOKING
        if mine and not asked_back:
            trainer.uses = True
        elif trainer.obeys:
            trainer.uses = False
            if mine:
                device.book.release(trainer.pod.holder, now=self.now)

    def finish_deletions(self) -> None:
        """The kubelet kills what was deleted, and the API server forgets it."""
        self.trainers = [trainer for trainer in self.trainers if not trainer.deleting]

    def forget_reservations(self) -> None:
        """The controller of claims sees that pods have gone, and the kubelet has taken their devices back."""
        there = {trainer.pod.uid for trainer in self.trainers}
        for claim, consumers in self.reserved.items():
            self.reserved[claim] = [consumer for consumer in consumers if consumer.uid in there]

    # -- the operator ----------------------------------------------------------------------------------------------

    def hear(self, name: str) -> None:
        device = self.devices[name]
        if device.reachable:
            device.heard, device.heard_at = device.facts(self.now), self.now
            device.granting = any(isinstance(item, GrantLease) and item.rollout_uid == device.uid for item in self.mail)

    def restart_operator(self) -> None:
        """Another process: it remembers nothing, and hears of what it can reach before it decides."""
        self.memory, self.restarted = Memory(), True
        for name, device in self.devices.items():
            device.granting = False
            device.heard, device.heard_at = None, float("-inf")
            self.hear(name)

    def operate(self) -> Decision:
        """One pass; its grants and revocations wait in `mail` until `deliver`."""
        views: list[RolloutView | TrainerView] = [*map(self._rollout_view, self.devices.values())]
        views += map(self._trainer_view, self.trainers)
        claims = {
            claim: Claim(name=claim, uid=claim, consumers=tuple(consumers))
            for claim, consumers in self.reserved.items()
        }
        snapshot = make_snapshot(*views, job=self.job, now=self.now, site=Site(claims=claims))
        decision = decide(snapshot, self.memory, terms=TERMS)
        self.memory = decision.memory
        by_uid = {device.uid: device for device in self.devices.values()}
        for action in decision.actions:
            match action:
                case GrantLease():
                    by_uid[action.rollout_uid].granting = True
                    self.mail.append(action)
                case RevokeLease():
                    self.mail.append(action)
                case CreateTrainer():
                    self._create_trainer(by_uid[action.rollout_uid])
                case DeleteTrainer():
                    for trainer in self.trainers:
                        trainer.deleting |= trainer.pod.uid == action.trainer_uid
        self.last = decision
        return decision

    def deliver(self, *, late: bool = False) -> None:
        """What is in the mail arrives, or is refused, or is lost because the pod cannot be reached."""
        by_uid = {device.uid: device for device in self.devices.values()}
        for action in self.mail:
            device = by_uid.get(action.rollout_uid)
            if device is None or not device.reachable:
                continue
            if isinstance(action, RevokeLease):
                device.book.revoke(action.reason, now=self.now)
            elif device.lendable(self.now):
                try:
                    device.book.grant(action.request, id=f"lease-{next(_numbers)}", now=self.now)
                except LeaseHeldError:
                    continue
                device.late_grant |= late
        self.mail = []

    def live(self, seconds: float) -> None:
        """Operator and kubelet do their work without delay."""
        end = self.now + seconds
        while self.now < end:
            for name in self.devices:
                self.hear(name)
            self.operate()
            self.deliver()
            self.finish_deletions()
            self.forget_reservations()
            self.tick(1.0)

    def _create_trainer(self, device: Device) -> None:
        labels = {JOB_LABEL: "demo", ROLLOUT_UID_LABEL: device.uid}
        name = trainer_name("demo", rollout_uid=device.uid)
        pod = make_pod(name, uid=f"{name}-{next(_numbers)}", claims=device.pod.claims, labels=labels)
        for claim in pod.claim_names:
            self.reserved.setdefault(claim, []).append(Consumer(name=pod.name, uid=pod.uid))
        self.trainers.append(Trainer(device=device.name, pod=pod))

    def _rollout_view(self, device: Device) -> RolloutView:
        return make_rollout(
            device.name,
            device.heard,
            pod=device.pod,
            age=self.now - device.heard_at,
            silent_for=self.now - max(0.0, device.heard_at),
            fault=None if device.reachable else Fault.UNREACHABLE,
            granting=device.granting,
        )

    def _trainer_view(self, trainer: Trainer) -> TrainerView:
        pod = make_pod(
            trainer.pod.name,
            uid=trainer.pod.uid,
            claims=trainer.pod.claims,
            labels=trainer.pod.labels,
            deleting=trainer.deleting,
            phase="Running" if trainer.alive else "Failed",
        )
        heard = trainer.alive and trainer.beats
        return make_trainer(
            trainer.device,
            pod=pod,
            phase=TrainerPhase.TRAINING if trainer.uses else TrainerPhase.WAITING,
            fault=None if heard else Fault.UNREACHABLE,
        )
