"""New weights: the policy's from the learner, the drafter's from the trainer.  One at a time, the policy first.

A policy update spans several calls of the learner (start, update, finish); requests that run meanwhile are frozen, so
that none of them sees half a policy.  A learner that falls silent, or starts anew, leaves nothing half open: its
session ends by itself, and the requests go on.

A drafter is read and checked in the background and then put in place in one call between two steps of the engine, so
that no other caller ever finds an open session of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

from tlt_workloads.contract import DrafterLoad, DrafterLoaded, DrafterRefusal, RevokeReason
from tlt_workloads.rollout.engine import DrafterRefusedError, Swap
from tlt_workloads.rollout.locations import OutsideStoreError
from tlt_workloads.rollout.pod import RefusedError, RolloutPod
from tlt_workloads.rollout.revision_files import FoundRevision
from tlt_workloads.rollout.revision_folder import RefusedDrafterError
from tlt_workloads.rollout.transport import Transport

logger = logging.getLogger("vllm.tlt")
Finder = Callable[[str], Awaitable[FoundRevision]]

STAGE_POLL = 0.02  # seconds between two questions whether the workers have read a drafter
STAGE_LIMIT = 300.0  # seconds after which reading counts as failed
AWAKE_LIMIT = 60.0  # seconds that a drafter waits for an engine which sleeps while its GPU is lent
SESSION_LIMIT = 900.0  # seconds without a word from the learner after which its half-sent policy is given up
NUMBERED_VERSION = re.compile(r"(?:.*\D)?(\d{1,15})", re.DOTALL)  # "policy-41", "step_41"


class Updates:
    """The pod's weight updates."""

    def __init__(self, pod: RolloutPod, *, on_new_drafter: Callable[[], None], longest_gap: GapWatch) -> None:
        self.introduced: Transport | None = None  # how the learner has said that it sends its weights
        self._pod = pod
        self._turn = asyncio.Lock()
        self._loading = asyncio.Lock()
        self._policy_session = False
        self._parts_under_way = 0
        self._paused_for_update = False
        self._patience: asyncio.TimerHandle | None = None
        self._giving_up: asyncio.Task[None] | None = None
        self._on_new_drafter = on_new_drafter
        self._gap = longest_gap

    # -- policy ----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def starting_policy(self) -> AsyncIterator[None]:
        """Around vLLM's own start of a policy update; undone when that fails.

        An update that was begun before and not finished is given up: its learner has begun anew.

        Raises:
            RefusedError: Updating, weights are being received at this moment.
        """
        self._pod.revoke(RevokeReason.POLICY_UPDATE)
        async with self._turn:
            if self._parts_under_way:
                raise RefusedError("Updating", "another policy update is receiving weights")
            if self._policy_session:
                logger.warning("policy update given up: another one begins")
                await self._give_up_policy()
            self._policy_session = True
            self._be_patient()
            self._pod.set_updating(True)
            try:
                await self._pod.take_back(RevokeReason.POLICY_UPDATE)
                if not self._pod.activity.paused:
                    await self._pod.engine.pause()
                    self._paused_for_update = True
                yield
            except BaseException:
                await self._close_policy_session()
                raise

    @contextlib.asynccontextmanager
    async def pausing(self) -> AsyncIterator[bool]:
        """Around vLLM's own pause; gives whether the pod was paused before.

        An engine that sleeps wakes first, because vLLM resumes the scheduler with its wake-up.
        """
        was_paused = self._pod.activity.paused
        self._pod.set_paused(True)  # so that no lease is granted from here on
        try:
            if self._pod.sleeps:
                await self._pod.take_back(RevokeReason.POLICY_UPDATE)
            yield was_paused
        except BaseException:
            self._pod.set_paused(was_paused)
            raise

    @contextlib.asynccontextmanager
    async def receiving_policy(self) -> AsyncIterator[None]:
        """Around one part of the policy's weights; a part that fails ends the update, as in vLLM.

        Raises:
            RefusedError: NoUpdate, none was started, or it has ended.
        """
        self._check_session()
        self._be_patient()
        self._parts_under_way += 1
        try:
            yield
        except BaseException:
            await self._give_up_policy()
            raise
        finally:
            self._parts_under_way -= 1
            if self._policy_session:
                self._be_patient()

    @contextlib.asynccontextmanager
    async def finishing_policy(self, name: str | None = None) -> AsyncIterator[int]:
        """Around vLLM's own end of a policy update; gives the number of the new policy.

        Args:
            name: what the learner calls the policy.  A number at its end is taken over, so that a pod that has missed
                policies counts like its peers again; numbers never go back.

        Raises:
            RefusedError: NoUpdate, none was started, or it has ended.
        """
        self._check_session()
        version = self._number_of(name)
        try:
            yield version
            self._pod.policy_version = version
            await self._pod.engine.set_policy_version(version)
            if self._pod.identity.drafter_method is not None:
                await self._pod.engine.follow_policy()
            await self._pod.engine.forget_prefixes()
        finally:
            await self._close_policy_session()

    def _number_of(self, name: str | None) -> int:
        found = NUMBERED_VERSION.fullmatch(name or "")
        number = int(found[1]) if found else 0
        return number if number >= max(1, self._pod.policy_version) else self._pod.policy_version + 1

    def _check_session(self) -> None:
        if not self._policy_session:
            raise RefusedError("NoUpdate", "no policy update is open: call /start_weight_update first")

    def _be_patient(self) -> None:
        """Starts the time anew after which a silent learner's session is closed."""
        if self._patience is not None:
            self._patience.cancel()
        self._patience = asyncio.get_running_loop().call_later(SESSION_LIMIT, self._lose_patience)

    def _lose_patience(self) -> None:
        if self._parts_under_way:  # large weights may take their time
            self._be_patient()
            return
        logger.warning("policy update given up: nothing heard of it for %.0f s", SESSION_LIMIT)
        self._giving_up = asyncio.ensure_future(self._give_up_policy())

    async def _give_up_policy(self) -> None:
        try:
            await self._pod.engine.close_weight_session()
        finally:
            await self._close_policy_session()

    async def _close_policy_session(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self._policy_session = False
        if self._paused_for_update:
            self._paused_for_update = False
            await self._pod.engine.resume()
        self._pod.set_updating(False)

    # -- drafter ---------------------------------------------------------------------------------------------------

    async def load_drafter(self, load: DrafterLoad, *, find: Finder) -> DrafterLoaded:
        """Puts a new drafter in place; running requests go on.

        Args:
            load: which one.
            find: looks up what is behind its URL; OutsideStoreError when the job has nothing there,
                RefusedDrafterError when the store does not tell.

        Raises:
            RefusedError: NoDrafter, PolicyUpdate, Loading or Asleep.
            DrafterRefusedError: the weights are not those, or not ones that this engine can take; counted by reason.
        """
        began = time.monotonic()
        with self._counting_refusals(load.revision):
            revision = await _found(load.url, find)
            swap = await self._swap(
                lambda: self._pod.engine.stage_drafter(location=revision.location, sha256=load.sha256),
                revision=load.revision,
                digest=load.sha256.lower(),
                trained_to=revision.trained_to,
            )
        logger.info("drafter %s loaded, engine held for %.1f ms", load.revision, swap.stall * 1e3)
        return DrafterLoaded(
            revision=load.revision,
            seconds=time.monotonic() - began,
            stall=swap.stall,
            policy_checksum_before=swap.checksum_before,
            policy_checksum_after=swap.checksum_after,
        )

    async def unload_drafter(self) -> bool:
        """Puts the drafter back that the server started with; False when it was there already.

        Raises:
            RefusedError: NoDrafter, PolicyUpdate, Loading or Asleep.
            DrafterRefusedError: it cannot be read any more.
        """
        if self._pod.identity.drafter_method is not None and self._pod.drafter_revision is None:
            return False
        with self._counting_refusals("of the server itself"):
            swap = await self._swap(
                self._pod.engine.stage_own_drafter,
                revision=None,
                digest=self._pod.own_drafter_digest,
                trained_to=None,
            )
        logger.info("the server's own drafter is back, engine held for %.1f ms", swap.stall * 1e3)
        return True

    @contextlib.contextmanager
    def _counting_refusals(self, name: str) -> Iterator[None]:
        try:
            yield
        except DrafterRefusedError as error:
            self._pod.drafter_refusals[error.reason] += 1
            self._pod.note()
            logger.warning("drafter %s refused: %s: %s", name, error.reason.value, error)
            raise

    async def _swap(
        self,
        stage: Callable[[], Awaitable[None]],
        *,
        revision: str | None,
        digest: str | None,
        trained_to: int | None,
    ) -> Swap:
        if self._pod.identity.drafter_method is None:
            raise RefusedError("NoDrafter", "the server was started without speculation")
        if self._loading.locked():
            raise RefusedError("Loading", "another drafter is being loaded")
        async with self._loading:
            await self._stage(stage)
            await self._pod.wait_until_awake(within=AWAKE_LIMIT)
            async with self._turn:
                self._refuse_during_policy_update()
                await self._pod.wait_until_awake(within=0)
                self._pod.set_updating(True)
                self._gap.watch()
                try:
                    swap = await self._pod.engine.apply_drafter()
                    self._pod.drafter_revision = revision
                    self._pod.drafter_digest = digest
                    self._pod.drafter_trained_to = trained_to
                    self._on_new_drafter()
                finally:
                    self._pod.set_updating(False)
            self._pod.swap_stall = await self._gap.measure(at_least=swap.stall)
            self._pod.note()
            return swap

    async def _stage(self, stage: Callable[[], Awaitable[None]]) -> None:
        self._refuse_during_policy_update()
        await stage()
        try:
            async with asyncio.timeout(STAGE_LIMIT):
                while not await self._pod.engine.drafter_staged():  # noqa: ASYNC110 - the workers are other processes
                    await asyncio.sleep(STAGE_POLL)
        except TimeoutError:
            message = f"reading took longer than {STAGE_LIMIT:.0f} s; ask again when the store is faster"
            raise DrafterRefusedError(DrafterRefusal.STORE_UNAVAILABLE, message) from None

    def _refuse_during_policy_update(self) -> None:
        if self._policy_session:
            raise RefusedError("PolicyUpdate", "a policy update is in flight; ask again when it is over")


async def _found(url: str, find: Finder) -> FoundRevision:
    try:
        return await find(url)
    except OutsideStoreError as error:
        raise DrafterRefusedError(DrafterRefusal.OUTSIDE_STORE, str(error)) from error
    except RefusedDrafterError as error:
        raise DrafterRefusedError(error.reason, str(error)) from error


class GapWatch:
    """Measures the longest pause that running requests saw around a swap."""

    def __init__(self, *, start: Callable[[], None], stop: Callable[[], float | None], settle: float = 0.25) -> None:
        self._start = start
        self._stop = stop
        self._settle = settle

    def watch(self) -> None:
        """Begins."""
        self._start()

    async def measure(self, *, at_least: float) -> float:
        """Waits for the next steps and ends; `at_least` is what the engine itself says."""
        await asyncio.sleep(self._settle)
        return max(at_least, self._stop() or 0.0)
