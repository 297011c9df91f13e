"""Carries out what is decided about a pool: writes its StatefulSet, and takes pods away that nobody uses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from tlt_operator.api.job import Job
from tlt_operator.api.names import EventReason, pool_name
from tlt_operator.api.pod import Pod
from tlt_operator.clients.kube import CLAIM_TEMPLATE, POD, Object
from tlt_operator.errors import BusyError, FinalError, InvalidSpecError, NotFoundError
from tlt_operator.manifests.pool import claim_template, claim_template_name, pool_selector, pool_set
from tlt_operator.plan.actions import ApplyPool, ReplacePod
from tlt_operator.plan.snapshot import Snapshot
from tlt_operator.reconcile.children import apply_own, is_of
from tlt_operator.reconcile.context import Context
from tlt_operator.reconcile.recorder import Recorder
from tlt_workloads.contract import RolloutState

Ask = Callable[[Job, Pod], Awaitable[RolloutState]]


class PoolKeeper:
    """The pool of one job.  `look` must be called with each new snapshot, before its actions are started.

    `ask` asks a rollout pod for its state now.
    """

    def __init__(self, context: Context, recorder: Recorder, *, ask: Ask) -> None:
        self._context = context
        self._recorder = recorder
        self._ask = ask
        self._pods: Mapping[str, Pod] = {}
        self.removed: frozenset[str] = frozenset()  # pods (uids) deleted, as long as the watch shows them as before
        self.generation: int | None = None  # of the StatefulSet as it was last applied
        self.refusal: str | None = None  # why it could not be applied

    def look(self, snapshot: Snapshot) -> None:
        """Takes over what uids stand for now."""
        self._pods = {view.pod.uid: view.pod for view in snapshot.rollouts}
        self.removed &= {view.pod.uid for view in snapshot.rollouts if not view.pod.deleting}

    async def apply(self, job: Job, action: ApplyPool) -> None:
        """Writes the StatefulSet.

        Raises:
            BusyError: a pod that this would take away has work again.
            FinalError: the API server refuses it; `refusal` says so until the next success.
        """
        for uid in action.removed:
            await self._confirm_unused(job, uid)
        name = pool_name(job.name)
        try:
            applied = await self._apply_set(job, replicas=action.replicas)
        except NotFoundError as error:
            self.refusal = f"the cluster does not serve resource.k8s.io/v1, or the namespace is gone: {error}"
            raise
        except FinalError as error:
            self.refusal = f"StatefulSet {name} was not taken: {error}"
            raise
        generation, before = applied["metadata"].get("generation"), self.generation
        self.generation, self.refusal = generation, None
        if generation != before:
            self._count_write(job, "StatefulSet")
            self._recorder.normal(
                job,
                EventReason.POOL_APPLIED,
                f"StatefulSet {name} keeps {action.replicas} pods of template {action.template}",
                subject=name,
            )

    async def _apply_set(self, job: Job, *, replicas: int) -> Object:
        """Applies StatefulSet and claim template, deletes templates that it no longer names; the StatefulSet then."""
        kube, pool = self._context.kube, job.spec.rollout.pool
        if pool is None:
            raise InvalidSpecError("spec.rollout.pool", "it is not set")
        await kube.apply(claim_template(job, pool))
        applied, conflict = await apply_own(
            kube, job, pool_set(job, pool, replicas=replicas, settings=self._context.settings)
        )
        if conflict:
            name = f"StatefulSet {pool_name(job.name)}"
            message = f"Set back what somebody else had changed in {name}: {conflict}"
            self._recorder.warning(job, EventReason.FIELD_SET_BACK, message, subject=name)
        wanted = claim_template_name(job, pool)
        for found in await kube.list_all(CLAIM_TEMPLATE, namespace=job.namespace, labels=pool_selector(job)):
            metadata = found["metadata"]
            if metadata["name"] != wanted and is_of(job, found):
                await kube.delete(CLAIM_TEMPLATE, namespace=job.namespace, name=metadata["name"], uid=metadata["uid"])
        return applied

    async def replace(self, job: Job, action: ReplacePod) -> None:
        """Deletes a pod; the StatefulSet's controller makes the one in its place.

        Raises:
            BusyError: it has work again.
        """
        pod = self._pods.get(action.rollout_uid)
        if pod is None:
            return
        await self._confirm_unused(job, pod.uid)
        self.removed |= {pod.uid}
        try:
            await self._context.kube.delete(POD, namespace=job.namespace, name=pod.name, uid=pod.uid)
        except FinalError:
            self.removed -= {pod.uid}  # refused, so it is still there; after any other error it may be gone
            raise
        self._count_write(job, "Pod")
        self._recorder.normal(
            job,
            EventReason.POD_REPLACED,
            f"Pod {pod.name} deleted: template {action.template} takes the place of {pod.template}",
            subject=pod.name,
        )

    async def _confirm_unused(self, job: Job, uid: str) -> None:
        """Asks a pod that serves once more: a request may have come since it was last heard."""
        pod = self._pods.get(uid)
        if pod is None or pod.finished or not pod.started:
            return
        state = await self._ask(job, pod)
        if not state.idle or state.lease is not None:
            raise BusyError(f"pod {pod.name} is not idle any more")

    def _count_write(self, job: Job, kind: str) -> None:
        self._context.metrics.api_writes.labels(job=job.key, kind=kind).inc()
