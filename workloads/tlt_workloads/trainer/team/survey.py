"""Looks which team-mates are left after a team broke."""

from __future__ import annotations

import time

from tlt_workloads.trainer.team.membership import Formation, Survey
from tlt_workloads.trainer.team.peers import is_there
from tlt_workloads.trainer.team.scout import Scout
from tlt_workloads.trainer.team.waiting import Waiting

HEARTBEAT_LIMIT = 1.0  # s after which the lighthouse does not count whoever died when the team broke
ANSWER_LIMIT = 2.0  # s that the lighthouse is waited for


def look_around(before: Formation, replica: str, *, since: float, scout: Scout, waiting: Waiting) -> Survey:
    """Asks everybody.  Whoever refuses is gone; whoever is silent may be, and the lighthouse is heard about it.

    Args:
        before: the team that was.
        replica: who we are in it.
        since: when it broke, by the monotonic clock.
        scout: hears from the lighthouse.
        waiting: raises to leave.
    """
    mine = before.rank(replica)
    others = {rank: member for rank, member in enumerate(before.members) if rank != mine}
    found = waiting.aside(lambda: {rank: is_there(member.url) for rank, member in others.items()})
    silent = {rank for rank, there in found.items() if there is None}
    gone = {rank for rank, there in found.items() if there is False}
    end = time.monotonic() + ANSWER_LIMIT
    while silent and time.monotonic() < end:
        if (known := scout.known(since=since + HEARTBEAT_LIMIT)) is not None:
            heard_of = {one.replica for one in known}
            gone |= {rank for rank in silent if others[rank].replica not in heard_of}
            break
        waiting.pause()
    alive = frozenset(rank for rank, there in found.items() if there)
    return Survey(rank=mine, alive=alive, gone=frozenset(gone))
