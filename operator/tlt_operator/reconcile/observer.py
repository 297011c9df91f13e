"""Observes one job: its pods and revisions by watches, what they say by long polls; all of it into one snapshot."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from tlt_operator.api.job import Job
from tlt_operator.api.names import COMPONENT_LABEL, JOB_LABEL, Component
from tlt_operator.api.pod import Pod, parse_pod
from tlt_operator.api.revision import Revision, parse_revision
from tlt_operator.clients.gateway import poll_gateway
from tlt_operator.clients.kube import POD, REVISION
from tlt_operator.clients.pods import PodClient
from tlt_operator.clients.rollout import RolloutClient
from tlt_operator.clients.trainer import poll_trainer
from tlt_operator.errors import OperatorError
from tlt_operator.manifests.common import digest
from tlt_operator.manifests.trainer_pod import trainer_pod
from tlt_operator.plan.actions import GRANT
from tlt_operator.plan.shares import Wish
from tlt_operator.plan.snapshot import GatewayView, Limits, RolloutView, Snapshot, TrainerView
from tlt_operator.reconcile.answers import Answers
from tlt_operator.reconcile.context import Context
from tlt_operator.reconcile.objects import Objects
from tlt_operator.reconcile.pool_observer import PoolMemories, PoolObserver
from tlt_workloads.contract import GATEWAY_PORT, TRAINER_PORT, GatewayState, RolloutState, TrainerPhase, TrainerState

DEVICE_GROUP = "resource.k8s.io"
DEVICE_CHECK_INTERVAL = 60.0

logger = logging.getLogger(__name__)


class Deeds(Protocol):
    """What was done lately that the pods' answers cannot show yet."""

    def pending(self, key: tuple[str, str], *, heard: float) -> bool: ...


class Memories(Protocol):
    """What pods and trainers did wrong lately, and what was done about the pool."""

    @property
    def trainer_failures(self) -> Mapping[str, str]: ...
    @property
    def pool(self) -> PoolMemories: ...
    def refusals(self, uid: str, boot: str) -> Mapping[str, str]: ...


def pod_url(pod: Pod, port: int) -> str:
    """Base URL of a pod's port."""
    ip = pod.ip or ""
    return f"http://[{ip}]:{port}" if ":" in ip else f"http://{ip}:{port}"


class Observer:
    """Keeps everything current that a decision about the job needs, and calls `wake` at each change."""

    def __init__(self, context: Context, job: Job, pods: PodClient, *, wake: Callable[[], None]) -> None:
        self._context = context
        self._first_seen: dict[str, float] = {}
        self._failed_since: dict[str, float] = {}
        self._devices_claimable = True
        wait = context.settings.poll_wait
        selector = job.spec.rollout.selector
        self._rollouts: Objects[Pod] | None = None
        if selector is not None:
            self._rollouts = Objects(
                context.kube, POD, namespace=job.namespace, labels=selector.query(), parse=parse_pod, wake=wake
            )
        own = f"{JOB_LABEL}={job.name}"
        self._pool = PoolObserver(context, job, wake=wake) if job.spec.rollout.pool is not None else None
        self._children: Objects[Pod] = Objects(
            context.kube, POD, namespace=job.namespace, labels=f"{own},{COMPONENT_LABEL}", parse=parse_pod, wake=wake
        )
        self._revisions: Objects[Revision] = Objects(
            context.kube, REVISION, namespace=job.namespace, labels=own, parse=parse_revision, wake=wake
        )

        async def ask_rollout(url: str, seq: int) -> RolloutState:
            return await RolloutClient(pods, url=url).poll_state(seq=seq, wait=wait)

        async def ask_trainer(url: str, seq: int) -> TrainerState:
            return await poll_trainer(pods, url, seq=seq, wait=wait)

        async def ask_gateway(url: str, seq: int) -> GatewayState:
            return await poll_gateway(pods, url, seq=seq, wait=wait)

        clock = context.clock
        self._rollout_answers: Answers[RolloutState] = Answers(ask_rollout, wake=wake, clock=clock)
        self._trainer_answers: Answers[TrainerState] = Answers(ask_trainer, wake=wake, clock=clock)
        self._gateway_answers: Answers[GatewayState] = Answers(ask_gateway, wake=wake, clock=clock)

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        """What must run for as long as the job is observed."""
        watched = [item for item in (self._rollouts, self._children, self._revisions) if item is not None]
        pool = self._pool.tasks() if self._pool is not None else ()
        return [*(item.follow() for item in watched), *pool, self._check_devices()]

    @property
    def synced(self) -> bool:
        """Whether everything that exists has been seen once; a decision before that would be about half the job."""
        watched = [item for item in (self._rollouts, self._children, self._revisions) if item is not None]
        return all(item.synced for item in watched) and (self._pool is None or self._pool.synced)

    def ask_pods(self, job: Job) -> None:
        """Keeps a long poll open to exactly the pods that exist."""
        rollouts = {pod.uid: pod_url(pod, job.spec.port) for pod in self._rollout_pods() if _can_answer(pod)}
        trainers = {pod.uid: pod_url(pod, TRAINER_PORT) for pod in self._own(Component.TRAINER) if _can_answer(pod)}
        gateways = {pod.uid: pod_url(pod, GATEWAY_PORT) for pod in self._own(Component.GATEWAY) if _can_answer(pod)}
        self._rollout_answers.follow(rollouts)
        self._trainer_answers.follow(trainers)
        self._gateway_answers.follow(gateways)

    def snapshot(
        self, job: Job, *, deeds: Deeds, memories: Memories, rivals: tuple[Wish, ...], child_failure: str | None
    ) -> Snapshot:
        """Everything as of now."""
        now = self._context.clock.steady()
        rollouts, trainers = self._rollout_pods(), self._own(Component.TRAINER)
        alive = {pod.uid for pod in (*rollouts, *trainers)}
        self._failed_since = {uid: since for uid, since in self._failed_since.items() if uid in alive}
        self._first_seen = {uid: self._first_seen.get(uid, now) for uid in alive}
        by_uid = {pod.uid: pod for pod in rollouts}
        settings = self._context.settings
        return Snapshot(
            job=job,
            now=now,
            rollouts=tuple(self._rollout_view(pod, now=now, deeds=deeds, memories=memories) for pod in rollouts),
            trainers=tuple(
                self._trainer_view(job, pod, by_uid.get(pod.rollout_uid or ""), now=now) for pod in trainers
            ),
            gateway=self._gateway_view(now) if job.spec.gateway.enabled else None,
            pool=self._pool.view(job, pods=len(rollouts), memories=memories.pool) if self._pool is not None else None,
            revisions=self._revisions.all(),
            devices_claimable=self._devices_claimable,
            trainer_failures=dict(memories.trainer_failures),
            rivals=rivals,
            child_failure=child_failure,
            limits=Limits(stale_after=settings.poll_wait + settings.request_timeout),
        )

    async def close(self) -> None:
        """Asks nobody any more."""
        await self._rollout_answers.close()
        await self._trainer_answers.close()
        await self._gateway_answers.close()

    def _rollout_pods(self) -> list[Pod]:
        if self._rollouts is None:
            owner = self._pool.owner if self._pool is not None else None
            return [pod for pod in self._own(Component.ROLLOUT) if owner is not None and pod.controller == owner]
        found = self._rollouts.all()
        # A wide selector may match the operator's own pods; these are never rollout pods.
        return sorted((pod for pod in found if COMPONENT_LABEL not in pod.labels), key=lambda pod: pod.name)

    def _own(self, component: Component) -> list[Pod]:
        found = (pod for pod in self._children.all() if pod.labels.get(COMPONENT_LABEL) == component.value)
        return sorted(found, key=lambda pod: pod.name)

    def _rollout_view(self, pod: Pod, *, now: float, deeds: Deeds, memories: Memories) -> RolloutView:
        answer = self._rollout_answers.get(pod.uid)
        if answer is None:
            return RolloutView(pod=pod, silent_for=now - self._first_seen[pod.uid])
        heard = answer.received if answer.received is not None else float("-inf")
        return RolloutView(
            pod=pod,
            state=answer.state,
            age=answer.age(now),
            silent_for=answer.silent_for(now),
            fault=answer.fault,
            fault_message=answer.message,
            granting=deeds.pending((GRANT, pod.uid), heard=heard),
            refusals=memories.refusals(pod.uid, answer.state.boot) if answer.state is not None else {},
        )

    def _trainer_view(self, job: Job, pod: Pod, rollout: Pod | None, *, now: float) -> TrainerView:
        answer = self._trainer_answers.get(pod.uid)
        known_for = now - self._first_seen[pod.uid]
        failed = answer is not None and answer.state is not None and answer.state.phase is TrainerPhase.FAILED
        if not failed:
            self._failed_since.pop(pod.uid, None)
        failed_since = self._failed_since.setdefault(pod.uid, now) if failed else now
        outdated = self._outdated(job, pod, rollout)
        if answer is None:
            return TrainerView(pod=pod, known_for=known_for, outdated=outdated)
        return TrainerView(
            pod=pod,
            state=answer.state,
            age=answer.age(now),
            known_for=known_for,
            failed_for=now - failed_since,
            fault=answer.fault,
            fault_message=answer.message,
            outdated=outdated,
        )

    def _gateway_view(self, now: float) -> GatewayView:
        answers = [self._gateway_answers.get(pod.uid) for pod in self._own(Component.GATEWAY)]
        known = [answer for answer in answers if answer is not None]
        if not known:
            return GatewayView(silent_for=0.0)
        newest = min(known, key=lambda answer: answer.age(now))
        return GatewayView(
            state=newest.state if newest.fault is None else None,
            age=newest.age(now),
            silent_for=newest.silent_for(now),
        )

    def _outdated(self, job: Job, pod: Pod, rollout: Pod | None) -> bool:
        if rollout is None or rollout.ip is None or any(claim.claim is None for claim in rollout.claims):
            return False
        wanted = trainer_pod(job, rollout, settings=self._context.settings)
        return pod.template is not None and pod.template != digest(wanted["spec"])

    async def _check_devices(self) -> None:
        while True:
            try:
                self._devices_claimable = await self._context.kube.serves(DEVICE_GROUP)
            except OperatorError as error:
                logger.warning("Could not ask for the cluster's API groups: %s", error)
            await asyncio.sleep(DEVICE_CHECK_INTERVAL)


def _can_answer(pod: Pod) -> bool:
    return pod.ip is not None and not pod.deleting and not pod.finished
