"""A pool in motion: pods, trainers and a StatefulSet that follow the operator's decisions, driven step by step."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from tests.support.snapshots import (
    make_job,
    make_lease,
    make_pod,
    make_rollout,
    make_snapshot,
    make_state,
    make_trainer,
)
from tlt_operator.api.names import JOB_LABEL, ROLLOUT_UID_LABEL
from tlt_operator.api.pod import DeviceClaim, Pod
from tlt_operator.api.pool_set import PoolSet
from tlt_operator.plan.actions import ApplyPool, CreateTrainer, DeleteTrainer, GrantLease, ReplacePod, RevokeLease
from tlt_operator.plan.decision import Decision, Memory, decide
from tlt_operator.plan.lending import LeaseTerms
from tlt_operator.plan.snapshot import Fault, PoolView, RolloutView, TrainerView
from tlt_workloads.contract import TrainerPhase

BROKEN = "broken"  # pods of this template never come up
_numbers = itertools.count()


def pool_spec(replicas: int, *, image: str = "vllm:1") -> dict[str, Any]:
    return {
        "pool": {
            "replicas": replicas,
            "template": {"image": image},
            "claim": {"deviceClassName": "gpu.example.com"},
        }
    }


@dataclass
class PoolPod:
    """A pod of the StatefulSet as it really is."""

    ordinal: int
    template: str
    uid: str
    ready: bool = False
    running: int = 0
    updating: bool = False
    reachable: bool = True
    holder: str | None = None  # of the lease
    going: bool = False

    @property
    def name(self) -> str:
        return f"demo-rollout-{self.ordinal}"

    @property
    def unused(self) -> bool:
        """What the pod itself says when it is asked."""
        return not self.ready or (self.running == 0 and not self.updating and self.holder is None)

    def as_pod(self) -> Pod:
        return make_pod(
            self.name,
            uid=self.uid,
            ready=self.ready,
            started=self.ready,
            deleting=self.going,
            template=self.template,
            claims=(DeviceClaim(name="gpu", claim=f"{self.uid}-gpu"),),
        )


@dataclass
class PoolTrainer:
    pod: Pod
    of: str  # uid of the rollout pod
    going: bool = False


class PoolWorld:
    """`operate` is one pass of the operator over what it has heard; all else is what happens without it.

    The operator hears of pods and of the StatefulSet apart, as from two watches.
    """

    def __init__(self, replicas: int, *, suspend: bool = False) -> None:
        self.now = 1000.0
        self.suspend = suspend  # nothing is lent, so that a history is about the pods alone
        self.replicas, self.wanted = replicas, "t0"
        self.set: PoolSet | None = None
        self.pods: list[PoolPod] = []
        self.trainers: list[PoolTrainer] = []
        self.removed: frozenset[str] = frozenset()
        self.memory = Memory()
        self.heard_pods: tuple[RolloutView, ...] = ()
        self.heard_set: PoolSet | None = None
        self.taken: list[tuple[PoolPod, bool]] = []  # pods that the operator took away; whether for a newer one
        self.last: Decision | None = None

    # -- what happens ----------------------------------------------------------------------------------------------

    def request(self, pod: PoolPod) -> None:
        if pod.ready and not pod.going:
            pod.running, pod.holder = pod.running + 1, None

    def come_up(self, pod: PoolPod) -> None:
        pod.ready = pod.ready or (pod.template != BROKEN and not pod.going)

    def control(self, *, slow: bool = False) -> None:
        """The StatefulSet's controller and the kubelet; a slow one has not ended yet what is to end."""
        if not slow:
            self.pods = [pod for pod in self.pods if not pod.going]
            self.trainers = [item for item in self.trainers if not item.going]
        if self.set is None:
            return
        for pod in self.pods:
            pod.going |= pod.ordinal >= self.set.replicas
        present = {pod.ordinal for pod in self.pods}
        self.pods += [
            PoolPod(ordinal=ordinal, template=self.set.template or "", uid=f"uid-{next(_numbers)}")
            for ordinal in range(self.set.replicas)
            if ordinal not in present
        ]

    # -- what the operator hears -----------------------------------------------------------------------------------

    def hear_pods(self) -> None:
        self.heard_pods = tuple(self._view(pod) for pod in sorted(self.pods, key=lambda pod: pod.name))

    def hear_set(self) -> None:
        self.heard_set = self.set

    def _view(self, pod: PoolPod) -> RolloutView:
        if not pod.ready:
            return make_rollout(pod.name, pod=pod.as_pod(), fault=Fault.UNREACHABLE, silent_for=1.0)
        lease = make_lease(pod.holder) if pod.holder is not None else None
        quiet = pod.running == 0 and not pod.updating
        state = make_state(
            boot=pod.uid,
            running=pod.running,
            updating=pod.updating,
            idle=quiet,
            idle_for=5.0 if quiet else 0.0,
            lease=lease,
        )
        return make_rollout(pod.name, state, pod=pod.as_pod(), fault=None if pod.reachable else Fault.UNREACHABLE)

    # -- the operator ----------------------------------------------------------------------------------------------

    def restart_operator(self) -> None:
        self.memory, self.removed = Memory(), frozenset()
        self.hear_pods()  # a new process begins with a list
        self.hear_set()

    def operate(self) -> Decision:
        self.now += 1.0
        self.removed &= {view.pod.uid for view in self.heard_pods if not view.pod.deleting}
        view = PoolView(wanted=self.wanted, found=self.heard_set, removed=self.removed)
        trainers: list[RolloutView | TrainerView] = [self._trainer_view(item) for item in self.trainers]
        snapshot = make_snapshot(
            *self.heard_pods,
            *trainers,
            job=make_job(rollout=pool_spec(self.replicas), idle={"scope": "AnyIdle"}, suspend=self.suspend),
            pool=view,
            now=self.now,
        )
        decision = decide(snapshot, self.memory, terms=LeaseTerms())
        self.memory, self.last = decision.memory, decision
        by_uid = {pod.uid: pod for pod in self.pods}
        for action in decision.actions:
            match action:
                case ApplyPool():
                    self._apply(action, by_uid)
                case ReplacePod():
                    pod = by_uid.get(action.rollout_uid)
                    if pod is not None and pod.unused and not pod.going:
                        self.taken.append((pod, True))
                        self.removed |= {pod.uid}
                        pod.going = True
                case GrantLease():
                    pod = by_uid.get(action.rollout_uid)
                    if pod is not None and pod.ready and pod.unused and not pod.going:
                        pod.holder = action.request.holder
                case RevokeLease():
                    pod = by_uid.get(action.rollout_uid)
                    if pod is not None:
                        pod.holder = None
                case CreateTrainer():
                    self._create_trainer(action.rollout_uid)
                case DeleteTrainer():
                    for item in self.trainers:
                        item.going |= item.pod.uid == action.trainer_uid
        return decision

    def _apply(self, action: ApplyPool, by_uid: dict[str, PoolPod]) -> None:
        """Every pod that this costs is asked once more, as the operator does."""
        if not all(by_uid[uid].unused for uid in action.removed if uid in by_uid):
            return
        before = self.set.replicas if self.set is not None else 0
        self.taken += [(pod, False) for pod in self.pods if action.replicas <= pod.ordinal < before and not pod.going]
        self.set = PoolSet(uid="set", replicas=action.replicas, template=action.template)

    def _create_trainer(self, rollout_uid: str) -> None:
        name = f"trainer-{next(_numbers)}"
        labels = {JOB_LABEL: "demo", ROLLOUT_UID_LABEL: rollout_uid}
        claims = (DeviceClaim(name="gpu", claim=f"{rollout_uid}-gpu"),)
        self.trainers.append(PoolTrainer(pod=make_pod(name, labels=labels, claims=claims), of=rollout_uid))

    def _trainer_view(self, item: PoolTrainer) -> TrainerView:
        training = any(pod.holder == item.pod.holder for pod in self.pods)
        pod = make_pod(
            item.pod.name, uid=item.pod.uid, labels=item.pod.labels, claims=item.pod.claims, deleting=item.going
        )
        return make_trainer(item.of, pod=pod, phase=TrainerPhase.TRAINING if training else TrainerPhase.WAITING)
