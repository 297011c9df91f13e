"""The control routes of a rollout pod."""

from __future__ import annotations

from tlt_operator.clients.pods import PodClient, decode_answer
from tlt_workloads.contract import (
    CONFIG_ROUTE,
    DRAFTER_ROUTE,
    LEASE_ROUTE,
    STATE_ROUTE,
    DrafterLoad,
    DrafterLoaded,
    LeaseRequest,
    LeaseView,
    RevokeReason,
    RolloutConfig,
    RolloutState,
    encode,
)

DRAFTER_TIMEOUT = 120.0  # a load waits for the running step and reads the store


class RolloutClient:
    """Calls to one rollout pod at `url`; errors are those of `PodClient.call`."""

    def __init__(self, pods: PodClient, *, url: str) -> None:
        self._pods = pods
        self._url = url

    async def poll_state(self, *, seq: int, wait: float) -> RolloutState:
        """The pod's state, at the next change."""
        return await self._pods.poll(RolloutState, self._url + STATE_ROUTE, seq=seq, wait=wait)

    async def grant_lease(self, request: LeaseRequest) -> LeaseView:
        """Lends the device; `BusyError` when the pod is not idle any more."""
        data = await self._pods.call("POST", self._url + LEASE_ROUTE, body=encode(request))
        return decode_answer(LeaseView, data, self._url)

    async def revoke_lease(self, reason: RevokeReason) -> None:
        """Asks the device back; it is no error when nobody holds it."""
        await self._pods.call("DELETE", self._url + LEASE_ROUTE, query={"revoke": reason.value})

    async def configure(self, config: RolloutConfig) -> None:
        """Tells the pod of its job."""
        await self._pods.call("POST", self._url + CONFIG_ROUTE, body=encode(config))

    async def load_drafter(self, load: DrafterLoad) -> DrafterLoaded:
        """Loads a revision; `RefusedError` when the pod does not take these weights, `BusyError` when not now."""
        data = await self._pods.call(
            "POST", self._url + DRAFTER_ROUTE, body=encode(load), request_timeout=DRAFTER_TIMEOUT
        )
        return decode_answer(DrafterLoaded, data, self._url)

    async def unload_drafter(self) -> None:
        """Gives the pod back the drafter that its server started with; it is no error when it has that already."""
        await self._pods.call("DELETE", self._url + DRAFTER_ROUTE, request_timeout=DRAFTER_TIMEOUT)
