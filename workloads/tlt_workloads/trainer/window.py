"""What a worker tells its supervisor.  These go through a pipe between the two processes; nothing here needs torch."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from tlt_workloads.contract import RevisionManifest


class WindowEnd(enum.StrEnum):
    """How a worker came to its end by itself."""

    STOPPED = "Stopped"  # asked to
    DONE = "Done"  # every recorded token has been used as often as allowed
    NO_DATA = "NoData"
    TEAM_LOST = "TeamLost"  # out of touch with others that may be training on


@dataclass(frozen=True, kw_only=True)
class WorkerReady:
    """State and data are in memory; the next thing is a micro-step."""


@dataclass(frozen=True, kw_only=True)
class WorkerStepped:
    """A micro-step is done.  Totals of the window; `tokens` are those that an optimiser step has applied."""

    steps: int
    tokens: int
    loss: float
    replicas: int = 1  # that train together


@dataclass(frozen=True, kw_only=True)
class WorkerSkipped:
    """Shards that cannot be read are left out."""

    shards: frozenset[str]  # their paths, all of the window so far


@dataclass(frozen=True, kw_only=True)
class WorkerPublished:
    """A revision is in the store."""

    manifest: RevisionManifest


@dataclass(frozen=True, kw_only=True)
class WorkerReleased:
    """It computes no more and has nothing on the device; what is left to do is writing the checkpoint."""

    end: WindowEnd


@dataclass(frozen=True, kw_only=True)
class WorkerEnded:
    """The last word: everything is durable, the process exits."""

    end: WindowEnd
    peak_memory: int  # bytes


@dataclass(frozen=True, kw_only=True)
class WorkerFailed:
    """The last word of a worker that cannot go on."""

    message: str
    permanent: bool  # trying again with the same settings cannot help


WorkerMessage = (
    WorkerReady | WorkerStepped | WorkerSkipped | WorkerPublished | WorkerReleased | WorkerEnded | WorkerFailed
)
