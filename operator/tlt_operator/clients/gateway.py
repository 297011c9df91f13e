"""The route of the gateway."""

from __future__ import annotations

from tlt_operator.clients.pods import PodClient
from tlt_workloads.contract import GATEWAY_ROUTE, GatewayState


async def poll_gateway(pods: PodClient, url: str, *, seq: int, wait: float) -> GatewayState:
    """The gateway's state, at the next change; errors are those of `PodClient.call`."""
    return await pods.poll(GatewayState, url + GATEWAY_ROUTE, seq=seq, wait=wait)
