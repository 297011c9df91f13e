"""Looks at the devices all the time, from the machine's process table and the pods' own words."""

from __future__ import annotations

import threading
import time
from collections import defaultdict

import requests

from bench import node
from tests.chaos.scene import Scene
from tlt_workloads.contract import LeasePhase

EVERY = 0.25  # seconds
GRACE_MARGIN = 20.0  # seconds beyond the grace until the operator has had the trainer's pod deleted


class Watch:
    """Collects what must never be seen."""

    def __init__(self, scene: Scene, *, grace: float) -> None:
        self._scene = scene
        self._limit = grace + GRACE_MARGIN
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._holders: dict[str, str] = {}  # uid of a trainer pod: rollout pod
        self.looks = 0
        self.complaints: list[str] = []

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def take_complaints(self) -> list[str]:
        """What was seen since the last call."""
        found, self.complaints = self.complaints, []
        return found

    def _run(self) -> None:
        listed = 0.0
        while not self._over.wait(EVERY):
            if time.monotonic() - listed > 2.0:
                listed = time.monotonic()
                self._list()
            self._look()
            self.looks += 1

    def _list(self) -> None:
        try:
            self._holders |= {trainer.uid: trainer.rollout for trainer in self._scene.trainers()}
        except AssertionError:
            return  # the API server is away; trainers are not made meanwhile

    def _look(self) -> None:
        workers = defaultdict(list)
        for uid, rollout in list(self._holders.items()):
            if (worker := node.trainer_worker(uid)) is not None:
                workers[rollout].append(worker.pid)
        for rollout, pids in workers.items():
            if len(pids) > 1:
                self._complain(f"two trainers have the device of {rollout}: processes {pids}")
        for index, pod in enumerate(list(self._scene.pods)):
            try:
                lease = self._scene.state(index).lease
            except (requests.RequestException, ValueError):
                continue
            if lease is not None and lease.phase is LeasePhase.REVOKING and lease.revoking_for > self._limit:
                self._complain(f"{pod.name}: a lease was asked back {lease.revoking_for:.0f} s ago and has not ended")

    def _complain(self, text: str) -> None:
        if text not in self.complaints:
            self.complaints.append(text)
