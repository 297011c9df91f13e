"""The loop of one TLTJob: observe, decide, act, tell."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any

from tlt_operator.api.job import Job
from tlt_operator.api.names import EventReason, token_secret_name
from tlt_operator.api.token import TokenStage, parse_tokens
from tlt_operator.clients.kube import POD
from tlt_operator.clients.pods import PodClient
from tlt_operator.clients.rollout import RolloutClient
from tlt_operator.errors import BusyError, FinalError, OperatorError
from tlt_operator.manifests.gateway import gateway_url
from tlt_operator.plan.actions import Action, GrantLease, action_key
from tlt_operator.plan.decision import Decision, Memory, decide
from tlt_operator.plan.lending import LeaseTerms
from tlt_operator.plan.rotation import RotationRule, due_in
from tlt_operator.plan.shares import Wish
from tlt_operator.plan.snapshot import Fault, Snapshot
from tlt_operator.plan.status import job_status, ledger_of
from tlt_operator.plan.worker import WorkerState
from tlt_operator.reconcile.answers import cancel
from tlt_operator.reconcile.backoff import LONGEST_FINAL, Backoff
from tlt_operator.reconcile.children import (
    ensure_gateway,
    ensure_lighthouse,
    ensure_network_policies,
    ensure_pool,
    ensure_token,
    rotate_token,
)
from tlt_operator.reconcile.context import Context
from tlt_operator.reconcile.effects import Effects
from tlt_operator.reconcile.observer import Observer, pod_url
from tlt_operator.reconcile.performer import Performer
from tlt_operator.reconcile.recorder import Recorder
from tlt_operator.reconcile.reporter import Reporter
from tlt_operator.reconcile.status_writer import StatusWriter
from tlt_workloads.contract import RevokeReason, TrainerPhase

FAREWELL = 3.0  # seconds to take leases back when a job was deleted
PASS_SHARE = 0.3  # of its time that a loop spends on passes, at most: with many pods, news of several share a pass
LONGEST_PAUSE = 0.1  # seconds between two passes, whatever one costs
TOKEN_INTERVAL = 15.0  # seconds between two looks at the token while pods refuse it
FIRST_RETRY = 1.0

ROTATION_NEWS = {
    TokenStage.ANNOUNCED: "a new token is accepted, and will be sent in {overlap:g}s",
    TokenStage.SWITCHED: "the new token is sent; the old one is accepted for another {overlap:g}s",
    TokenStage.STEADY: "the old token is accepted no more",
}

logger = logging.getLogger(__name__)


class JobLoop:
    """Looks after one TLTJob from `run()` until it is cancelled.

    `heartbeat` is the steady time of the last look.  A change of `spec.rollout.selector` or `spec.port` needs a new
    loop, all others are taken over by `update`.
    """

    def __init__(self, context: Context, job: Job, *, status: Mapping[str, Any]) -> None:
        self._context = context
        self._job = job
        self._clock = context.clock
        self._news = asyncio.Event()
        self._news_at = self._clock.steady()
        self._changed = asyncio.Event()
        self._child_failure: str | None = None
        self._rollout_pods = 0
        self._token_known = False
        self._token_read_at = float("-inf")
        self._memory = Memory(ledger=ledger_of(status))
        self._last: tuple[Snapshot, Decision] | None = None
        settings = context.settings
        self._rotation = RotationRule(overlap=settings.token_overlap, lifetime=settings.token_lifetime)
        self._terms = LeaseTerms(
            ttl=settings.lease_ttl, window=settings.lease_window, limit=settings.max_leases, teams=settings.teams
        )
        self._pods = PodClient(context.session, tokens=(), request_timeout=context.settings.request_timeout)
        self._recorder = Recorder(context)
        self._effects = Effects(self._perform, on_failure=self._failed, wake=self.wake, clock=self._clock)
        self._performer = Performer(context, self._pods, self._recorder, hold_back=self._effects.delay)
        self._reporter = Reporter(context, self._recorder)
        self._observer = Observer(context, job, self._pods, wake=self.wake)
        self._status = StatusWriter(context, namespace=job.namespace, name=job.name, current=status)
        self._grants: dict[str, float] = {}  # rollout uid -> when the news came that made the grant possible
        self.heartbeat = self._clock.steady()

    def update(self, job: Job) -> None:
        """Takes over a changed spec or a deletion mark."""
        if (job.generation, job.token_request) != (self._job.generation, self._job.token_request):
            self._changed.set()
        self._job = job
        self.wake()

    def inherit(self, before: JobLoop) -> None:
        """Takes over what the job's last loop knew; its ledger is newer than any status that was read."""
        self._memory = before._memory
        self._status.current = before._status.current

    def wake(self) -> None:
        """Says that something happened."""
        if not self._news.is_set():
            self._news_at = self._clock.steady()
            self._news.set()

    async def run(self) -> None:
        """Runs until cancelled."""
        jobs = [*self._observer.tasks(), self._keep_children(), self._status.run(), self._loop()]
        tasks = [asyncio.create_task(item) for item in jobs]
        try:
            await asyncio.gather(*tasks)
        finally:
            await cancel(*tasks)
            await self._effects.close()
            await self._observer.close()
            await self._recorder.close()

    async def farewell(self) -> None:
        """After a deletion: takes all leases back and deletes the trainers, for a few seconds at most.

        The garbage collector would delete them too, and the leases would run out; this is quicker.
        """
        if self._last is None:
            return
        snapshot, decision = self._last
        calls = [
            RolloutClient(self._pods, url=pod_url(view.pod, self._job.spec.port)).revoke_lease(RevokeReason.OPERATOR)
            for view in snapshot.rollouts
            if decision.workers[view.pod.uid] is WorkerState.LENT
        ]
        calls += [
            self._context.kube.delete(POD, namespace=self._job.namespace, name=view.pod.name, uid=view.pod.uid)
            for view in snapshot.trainers
        ]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL):
                for result in await asyncio.gather(*calls, return_exceptions=True):
                    if isinstance(result, BaseException):
                        logger.warning("%s: while the job was deleted: %s", self._job.key, result)

    async def _loop(self) -> None:
        while True:
            news_at = self._news_at
            self._news.clear()
            self.heartbeat, begun = self._clock.steady(), self._clock.processor()
            try:
                self._pass(news_at)
            except Exception:
                logger.exception("%s: a pass failed in an unforeseen way", self._job.key)
                await asyncio.sleep(self._context.settings.tick)
            cost = self._clock.processor() - begun
            await asyncio.sleep(min(LONGEST_PAUSE, cost * (1 / PASS_SHARE - 1)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._context.settings.tick):
                    await self._news.wait()

    def _pass(self, news_at: float) -> None:
        if not self._observer.synced:
            return
        started = self._clock.steady()
        if self._token_known:
            self._observer.ask_pods(self._job)
        snapshot = self._observer.snapshot(
            self._job,
            deeds=self._effects,
            memories=self._performer,
            rivals=self._rivals(started),
            child_failure=self._child_failure,
        )
        self._doubt_token(snapshot)
        self._count_pods(len(snapshot.rollouts))
        decision = decide(snapshot, self._memory, terms=self._terms)
        self._context.wishes.publish(decision.lending.wish, now=started, wake=self.wake)
        self._memory = decision.memory
        self._last = (snapshot, decision)
        trial = decision.rollout.trial
        self._observer.ask_closely(self._job, (arm.uid for arm in trial.arms) if trial is not None else ())
        self._performer.look(snapshot)
        for view in snapshot.trainers:
            fit = not view.pod.deleting and not view.pod.queued
            if fit and view.state is not None and view.state.phase in (TrainerPhase.WAITING, TrainerPhase.TRAINING):
                self._performer.trainer_works(view.pod)
        for action in decision.actions:
            if isinstance(action, GrantLease) and not self._effects.pending(action_key(action), heard=started):
                self._grants[action.rollout_uid] = news_at
        self._effects.start(decision.actions)
        self._reporter.report(snapshot, decision)
        self._status.offer(lambda previous: self._make_status(snapshot, decision, previous))
        self._context.metrics.reconcile.labels(job=self._job.key).observe(self._clock.steady() - started)

    def _rivals(self, now: float) -> tuple[Wish, ...]:
        longest = self._terms.window + self._job.spec.reclaim.grace + self._terms.ttl
        return self._context.wishes.rivals(self._job.key, now=now, longest=longest)

    def _make_status(self, snapshot: Snapshot, decision: Decision, previous: Mapping[str, Any]) -> dict[str, Any]:
        return job_status(
            snapshot,
            decision,
            previous=previous,
            gateway_url=gateway_url(snapshot.job) if snapshot.job.spec.gateway.enabled else None,
            now=self._clock.timestamp(),
        )

    def _doubt_token(self, snapshot: Snapshot) -> None:
        """Reads the token again when a pod refuses it: somebody may have changed the Secret."""
        refused = any(view.fault is Fault.TOKEN_REFUSED for view in snapshot.rollouts)
        if refused and self._clock.steady() - self._token_read_at > TOKEN_INTERVAL:
            self._token_read_at = self._clock.steady()
            self._changed.set()

    def _count_pods(self, count: int) -> None:
        """The lighthouse comes with the second rollout pod, and goes when there is one again."""
        if (count > 1) != (self._rollout_pods > 1):
            self._changed.set()
        self._rollout_pods = count

    async def _perform(self, action: Action) -> None:
        await self._performer.perform(action)
        if isinstance(action, GrantLease):
            edge = self._grants.pop(action.rollout_uid, None)
            if edge is not None:
                self._reporter.lease_granted(self._job, action.rollout_uid, edge_to_lease=self._clock.steady() - edge)

    def _failed(self, action: Action, error: OperatorError) -> None:
        name = action_key(action)[0]
        self._context.metrics.action_failures.labels(job=self._job.key, action=name).inc()
        if isinstance(error, BusyError):
            logger.info("%s: %s: not now: %s", self._job.key, name, error)
        else:
            logger.warning("%s: %s: %s", self._job.key, name, error)
        if isinstance(error, FinalError):  # a person must do something
            self._recorder.warning(
                self._job, EventReason.ACTION_FAILED, f"Could not {name}: {error}", subject="/".join(action_key(action))
            )

    async def _keep_token(self) -> float:
        """Makes, reads or rotates the token; returns after how many seconds it must be looked at again."""
        kube, rule, now = self._context.kube, self._rotation, self._clock.wall()
        secret = await ensure_token(kube, self._job, now=now)
        before = parse_tokens(secret)
        self._pods.tokens = before.known  # also when it cannot be rotated
        self._token_known, self._token_read_at = True, self._clock.steady()
        tokens = await rotate_token(kube, self._job, secret, now=now, rule=rule)
        self._pods.tokens = tokens.known
        if tokens != before:
            name = token_secret_name(self._job.name)
            message = f"Secret {name}: {ROTATION_NEWS[tokens.stage].format(overlap=rule.overlap)}"
            self._recorder.normal(self._job, EventReason.TOKEN_ROTATED, message, subject=f"{name}/{tokens.stage}")
        return due_in(tokens, now=now, rule=rule)

    async def _keep_children(self) -> None:
        backoff = Backoff(first=FIRST_RETRY)
        while True:
            self._changed.clear()
            pause = self._context.settings.resync_interval
            try:
                if not self._job.deleting:
                    pause = min(pause, await self._keep_token())
                    kube, settings = self._context.kube, self._context.settings
                    changed = await ensure_pool(kube, self._job)
                    changed |= await ensure_network_policies(kube, self._job, settings=settings)
                    changed |= await ensure_gateway(kube, self._job, settings=settings)
                    changed |= await ensure_lighthouse(
                        kube, self._job, rollout_pods=self._rollout_pods, settings=settings
                    )
                    for name, conflict in changed.items():
                        message = f"Set back what somebody else had changed in {name}: {conflict}"
                        self._recorder.warning(self._job, EventReason.FIELD_SET_BACK, message, subject=name)
                self._child_failure = None
                backoff.reset()
            except OperatorError as error:
                pause = backoff.next(error)
                logger.warning("%s: %s; again in %.0fs", self._job.key, error, pause)
                self._child_failure = str(error)
            except Exception:
                logger.exception("%s: the job's objects could not be kept", self._job.key)
                pause = LONGEST_FINAL
            self.wake()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()
