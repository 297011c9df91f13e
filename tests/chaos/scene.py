"""Two real rollout pods and their job, what state they are brought into, and what must hold whatever happens."""

from __future__ import annotations

import contextlib
import enum
import hashlib
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from bench import node
from tests.support.cluster import Cluster, is_ready
from tests.support.eventually import eventually
from tests.support.rollouts import Load, complete, state_of
from tlt_workloads.contract import DRAFTER_ROUTE, ROLLOUT_PORT, LeasePhase, RolloutState
from tlt_workloads.store import open_store
from tlt_workloads.trainer.checkpoint import load_checkpoint
from tlt_workloads.trainer.progress import latest_progress
from tlt_workloads.trainer.revisions import published_revisions

JOB = "chaos"
TRAINERS = f"tlt.dev/job={JOB},tlt.dev/component=trainer"
GATEWAYS = f"tlt.dev/job={JOB},tlt.dev/component=gateway"
LONG, MEDIUM, SHORT = 250, 80, 8  # tokens of answers; a long one outlasts what a fault takes
MIN_WINDOW = 3.0  # seconds, of the job: a shorter window would make the operator wait before the next
READY_SECONDS = 240.0  # a rollout pod that was killed loads its model again, after the kubelet's back-off
REST_SECONDS = 90.0
LEND_SECONDS = 240.0  # a trainer that was killed is made anew and imports for a while


class Moment(enum.Enum):
    """The state of rollout pod 0 in which a fault strikes."""

    IDLE = "Idle"
    LENT = "Lent"
    REVOKING = "Revoking"
    BUSY = "Busy"


@dataclass(frozen=True)
class Pod:
    """A pod as it is now."""

    name: str
    uid: str
    address: str
    rollout: str = ""  # of a trainer

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> Pod:
        meta, status = item["metadata"], item.get("status", {})
        rollout = meta.get("annotations", {}).get("tlt.dev/rollout-pod", "")
        return cls(meta["name"], meta["uid"], status.get("podIP", ""), rollout)


@dataclass(frozen=True)
class Kept:
    """What a fault may not cost."""

    trained_tokens: int
    revisions: frozenset[str]


class Scene:
    """The job under test."""

    def __init__(self, cluster: Cluster, namespace: str, *, volume: Path) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.volume = volume
        self.token = cluster.secret(f"{JOB}-tlt-control", namespace, "token")
        self.store = open_store(f"file://{volume}/{namespace}/{JOB}")
        self.pods = self.rollouts()
        self.checksum = ""

    # -- what is there ---------------------------------------------------------------------------------------------

    def rollouts(self) -> list[Pod]:
        """The ready rollout pods by name."""
        items = self.cluster.list("pods", self.namespace, labels="app=rollout")
        return sorted((Pod.of(item) for item in items if is_ready(item)), key=lambda pod: pod.name)

    def trainers(self) -> list[Pod]:
        """The job's trainer pods."""
        return [Pod.of(item) for item in self.cluster.list("pods", self.namespace, labels=TRAINERS)]

    def trainer_of(self, pod: Pod) -> Pod:
        """The trainer on a rollout pod's device."""
        found = [trainer for trainer in self.trainers() if trainer.rollout == pod.name and trainer.address]
        assert found, f"{pod.name} has no trainer"
        return found[0]

    def gateway(self) -> Pod:
        """The job's gateway."""
        [item] = self.cluster.pods_ready(self.namespace, GATEWAYS, 1)
        return Pod.of(item)

    def state(self, index: int) -> RolloutState:
        """What a rollout pod says of itself."""
        return state_of(self.pods[index].address, self.token)

    def kept(self) -> Kept:
        """Reads checkpoint and revisions, each in full."""
        revisions = published_revisions(self.store)
        for manifest in revisions:
            weights = self.store.read(f"revisions/{manifest.revision}/model.safetensors")
            assert hashlib.sha256(weights).hexdigest() == manifest.sha256, f"{manifest.revision} is damaged"
        progress = latest_progress(self.store)
        if progress.trained_tokens:
            assert load_checkpoint(self.store) is not None, "no checkpoint can be read"
        return Kept(progress.trained_tokens, frozenset(item.revision for item in revisions))

    def policy_checksum(self) -> str:
        """What both engines say of the policy's weights when the newest revision is loaded once more."""
        found = set()
        newest = published_revisions(self.store)[-1]
        body = {
            "revision": newest.revision,
            "url": f"file:///tlt/{self.namespace}/{JOB}/revisions/{newest.revision}",
            "sha256": newest.sha256,
        }
        for pod in self.pods:
            answer = requests.post(
                f"http://{pod.address}:{ROLLOUT_PORT}{DRAFTER_ROUTE}",
                json=body,
                headers={"Authorization": f"Bearer {self.token}"},
                timeout=60,
            )
            assert answer.status_code == 200, answer.text
            found |= {answer.json()["policyChecksumBefore"], answer.json()["policyChecksumAfter"]}
        assert len(found) == 1, f"the pods' policies differ: {found}"
        return str(found.pop())

    def multiply_records(self, copies: int) -> bool:
        """Copies what was captured under further names; False when nothing was captured yet."""
        folder = self.volume / self.namespace / JOB / "hidden-states"
        shards = [path for path in folder.glob("rollout-*/*.safetensors") if not path.name.startswith(".")]
        for number in range(copies if shards else 0):
            target = folder / f"copy-{number:03d}"
            target.mkdir(exist_ok=True)
            for path in shards:
                shutil.copyfile(path, target / path.name)
        return bool(shards)

    # -- what is done ----------------------------------------------------------------------------------------------

    def rest(self) -> None:
        """Waits until both pods are ready and nothing runs or is lent."""

        def at_rest() -> bool:
            pods = self.rollouts()
            assert len(pods) == 2, f"only {[pod.name for pod in pods]} are ready"
            self.pods = pods
            states = [self.state(index) for index in (0, 1)]
            return all(state.idle and state.lease is None and state.config_digest for state in states)

        eventually(quietly(at_rest), deadline=READY_SECONDS, every=0.5, reason="rest of both rollout pods")

    def lent(self, load: Load) -> str | None:
        """The lease under which a worker has pod 0's device; None while there is none."""
        lease = self.state(0).lease
        if lease is None or lease.phase is not LeasePhase.GRANTED or not load.running:
            return None
        return lease.id if node.trainer_worker(lease.holder.rpartition("/")[2]) is not None else None

    def lend(self, *, tokens: int = LONG) -> tuple[Load, str]:
        """Keeps pod 1 generating until a worker has pod 0's device; the load goes on."""
        loads: list[Load] = []

        def has_lease() -> tuple[Load, str] | None:
            if not loads or not loads[-1].running:
                if loads:
                    assert len(loads[-1].answers()) == 4
                loads.append(Load(self.pods[1].address, tokens=tokens, count=4))
            lease = self.lent(loads[-1])
            return (loads[-1], lease) if lease else None

        found: tuple[Load, str] | None = eventually(
            quietly(has_lease), deadline=LEND_SECONDS, every=0.2, reason="a worker on the idle pod"
        )
        assert found is not None
        return found

    def bring_into(self, moment: Moment) -> list[Load]:
        """Brings pod 0 into a state; the loads that go on meanwhile, pod 0's own last."""
        self.rest()
        match moment:
            case Moment.IDLE:
                return []
            case Moment.BUSY:
                return [Load(pod.address, tokens=LONG, count=2) for pod in reversed(self.pods)]
            case Moment.LENT:
                load, _ = self.lend()
                return [load]
            case Moment.REVOKING:
                load, lease = self.lend()
                self._outlast(lease)
                holder = self.state(0).lease
                if holder is not None and (worker := node.trainer_worker(holder.holder.rpartition("/")[2])):
                    with contextlib.suppress(ProcessLookupError):
                        worker.send(signal.SIGSTOP)  # so that handing back takes until it is killed
                return [load, Load(self.pods[0].address, tokens=SHORT)]

    def serve(self) -> None:
        """Both pods answer."""
        for pod in self.pods:
            assert len(complete(pod.address, tokens=SHORT)) == 1

    def _outlast(self, lease: str) -> None:
        """Lets a window last long enough that its interruption makes nobody wait."""

        def is_old() -> bool:
            now = self.state(0).lease
            return now is None or now.id != lease or now.age > MIN_WINDOW

        eventually(is_old, deadline=30, every=0.2, reason="a window of some length")


def quietly(probe: Callable[[], Any]) -> Callable[[], Any]:
    """A probe for which a pod or an API server that cannot be reached is no answer yet."""

    def ask() -> Any:
        try:
            return probe()
        except (requests.RequestException, OSError, ValueError) as error:
            raise AssertionError(f"{type(error).__name__}: {error}") from error

    return ask
