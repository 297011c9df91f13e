"""Carries out single actions against the API server and the pods."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tlt_operator.api.job import Job
from tlt_operator.api.names import EventReason, RevisionPhase
from tlt_operator.api.pod import Pod
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
)
from tlt_operator.plan.revisions import revision_url
from tlt_operator.plan.snapshot import Snapshot
from tlt_operator.plan.status import revision_status
from tlt_operator.reconcile.context import Context
from tlt_operator.reconcile.observer import pod_url
from tlt_operator.reconcile.pool_keeper import PoolKeeper
from tlt_operator.reconcile.recorder import Recorder
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
        self._rollouts: dict[str, Pod] = {}
        self._trainers: dict[str, Pod] = {}
        self._boots: dict[str, str] = {}
        self._marks: dict[str, tuple[MarkRevision, float]] = {}
        self._refusals: dict[tuple[str, str], dict[str, str]] = {}
        self._job: Job | None = None
        self._failure_counts: dict[str, int] = {}  # by rollout uid, in a row
        self.trainer_failures: dict[str, str] = {}
        self.pool = PoolKeeper(context, recorder, ask=self._ask)

    def look(self, snapshot: Snapshot) -> None:
        """Takes over what uids stand for now."""
        self._job = snapshot.job
        self.pool.look(snapshot)
        self._rollouts = {view.pod.uid: view.pod for view in snapshot.rollouts}
        self._trainers = {view.pod.uid: view.pod for view in snapshot.trainers}
        self._boots = {view.pod.uid: view.state.boot for view in snapshot.rollouts if view.state is not None}
        alive = set(self._boots.items())
        self._refusals = {key: value for key, value in self._refusals.items() if key in alive}
        self.trainer_failures = {
            uid: failure for uid, failure in self.trainer_failures.items() if uid in self._rollouts
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
                if action.rollout_uid in self._rollouts:
                    await self._rollout(job, action.rollout_uid).configure(action.config)
            case LoadDrafter():
                await self._load(job, action)
            case CreateRevision():
                await self._create_revision(job, action)
            case MarkRevision():
                await self._mark(job, action)
            case ApplyPool():
                await self.pool.apply(job, action)
            case ReplacePod():
                await self.pool.replace(job, action)

    def _rollout(self, job: Job, uid: str) -> RolloutClient:
        return RolloutClient(self._pods, url=pod_url(self._rollouts[uid], job.spec.port))

    async def _ask(self, job: Job, pod: Pod) -> RolloutState:
        return await RolloutClient(self._pods, url=pod_url(pod, job.spec.port)).poll_state(seq=0, wait=0)

    async def _grant(self, job: Job, action: GrantLease) -> None:
        rollout, trainer = self._rollouts.get(action.rollout_uid), self._trainers.get(action.trainer_uid)
        if rollout is None or trainer is None:
            return
        leases = self._context.metrics.leases
        try:
            await self._rollout(job, rollout.uid).grant_lease(action.request)
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
        rollout = self._rollouts.get(action.rollout_uid)
        if rollout is None:
            return
        await self._rollout(job, rollout.uid).revoke_lease(action.reason)
        self._recorder.normal(
            job,
            EventReason.LEASE_REVOKED,
            f"Device of pod {rollout.name} asked back: {action.why}",
            subject=rollout.name,
        )

    async def _create_trainer(self, job: Job, action: CreateTrainer) -> None:
        rollout = self._rollouts.get(action.rollout_uid)
        if rollout is None:
            return
        settings = self._context.settings
        try:
            if not (job.spec.training.template.image or settings.workloads_image):
                raise InvalidSettingsError(
                    "spec.training.template.image: set it, or TLT_WORKLOADS_IMAGE of the operator"
                )
            created = await self._context.kube.create(trainer_pod(job, rollout, settings=settings))
        except ConflictError:
            raise  # the last trainer of this name is still going away
        except (RefusedError, UnauthorizedError) as error:
            message = f"the API server refuses the trainer pod, see spec.training.template: {error}"
            self._count_failure(rollout.uid, message)
            raise
        except InvalidSettingsError as error:
            self._count_failure(rollout.uid, str(error))
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
        if action.failure is not None and trainer.rollout_uid is not None:
            self._count_failure(trainer.rollout_uid, action.failure)
            self._recorder.warning(
                job,
                EventReason.TRAINER_FAILED,
                f"Trainer pod {trainer.name}: {action.failure}",
                subject=trainer.name,
            )
        await self._context.kube.delete(POD, namespace=job.namespace, name=trainer.name, uid=trainer.uid)
        self._count_write(job, "Pod")
        self._recorder.normal(
            job,
            EventReason.TRAINER_DELETED,
            f"Trainer pod {trainer.name} deleted: {action.why}",
            subject=trainer.name,
        )

    async def _load(self, job: Job, action: LoadDrafter) -> None:
        rollout = self._rollouts.get(action.rollout_uid)
        boot = self._boots.get(action.rollout_uid, "")
        if rollout is None:
            return
        try:
            loaded = await self._rollout(job, rollout.uid).load_drafter(action.load)
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

    async def _create_revision(self, job: Job, action: CreateRevision) -> None:
        manifest = action.manifest
        try:
            await self._context.kube.create(drafter_revision(job, manifest, url=revision_url(job, manifest.revision)))
        except ConflictError:
            return  # it exists; the watch will tell
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
        if action.phase is RevisionPhase.ACTIVE:
            self._recorder.normal(job, EventReason.REVISION_ACTIVE, f"Revision {name}: {action.message}", subject=name)
        elif action.phase is RevisionPhase.ROLLED_BACK:
            self._context.metrics.rollbacks.labels(job=job.key).inc()
            self._recorder.warning(
                job, EventReason.REVISION_ROLLED_BACK, f"Revision {name}: {action.message}", subject=name
            )

    def _count_failure(self, rollout_uid: str, failure: str) -> None:
        count = self._failure_counts[rollout_uid] = self._failure_counts.get(rollout_uid, 0) + 1
        self.trainer_failures[rollout_uid] = failure
        self._hold_back(
            (CREATE_TRAINER, rollout_uid), float(min(TRAINER_LAST_RETRY, TRAINER_RETRY * 2 ** min(count - 1, 10)))
        )

    def _count_write(self, job: Job, kind: str) -> None:
        self._context.metrics.api_writes.labels(job=job.key, kind=kind).inc()


def _worth_writing(mark: MarkRevision, written: MarkRevision, *, since: float) -> bool:
    if (mark.phase, mark.message, mark.pods) != (written.phase, written.message, written.pods):
        return True
    return mark.evidence != written.evidence and since >= EVIDENCE_INTERVAL
