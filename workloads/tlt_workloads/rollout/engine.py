"""The engine as this pod's control routes use it: a handful of calls, all of them to vLLM's public client.

The calls that begin with `tlt_` are served by methods that the general plugin adds to vLLM's worker and core.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from tlt_workloads.contract import CaptureSettings, DrafterRefusal, SpeculationReport, decode, encode
from tlt_workloads.rollout.speculation import SpeculationOrder


class DrafterRefusedError(Exception):
    """A drafter is refused; the old one stays.  The message is a sentence."""

    def __init__(self, reason: DrafterRefusal, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Swap:
    """What the workers say about a drafter that they took."""

    stall: float  # seconds in which the engine could not step
    checksum_before: str
    checksum_after: str


@dataclass(frozen=True, kw_only=True)
class CaptureOrder:
    """What the workers record, and where."""

    store_url: str
    folder: str
    model: str
    settings: CaptureSettings


class Engine(Protocol):
    """What a pod needs of its engine."""

    def unfinished_requests(self) -> int:
        """Requests in the engine, waiting ones included."""

    async def pause(self) -> None:
        """Freezes the running requests; nothing is aborted and no cache is dropped."""

    async def resume(self) -> None:
        """Goes on with the frozen requests."""

    async def forget_prefixes(self) -> None:
        """Drops every cached key and value, those of frozen requests too; they are computed again."""

    async def close_weight_session(self) -> None:
        """Ends a weight update that will not be finished; fine when there is none."""

    async def sleep(self) -> None:
        """Gives the accelerator's memory back (vLLM's sleep level 1)."""

    async def wake(self) -> None:
        """Takes the memory again."""

    async def set_policy_version(self, version: int) -> None:
        """Tells the workers which policy they have from now on."""

    async def capture(self, order: CaptureOrder) -> None:
        """Tells the workers what to record."""

    async def speculate(self, order: SpeculationOrder) -> None:
        """What to draft from the next step on."""

    async def speculation_report(self) -> SpeculationReport:
        """What is drafted, and what the engine knows about it."""

    async def stage_drafter(self, *, location: str, sha256: str) -> None:
        """Lets the workers read and check a drafter in the background; the engine goes on meanwhile."""

    async def stage_own_drafter(self) -> None:
        """The same with the drafter that the server started with."""

    async def drafter_staged(self) -> bool:
        """Whether all workers are ready; raises DrafterRefusedError when one refused."""

    async def apply_drafter(self) -> Swap:
        """Puts the staged drafter in place between two steps; raises DrafterRefusedError when it was undone."""

    async def follow_policy(self) -> None:
        """Lets the drafter take what it has copied from the policy anew; the policy has just changed."""


class VllmEngine:
    """`Engine` over vLLM's `AsyncLLM`."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def unfinished_requests(self) -> int:
        """Requests in the engine, waiting ones included."""
        return int(self._client.get_num_unfinished_requests())

    async def pause(self) -> None:
        """Freezes the running requests."""
        await self._client.pause_generation(mode="keep", clear_cache=False)

    async def resume(self) -> None:
        """Goes on."""
        await self._client.resume_generation()

    async def forget_prefixes(self) -> None:
        """Drops every cached key and value."""
        await self._client.reset_prefix_cache(reset_running_requests=True)

    async def close_weight_session(self) -> None:
        """Ends it; vLLM has no other way than to finish, and closes a session itself when a part of it failed."""
        with contextlib.suppress(Exception):
            await self._client.finish_weight_update()

    async def sleep(self) -> None:
        """Gives the accelerator's memory back."""
        await self._client.sleep(level=1)

    async def wake(self) -> None:
        """Takes the memory again."""
        await self._client.wake_up()

    async def set_policy_version(self, version: int) -> None:
        """Tells the workers."""
        await self._client.collective_rpc("tlt_set_policy_version", args=(version,))

    async def capture(self, order: CaptureOrder) -> None:
        """Tells the workers."""
        await self._client.collective_rpc(
            "tlt_capture", args=(json.dumps({**asdict(order), "settings": encode(order.settings)}),)
        )

    async def speculate(self, order: SpeculationOrder) -> None:
        """Tells the scheduler, which lives in the engine core's process."""
        await self._client.engine_core.call_utility_async("tlt_speculate", order.encoded())

    async def speculation_report(self) -> SpeculationReport:
        """Asks it."""
        message: str = await self._client.engine_core.call_utility_async("tlt_speculation_report")
        return decode(SpeculationReport, json.loads(message))

    async def stage_drafter(self, *, location: str, sha256: str) -> None:
        """Starts reading in the workers."""
        for answer in await self._client.collective_rpc("tlt_stage_drafter", args=(location, sha256)):
            _accepted(answer)

    async def stage_own_drafter(self) -> None:
        """Starts reading in the workers."""
        for answer in await self._client.collective_rpc("tlt_stage_own_drafter"):
            _accepted(answer)

    async def drafter_staged(self) -> bool:
        """Asks the workers."""
        answers: list[dict[str, Any]] = await self._client.collective_rpc("tlt_drafter_staged")
        ready = [_accepted(answer)["ready"] for answer in answers]  # hears every refusal before it answers
        return all(ready)

    async def apply_drafter(self) -> Swap:
        """Swaps in all workers."""
        answers: list[dict[str, Any]] = [
            _accepted(answer) for answer in await self._client.collective_rpc("tlt_apply_drafter")
        ]
        return Swap(
            stall=max(answer["seconds"] for answer in answers),
            checksum_before="+".join(answer["before"] for answer in answers),
            checksum_after="+".join(answer["after"] for answer in answers),
        )

    async def follow_policy(self) -> None:
        """Tells the workers."""
        await self._client.collective_rpc("tlt_follow_policy")


def _accepted(answer: dict[str, Any]) -> dict[str, Any]:
    if reason := answer.get("refused"):
        raise DrafterRefusedError(DrafterRefusal(reason), answer["message"])
    return answer
