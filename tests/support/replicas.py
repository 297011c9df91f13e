"""Replicas of one job on this machine: threads, whose weights a test can look at, or the processes they really are."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from tests.support.eventually import eventually, eventually_async
from tlt_workloads.trainer.data import TrainingBatch
from tlt_workloads.trainer.loop import train_window
from tlt_workloads.trainer.opening import open_session
from tlt_workloads.trainer.progress import ShardProgress
from tlt_workloads.trainer.session import Session
from tlt_workloads.trainer.settings import TrainerSettings, WindowOrder
from tlt_workloads.trainer.stopping import StopFlag
from tlt_workloads.trainer.team.team import open_team
from tlt_workloads.trainer.window import WindowEnd, WorkerMessage, WorkerStepped
from tlt_workloads.trainer.workshop import Worker, Workshop


def as_pod(settings: TrainerSettings, name: str) -> TrainerSettings:
    """The same job's trainer in another pod, with a core of its own as far as there are any."""
    cores = sorted(os.sched_getaffinity(0))
    return replace(settings, holder=f"trainer-{name}/{name * 8}", cores=(cores[ord(name) % len(cores)],))


@dataclass(frozen=True)
class Moment:
    """A replica right after an optimiser step."""

    replicas: int
    digest: str  # of weights and moments
    shards: dict[str, ShardProgress]
    tokens: int


class QuietFlag(StopFlag):
    """For a thread, which gets no signals."""

    def listen(self) -> None:
        pass

    @contextlib.contextmanager
    def nothing_to_lose(self) -> Iterator[None]:
        self.abandon_step()
        yield


class ThreadReplica:
    """A worker's loop in a thread of this process."""

    def __init__(self, settings: TrainerSettings) -> None:
        self.moments: dict[int, Moment] = {}  # by step; the last one counts
        self.used: list[tuple[int, frozenset[tuple[str, int]]]] = []  # team's size and sequences of each micro-step
        self.end: WindowEnd | None = None
        self.replicas = 0
        self.session: Session | None = None
        self._settings = settings
        self._flag = QuietFlag()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def steps(self) -> int:
        """Optimiser steps so far."""
        return max(self.moments, default=0)

    @property
    def solved_rows(self) -> int:
        """From which its drafter was solved for, as far as it knows."""
        return 0 if self.session is None else self.session.state()[0].solved_rows

    def stop(self) -> None:
        """Returns when it has left the device and written what it had to."""
        self._flag.set()
        self._thread.join(30.0)
        assert not self._thread.is_alive()

    def until(self, *, replicas: int, more_steps: int = 5) -> None:
        """Waits until it has taken so many steps more as one of so many."""
        eventually(lambda: self.replicas == replicas, deadline=60.0, reason=f"{replicas} replicas")
        goal = self.steps + more_steps
        eventually(
            lambda: self.replicas == replicas and self.steps >= goal, deadline=60.0, reason=f"steps with {replicas}"
        )

    def _run(self) -> None:
        team = open_team(self._settings, check=self._flag.abandon_step)
        self.session = session = open_session(
            self._settings, device=torch.device("cpu"), check=self._flag.abandon_step, team=team
        )
        train = session.train

        def note_and_train(batch: TrainingBatch) -> float:
            self.used.append((session.replicas, frozenset(batch.used)))
            return train(batch)

        session.train = note_and_train  # type: ignore[method-assign]
        self.end = train_window(session, self._flag, self._note)
        session.release_device()
        session.close()

    def _note(self, message: WorkerMessage) -> None:
        if isinstance(message, WorkerStepped) and self.session is not None:
            progress, tensors = self.session.state()
            digest = hashlib.sha256()
            for name in sorted(tensors):
                digest.update(name.encode() + tensors[name].detach().contiguous().view(torch.uint8).numpy().tobytes())
            self.moments[progress.steps] = Moment(
                message.replicas, digest.hexdigest(), dict(progress.shards), progress.trained_tokens
            )
            self.replicas = message.replicas


class ProcessReplica:
    """A worker, and what it has told."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.messages: list[WorkerMessage] = []

    @property
    def steps(self) -> list[WorkerStepped]:
        """Its micro-steps."""
        return [message for message in self.messages if isinstance(message, WorkerStepped)]

    async def start(self, workshop: Workshop, settings: TrainerSettings) -> ProcessReplica:
        """Forks the worker."""
        self.worker = await workshop.start(WindowOrder(settings=settings, lease_id="lease"), self.messages.append)
        return self

    async def until(self, *, replicas: int, more_steps: int = 5) -> None:
        """Waits until it has taken so many micro-steps more as one of so many."""

        def has_come() -> bool:
            return bool(self.steps) and self.steps[-1].replicas == replicas

        await eventually_async(has_come, deadline=60.0, reason=f"{replicas} replicas: {self.messages[-1:]}")
        goal = len(self.steps) + more_steps
        await eventually_async(
            lambda: has_come() and len(self.steps) >= goal, deadline=60.0, reason=f"steps with {replicas}"
        )

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        assert self.worker is not None
        os.kill(self.worker.pid, number)

    async def stop(self) -> Worker:
        """Stops it as a supervisor does, and waits for its end."""
        assert self.worker is not None
        await self.worker.stop(grace=2.0)
        await self.worker.wait(limit=20.0)
        return self.worker
