"""Observes one job: its pods and revisions by watches, what they say by long polls; all of it into one snapshot."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tlt_operator.api.claim import Claim, parse_claim
from tlt_operator.api.job import Job, Placement
from tlt_operator.api.names import COMPONENT_LABEL, JOB_LABEL, Component
from tlt_operator.api.pod import Pod, parse_pod
from tlt_operator.api.reasons import Obstacle
from tlt_operator.api.revision import Revision, parse_revision
from tlt_operator.clients.gateway import poll_gateway
from tlt_operator.clients.kube import POD, RESOURCE_CLAIM, REVISION
from tlt_operator.clients.pods import PodClient
from tlt_operator.clients.rollout import RolloutClient
from tlt_operator.clients.trainer import poll_trainer
from tlt_operator.errors import NotServedError, OperatorError, UnauthorizedError
from tlt_operator.manifests.common import digest
from tlt_operator.manifests.trainer_pod import trainer_pod
from tlt_operator.placement.choice import choose
from tlt_operator.placement.strategy import Site
from tlt_operator.plan.actions import GRANT, LOAD
from tlt_operator.plan.shares import Wish
from tlt_operator.plan.snapshot import GatewayView, Limits, RolloutView, Snapshot, TrainerView
from tlt_operator.reconcile.answers import Answers
from tlt_operator.reconcile.context import Context
from tlt_operator.reconcile.objects import Objects
from tlt_operator.reconcile.pool_observer import PoolMemories, PoolObserver
from tlt_workloads.contract import GATEWAY_PORT, TRAINER_PORT, GatewayState, RolloutState, TrainerPhase, TrainerState

CLOSE_WAIT = 2.0  # seconds that a pod of a trial may hold back an answer without news: what it drafts is none


class Deeds(Protocol):
    """What was done lately that the pods' answers cannot show yet."""

    def pending(self, key: tuple[str, str], *, heard: float) -> bool: ...
    def under_way_since(self, key: tuple[str, str], *, heard: float) -> float | None: ...
    def held_back(self, key: tuple[str, str]) -> bool: ...


class Memories(Protocol):
    """What pods and trainers did wrong lately, and what was done about the pool."""

    @property
    def trainer_failures(self) -> Mapping[str, Obstacle]: ...
    @property
    def pool(self) -> PoolMemories: ...
    def refusals(self, uid: str, boot: str) -> Mapping[str, str]: ...


def pod_url(pod: Pod, port: int) -> str:
    """Base URL of a pod's port."""
    ip = pod.ip or ""
    return f"http://[{ip}]:{port}" if ":" in ip else f"http://{ip}:{port}"


@dataclass(frozen=True, kw_only=True)
class _Pods:
    """The job's pods by what they are, sorted by name."""

    version: int = -1
    rollouts: tuple[Pod, ...] = ()
    trainers: tuple[Pod, ...] = ()
    gateways: tuple[Pod, ...] = ()
    lighthouses: tuple[Pod, ...] = ()
    by_uid: Mapping[str, Pod] = field(default_factory=dict)  # of the rollout pods


@dataclass(frozen=True, kw_only=True)
class _Doings:
    """What is done about a pod that its last answer cannot show yet."""

    granting: bool
    loading_since: float | None
    load_held_back: bool
    refusals: Mapping[str, str]


@dataclass(frozen=True)
class _Seen:
    """A view, and what it was made from."""

    pod: Pod
    version: int  # of the answer
    shown: bool
    doings: _Doings
    view: RolloutView

    def holds(self, pod: Pod, version: int, shown: bool, doings: _Doings) -> bool:
        """Whether the same would come out again."""
        return self.pod is pod and self.version == version and self.shown == shown and self.doings == doings


class Observer:
    """Keeps everything current that a decision about the job needs, and calls `wake` at each change."""

    def __init__(self, context: Context, job: Job, pods: PodClient, *, wake: Callable[[], None]) -> None:
        self._context = context
        self._pods = _Pods()
        self._closely: frozenset[str] = frozenset()  # URLs
        self._asked: tuple[int, int] | None = None  # the pods that are asked, as of this version, and their port
        self._views: dict[str, _Seen] = {}
        self._first_seen: dict[str, float] = {}
        self._failed_since: dict[str, float] = {}
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
        self._site = Site()
        self._site_version: tuple[int, OperatorError | None] | None = None
        # A claim that was made from a template has no label by which to choose it.
        self._claims: Objects[Claim] = Objects(
            context.kube, RESOURCE_CLAIM, namespace=job.namespace, labels="", parse=parse_claim, wake=wake
        )

        async def ask_rollout(url: str, seq: int) -> RolloutState:
            patience = min(wait, CLOSE_WAIT) if url in self._closely else wait
            return await RolloutClient(pods, url=url).poll_state(seq=seq, wait=patience)

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
        return [*(item.follow() for item in watched), self._claims.follow(), *pool]

    @property
    def synced(self) -> bool:
        """Whether everything that exists has been seen once; a decision before that would be about half the job."""
        watched = [item for item in (self._rollouts, self._children, self._revisions) if item is not None]
        if self._pool is not None and not self._pool.synced:
            return False
        return all(item.synced for item in watched) and (self._claims.synced or self._without_claims)

    @property
    def _without_claims(self) -> bool:
        """Whether claims were never seen and will not be before somebody changes something.

        Claims that were seen once stay as they were: an API server that restarts may refuse for a moment.
        """
        return not self._claims.synced and isinstance(self._claims.trouble, NotServedError | UnauthorizedError)

    def ask_pods(self, job: Job) -> None:
        """Keeps a long poll open to exactly the pods that exist."""
        pods = self._known_pods()
        if self._asked == (pods.version, job.spec.port):
            return
        self._asked = (pods.version, job.spec.port)
        self._rollout_answers.follow({it.uid: pod_url(it, job.spec.port) for it in pods.rollouts if _can_answer(it)})
        self._trainer_answers.follow({it.uid: pod_url(it, TRAINER_PORT) for it in pods.trainers if _can_answer(it)})
        self._gateway_answers.follow({it.uid: pod_url(it, GATEWAY_PORT) for it in pods.gateways if _can_answer(it)})

    def ask_closely(self, job: Job, uids: Iterable[str]) -> None:
        """Asks these rollout pods often for what they count while their state stays as it is."""
        pods, before = self._known_pods().by_uid, self._closely
        wanted = {uid: pod_url(pods[uid], job.spec.port) for uid in uids if uid in pods}
        self._closely = frozenset(wanted.values())
        # A long poll that is open already would first last to its end.
        self._rollout_answers.ask_anew(uid for uid, url in wanted.items() if url not in before)

    def snapshot(
        self, job: Job, *, deeds: Deeds, memories: Memories, rivals: tuple[Wish, ...], child_failure: str | None
    ) -> Snapshot:
        """Everything as of now."""
        now = self._context.clock.steady()
        pods, site, settings = self._known_pods(), self._known_site(), self._context.settings
        shown = job.spec.placement.strategy is Placement.VISIBLE_DEVICES
        views = tuple(self._rollout_view(pod, deeds=deeds, memories=memories, shown=shown) for pod in pods.rollouts)
        by_uid = {view.pod.uid: view.pod for view in views} if shown else pods.by_uid
        return Snapshot(
            job=job,
            now=now,
            rollouts=views,
            trainers=tuple(
                self._trainer_view(job, pod, by_uid.get(pod.rollout_uid or ""), now=now, site=site)
                for pod in pods.trainers
            ),
            gateway=self._gateway_view(pods.gateways, now) if job.spec.gateway.enabled else None,
            lighthouse_ready=any(pod.ready and not pod.deleting for pod in pods.lighthouses),
            pool=self._pool.view(job, pods=len(views), memories=memories.pool) if self._pool is not None else None,
            revisions=self._revisions.all(),
            site=site,
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

    def _known_site(self) -> Site:
        """Made anew only when a claim has changed."""
        version, trouble = self._claims.version, self._claims.trouble if self._without_claims else None
        if self._site_version != (version, trouble):
            self._site, self._site_version = self._make_site(trouble), (version, trouble)
        return self._site

    def _make_site(self, trouble: OperatorError | None) -> Site:
        return Site(
            claims={claim.name: claim for claim in self._claims.all()},
            claims_served=not isinstance(trouble, NotServedError),
            claims_hidden=str(trouble) if isinstance(trouble, UnauthorizedError) else None,
            visible_devices=self._context.settings.visible_devices,
        )

    def _known_pods(self) -> _Pods:
        """Sorted by name and kind; sorted anew only when one has changed."""
        adopted, own, pool = self._rollouts, self._children, self._pool
        version = own.version + sum(item.version for item in (adopted, pool) if item is not None)
        if self._pods.version == version:
            return self._pods
        # A wide selector may match the operator's own pods; only a pool makes rollout pods of these.
        found = [pod for pod in (adopted.all() if adopted is not None else ()) if COMPONENT_LABEL not in pod.labels]
        found += [pod for pod in own.all() if pool is not None and pool.owns(pod)]
        by_component: dict[str | None, list[Pod]] = {}
        for pod in own.all():
            by_component.setdefault(pod.labels.get(COMPONENT_LABEL), []).append(pod)
        self._pods = pods = _Pods(
            version=version,
            rollouts=_by_name(found),
            trainers=_by_name(by_component.get(Component.TRAINER.value, ())),
            gateways=_by_name(by_component.get(Component.GATEWAY.value, ())),
            lighthouses=_by_name(by_component.get(Component.LIGHTHOUSE.value, ())),
            by_uid={pod.uid: pod for pod in found},
        )
        now = self._context.clock.steady()
        alive = {pod.uid for pod in (*pods.rollouts, *pods.trainers)}
        self._views = {uid: known for uid, known in self._views.items() if uid in alive}
        self._failed_since = {uid: since for uid, since in self._failed_since.items() if uid in alive}
        self._first_seen = {uid: self._first_seen.get(uid, now) for uid in alive}
        return pods

    def _rollout_view(self, pod: Pod, *, deeds: Deeds, memories: Memories, shown: bool) -> RolloutView:
        """The view of the last pass, unless there is news of the pod; `shown`: the pod says which devices it has."""
        answer = self._rollout_answers.get(pod.uid)
        if answer is None:
            return RolloutView(pod=pod, silent_since=self._first_seen[pod.uid])
        heard_at = answer.received if answer.received is not None else float("-inf")
        doings = _Doings(
            granting=deeds.pending((GRANT, pod.uid), heard=heard_at),
            loading_since=deeds.under_way_since((LOAD, pod.uid), heard=heard_at),
            load_held_back=deeds.held_back((LOAD, pod.uid)),
            refusals=dict(memories.refusals(pod.uid, answer.state.boot)) if answer.state is not None else {},
        )
        known = self._views.get(pod.uid)
        if known is not None and known.holds(pod, answer.version, shown, doings):
            return known.view
        named = answer.state.visible_devices if answer.state is not None else None
        view = RolloutView(
            pod=replace(pod, visible_devices=named) if shown and pod.visible_devices is None else pod,
            state=answer.state,
            heard_at=heard_at,
            silent_since=answer.silent_since,
            fault=answer.fault,
            fault_message=answer.message,
            granting=doings.granting,
            refusals=doings.refusals,
            loading_since=doings.loading_since,
            load_held_back=doings.load_held_back,
        )
        self._views[pod.uid] = _Seen(pod=pod, version=answer.version, shown=shown, doings=doings, view=view)
        return view

    def _trainer_view(self, job: Job, pod: Pod, rollout: Pod | None, *, now: float, site: Site) -> TrainerView:
        answer = self._trainer_answers.get(pod.uid)
        known_for = now - self._first_seen[pod.uid]
        failed = answer is not None and answer.state is not None and answer.state.phase is TrainerPhase.FAILED
        if not failed:
            self._failed_since.pop(pod.uid, None)
        failed_since = self._failed_since.setdefault(pod.uid, now) if failed else now
        outdated = self._outdated(job, pod, rollout, site)
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

    def _gateway_view(self, gateways: tuple[Pod, ...], now: float) -> GatewayView:
        answers = [self._gateway_answers.get(pod.uid) for pod in gateways]
        known = [answer for answer in answers if answer is not None]
        if not known:
            return GatewayView(silent_for=0.0)
        newest = min(known, key=lambda answer: answer.age(now))
        return GatewayView(
            state=newest.state if newest.fault is None else None,
            age=newest.age(now),
            silent_for=now - newest.silent_since,
        )

    def _outdated(self, job: Job, pod: Pod, rollout: Pod | None, site: Site) -> bool:
        if rollout is None or rollout.ip is None or pod.template is None:
            return False
        placement = choose(job.spec.placement)
        if placement.obstacle(rollout, site) is not None or not placement.ready(rollout, site):
            return False
        wanted = trainer_pod(job, rollout, settings=self._context.settings, site=site)
        return pod.template != digest(wanted["spec"])


def _by_name(pods: Iterable[Pod]) -> tuple[Pod, ...]:
    return tuple(sorted(pods, key=lambda pod: pod.name))


def _can_answer(pod: Pod) -> bool:
    return pod.ip is not None and not pod.deleting and not pod.finished
