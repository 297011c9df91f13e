"""The steps by which a formation becomes a team.  All of them block, and are done aside from the training thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import torch

from tlt_workloads.tokens import TokenFile
from tlt_workloads.trainer.progress import TrainingProgress
from tlt_workloads.trainer.team.desk import Desk
from tlt_workloads.trainer.team.membership import Formation
from tlt_workloads.trainer.team.peers import PeerError, fetch_state, is_there, open_line
from tlt_workloads.trainer.team.ring import Ring, RingBrokenError
from tlt_workloads.trainer.team.state import pack_state
from tlt_workloads.trainer.team.waiting import LOOK

COMING_LIMIT = 3.0  # s from a formation to its ring
HEALING_LIMIT = 45.0  # s until a state is there to be fetched
_LINE_LOOK = 0.2  # s between looks whether all members are there


def close_ring(formation: Formation, rank: int, *, desk: Desk, tokens: TokenFile) -> Ring:
    """Connects with both neighbours.

    Raises:
        RingBrokenError, PeerError: a member did not come.
    """
    size, end = len(formation.members), time.monotonic() + COMING_LIMIT
    sending = open_line(formation.members[(rank + 1) % size].url, formation, tokens)
    while time.monotonic() < end:
        if (receiving := desk.line(formation, patience=_LINE_LOOK)) is not None:
            return Ring(rank=rank, size=size, sending=sending, receiving=receiving)
        if any(is_there(one.url) is False for one in formation.members):
            break
    sending.close()
    raise RingBrokenError("a member did not come")


def receive_state(
    formation: Formation, ring: Ring, *, tokens: TokenFile, like: Mapping[str, torch.Tensor]
) -> tuple[TrainingProgress, dict[str, torch.Tensor]]:
    """The state that the formation begins with.

    Raises:
        RingBrokenError, PeerError: it did not come.
    """
    end = time.monotonic() + HEALING_LIMIT
    while time.monotonic() < end:
        if (found := fetch_state(formation.giver.url, formation, tokens, like=like)) is not None:
            return found
        ring.check()
        time.sleep(LOOK)
    raise PeerError(f"{formation.giver.url}: no state within {HEALING_LIMIT} s")


def hand_out(
    formation: Formation, progress: TrainingProgress, tensors: Mapping[str, torch.Tensor], *, desk: Desk
) -> None:
    """Copies a state and returns; all else that it costs is paid beside the training."""
    copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    def pack() -> None:
        desk.hand_out(formation, pack_state(progress, copies))

    threading.Thread(target=pack, name="hand-out", daemon=True).start()
