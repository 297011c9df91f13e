"""The route of a trainer pod."""

from __future__ import annotations

from tlt_operator.clients.pods import PodClient
from tlt_workloads.contract import TRAINER_ROUTE, TrainerState


async def poll_trainer(pods: PodClient, url: str, *, seq: int, wait: float) -> TrainerState:
    """A trainer pod's state, at the next change; errors are those of `PodClient.call`."""
    return await pods.poll(TrainerState, url + TRAINER_ROUTE, seq=seq, wait=wait)
