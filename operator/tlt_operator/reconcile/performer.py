"""Carries out single actions against the API server and the pods."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from tlt_operator.api.job import Job
from tlt_operator.api.names import EventReason, Reason, RevisionPhase
from tlt_operator.api.pod import Pod
from tlt_operator.api.reasons import Obstacle
from tlt_operator.clients.kube import POD, REVISION
from tlt_operator.clients.pods import PodClient
from tlt_operator.clients.rollout import RolloutClient
from tlt_operator.errors import (
    ConflictError,
    FinalError,
    InvalidSettingsError,
    OperatorError,
    RefusedError,
    UnauthorizedError,
)
from tlt_operator.manifests.revision import drafter_revision
from tlt_operator.manifests.trainer_pod import trainer_pod
from tlt_operator.placement.strategy import Site
from tlt_operator.plan.actions import (
    CREATE_TRAINER,
    Action,
    ApplyPool,
    Configure,
    CreateRevision,
    CreateTrainer,
    DeleteTrainer,
    GrantLease,
    LoadDrafter,
    MarkRevision,
    ReplacePod,
    RevokeLease,
    UnloadDrafter,
)
from tlt_operator.plan.candidates import revision_url
from tlt_operator.plan.revision_status import revision_status
from tlt_operator.plan.snapshot import Snapshot
from tlt_operator.reconcile.children import is_of
from tlt_operator.reconcile.context import Context
from tlt_operator.reconcile.observer import pod_url
from tlt_operator.reconcile.pool_keeper import PoolKeeper
from tlt_operator.reconcile.recorder import Recorder
from tlt_operator.reconcile.refusals import why_refused
from tlt_operator.telemetry import timeline
from tlt_workloads.contract import RolloutState

EVIDENCE_INTERVAL = 30.0  # seconds between two writes that only move a revision's live figures
TRAINER_RETRY = 5.0  # seconds until a trainer that failed is tried again, doubled with each failure
TRAINER_LAST_RETRY = 300.0


class Performer:
    """Actions of one job.  `look` must be called with each new snapshot, before its actions are started.

    `hold_back(key, seconds)` keeps actions of a key from being started again too soon.
    """

    def __init__(
        self,
        context: Context,
        pods: PodClient,
        recorder: Recorder,
        *,
        hold_back: Callable[[tuple[str, str], float], None],
    ) -> None:
        self._hold_back = hold_back
        self._context = context
        self._pods = pods
        self._recorder = recorder
        self._snapshot: Snapshot | None = None
        self._trainers: dict[str, Pod] = {}
        self._site = Site()
        self._marks: dict[str, tuple[MarkRevision, float]] = {}
        self._refusals: dict[tuple[str, str], dict[str, str]] = {}
        self._job: Job | None = None
        self._failure_counts: dict[str, int] = {}  # by rollout uid, in a row
        self.trainer_failures: dict[str, Obstacle] = {}
        self.pool = PoolKeeper(context, recorder, ask=self._ask)

    def look(self, snapshot: Snapshot) -> None:
        """Takes over what uids stand for now."""
        self._job, self._site = snapshot.job, snapshot.site
        self._snapshot = snapshot
        self.pool.look(snapshot)
        self._trainers = {view.pod.uid: view.pod for view in snapshot.trainers}
        self._refusals = {key: value for key, value in self._refusals.items() if self._boot(key[0]) == key[1]}
        self.trainer_failures = {
            uid: failure for uid, failure in self.trainer_failures.items() if self._pod(uid) is not None
        }

    def refusals(self, uid: str, boot: str) -> Mapping[str, str]:
        """Revisions that this boot of a pod refused, with the reason."""
        return self._refusals.get((uid, boot), {})

    def trainer_works(self, trainer: Pod) -> None:
        """Forgets what went wrong before: this trainer has come up."""
        if trainer.rollout_uid is not None:
            self.trainer_failures.pop(trainer.rollout_uid, None)
            self._failure_counts.pop(trainer.rollout_uid, None)

    async def perform(self, action: Action) -> None:
        """Carries out one action; what it acts on may be gone by now, which is no error."""
        job = self._job
        if job is None:
            return
        match action:
            case GrantLease():
                await self._grant(job, action)
            case RevokeLease():
                await self._revoke(job, action)
            case CreateTrainer():
                await self._create_trainer(job, action)
            case DeleteTrainer():
                await self._delete_trainer(job, action)
            case Configure():
                rollout = self._pod(action.rollout_uid)
                if rollout is not None:
                    await self._client(job, rollout).configure(action.config)
            case LoadDrafter():
                await self._load(job, action)
            case UnloadDrafter():
                await self._unload(job, action)
            case CreateRevision():
                await self._create_revision(job, action)
            case MarkRevision():
                await self._mark(job, action)
            case ApplyPool():
                await self.pool.apply(job, action)
            case ReplacePod():
                await self.pool.replace(job, action)

    def _client(self, job: Job, rollout: Pod) -> RolloutClient:
        return RolloutClient(self._pods, url=pod_url(rollout, job.spec.port))

    def _pod(self, uid: str) -> Pod | None:
        view = self._snapshot.by_uid.get(uid) if self._snapshot is not None else None
        return view.pod if view is not None else None

    def _boot(self, uid: str) -> str:
        view = self._snapshot.by_uid.get(uid) if self._snapshot is not None else None
        return view.state.boot if view is not None and view.state is not None else ""

    async def _ask(self, job: Job, pod: Pod) -> RolloutState:
        return await self._client(job, pod).poll_state(seq=0, wait=0)

    async def _grant(self, job: Job, action: GrantLease) -> None:
        rollout, trainer = self._pod(action.rollout_uid), self._trainers.get(action.trainer_uid)
        if rollout is None or trainer is None:
            return
        leases = self._context.metrics.leases
        try:
            await self._client(job, rollout).grant_lease(action.request)
        except OperatorError:
            leases.labels(job=job.key, result="refused").inc()
            raise
        leases.labels(job=job.key, result="granted").inc()
        self._recorder.normal(
            job,
            EventReason.LEASE_GRANTED,
            f"Device of pod {rollout.name} lent to {trainer.name}",
            subject=rollout.name,
        )

    async def _revoke(self, job: Job, action: RevokeLease) -> None:
        rollout = self._pod(action.rollout_uid)
        if rollout is None:
            return
        await self._client(job, rollout).revoke_lease(action.reason)
        self._recorder.normal(
            job,
            EventReason.LEASE_REVOKED,
            f"Device of pod {rollout.name} asked back: {action.why}",
            subject=rollout.name,
        )

    async def _create_trainer(self, job: Job, action: CreateTrainer) -> None:
        rollout = self._pod(action.rollout_uid)
        if rollout is None:
            return
        settings = self._context.settings
        try:
            if not (job.spec.training.template.image or settings.workloads_image):
                raise InvalidSettingsError(
                    "spec.training.template.image: set it, or TLT_WORKLOADS_IMAGE of the operator"
                )
            created = await self._context.kube.create(trainer_pod(job, rollout, settings=settings, site=self._site))
        except ConflictError:
            raise  # the last trainer of this name is still going away
        except (RefusedError, UnauthorizedError) as error:
            refusal = why_refused(error)
            self._count_failure(rollout.uid, refusal)
            # Quotas and classes are the same for all devices of the job: one Event, not one for each.
            self._recorder.warning(job, EventReason.TRAINER_REFUSED, refusal.message, subject=refusal.reason.value)
            raise
        except InvalidSettingsError as error:
            self._count_failure(rollout.uid, Obstacle(reason=Reason.TRAINER_FAILED, message=str(error)))
            raise
        self._count_write(job, "Pod")
        self._recorder.normal(
            job,
            EventReason.TRAINER_CREATED,
            f"Trainer pod {created['metadata']['name']} created on the device of pod {rollout.name}",
            subject=rollout.name,
        )

    async def _delete_trainer(self, job: Job, action: DeleteTrainer) -> None:
        trainer = self._trainers.get(action.trainer_uid)
        if trainer is None:
            return
        await self._context.kube.delete(POD, namespace=job.namespace, name=trainer.name, uid=trainer.uid)
        # Not before: a deletion that must be tried again is one failure of the trainer all the same.
        if action.failure is not None and trainer.rollout_uid is not None:
            self._count_failure(trainer.rollout_uid, Obstacle(reason=action.reason, message=action.failure))
            self._recorder.warning(
                job,
                EventReason.TRAINER_FAILED,
                f"Trainer pod {trainer.name}: {action.failure}",
                subject=trainer.name,
            )
        self._count_write(job, "Pod")
        self._recorder.normal(
            job,
            EventReason.TRAINER_DELETED,
            f"Trainer pod {trainer.name} deleted: {action.why}",
            subject=trainer.name,
        )

    async def _load(self, job: Job, action: LoadDrafter) -> None:
        await asyncio.sleep(action.delay)
        rollout = self._pod(action.rollout_uid)
        boot = self._boot(action.rollout_uid)
        if rollout is None:
            return
        try:
            loaded = await self._client(job, rollout).load_drafter(action.load)
        except RefusedError as error:
            self._refusals.setdefault((rollout.uid, boot), {})[action.load.revision] = str(error)
            raise
        timeline.write(
            at=self._context.clock.wall(),
            job=job.key,
            kind="swap",
            pod=rollout.name,
            revision=loaded.revision,
            seconds=round(loaded.seconds, 4),
            stall=round(loaded.stall, 4),
        )
        if loaded.policy_checksum_before != loaded.policy_checksum_after:
            raise FinalError(f"pod {rollout.name}: loading {loaded.revision} changed the policy's weights")

    async def _unload(self, job: Job, action: UnloadDrafter) -> None:
        rollout = self._pod(action.rollout_uid)
        if rollout is None:
            return
        await self._client(job, rollout).unload_drafter()
        timeline.write(at=self._context.clock.wall(), job=job.key, kind="swap", pod=rollout.name, revision=None)

    async def _create_revision(self, job: Job, action: CreateRevision) -> None:
        manifest = action.manifest
        try:
            await self._context.kube.create(drafter_revision(job, manifest, url=revision_url(job, manifest.revision)))
        except ConflictError:
            found = await self._context.kube.find(REVISION, namespace=job.namespace, name=manifest.revision)
            if found is None or is_of(job, found):
                return  # it exists and the watch will tell, or it is just going away
            raise RefusedError(
                f"DrafterRevision {manifest.revision} exists and is not of this job; delete it to let the new one in"
            ) from None
        self._count_write(job, "DrafterRevision")
        evaluation = manifest.evaluation
        parent = (
            f", its parent {evaluation.parent_accept_length:.3f}" if evaluation.parent_accept_length is not None else ""
        )
        self._recorder.normal(
            job,
            EventReason.REVISION_CREATED,
            f"Revision {manifest.revision}: accept length {evaluation.accept_length:.3f} on held-out data{parent}",
            subject=manifest.revision,
        )

    async def _mark(self, job: Job, action: MarkRevision) -> None:
        name, now = action.revision.name, self._context.clock.steady()
        written = self._marks.get(name)
        if written is not None and not _worth_writing(action, written[0], since=now - written[1]):
            return
        found = await self._context.kube.find(REVISION, namespace=job.namespace, name=name)
        if found is None:
            return
        before = found.get("status") or {}
        status = revision_status(action, previous=before, now=self._context.clock.timestamp())
        await self._context.kube.patch_status(REVISION, namespace=job.namespace, name=name, status=status)
        self._count_write(job, "DrafterRevision")
        self._marks[name] = (action, now)
        if before.get("phase") != action.phase.value:
            self._tell_phase(job, action, before.get("phase"))

    def _tell_phase(self, job: Job, action: MarkRevision, before: str | None) -> None:
        name = action.revision.name
        timeline.write_transition(
            at=self._context.clock.wall(),
            job=job.key,
            kind="revision",
            pod=name,
            from_state=before,
            to_state=action.phase.value,
        )
        told = f"Revision {name}: {action.ruling.words if action.ruling is not None else action.message}"
        if action.phase is RevisionPhase.CANARY:
            self._recorder.normal(job, EventReason.REVISION_ON_TRIAL, told, subject=name)
        elif action.phase is RevisionPhase.ACTIVE:
            self._recorder.normal(job, EventReason.REVISION_ACTIVE, told, subject=name)
        elif action.phase is RevisionPhase.ROLLED_BACK:
            self._context.metrics.rollbacks.labels(job=job.key).inc()
            self._recorder.warning(job, EventReason.REVISION_ROLLED_BACK, told, subject=name)

    def _count_failure(self, rollout_uid: str, failure: Obstacle) -> None:
        count = self._failure_counts[rollout_uid] = self._failure_counts.get(rollout_uid, 0) + 1
        self.trainer_failures[rollout_uid] = failure
        self._hold_back(
            (CREATE_TRAINER, rollout_uid), float(min(TRAINER_LAST_RETRY, TRAINER_RETRY * 2 ** min(count - 1, 10)))
        )

    def _count_write(self, job: Job, kind: str) -> None:
        self._context.metrics.api_writes.labels(job=job.key, kind=kind).inc()


def _worth_writing(mark: MarkRevision, written: MarkRevision, *, since: float) -> bool:
    if mark.ruling is not None and mark.ruling != written.ruling:
        return True
    if (mark.phase, mark.message, mark.pods) != (written.phase, written.message, written.pods):
        return True
    moved = (mark.evidence, mark.trial) != (written.evidence, written.trial)
    return moved and since >= EVIDENCE_INTERVAL
