"""Two trainers on two lent devices of a real node learn one drafter together; one may leave, or be killed, at any time.

One story on one pair of pods, because a pair takes a minute to start; each test begins with both trainers at work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from bench.rig import COPIES
from tests.cluster.conftest import WORKLOADS_IMAGE
from tests.support.cluster import Cluster, is_ready
from tests.support.eventually import eventually
from tests.support.rollouts import (
    LABELS,
    MODEL,
    complete,
    in_namespace,
    rollout_set,
    state_of,
    store_claim,
    trainer_state_of,
)
from tlt_operator.api.names import ROLLOUT_POD_ANNOTATION
from tlt_workloads.contract import EndedLease, LeasePhase, RevokeReason, RolloutState, TrainerState

JOB = "team"
PODS = ("rollout-0", "rollout-1")
TOKENS = 150  # of an answer
ENOUGH_COPIES = 20  # of what was recorded, so that no window ends for want of data


def job() -> dict[str, Any]:
    """The TLTJob under test: both devices are free whenever nobody asks."""
    spec = {
        "target": {"model": MODEL, "servedName": "policy"},
        "rollout": {"selector": {"matchLabels": LABELS}},
        "idle": {"after": "300ms", "minWindow": "3s", "scope": "AnyIdle"},
        "training": {"trigger": {"minNewTokens": 500}, "maxTrainers": 2},
        "release": {"canary": {"replicas": 0}},
        "store": {"url": "file:///tlt", "volumeClaim": "store"},
    }
    return {"apiVersion": "tlt.dev/v1alpha1", "kind": "TLTJob", "metadata": {"name": JOB}, "spec": spec}


@dataclasses.dataclass(frozen=True)
class Team:
    """The job's rollout pods, and the trainers beside them."""

    cluster: Cluster
    namespace: str
    addresses: Mapping[str, str]
    token: str

    def rollout(self, pod: str) -> RolloutState:
        return state_of(self.addresses[pod], self.token)

    def trainer_pods(self) -> dict[str, dict[str, Any]]:
        """The ready trainer pods, by the rollout pod whose device they share."""
        pods = self.cluster.list("pods", self.namespace, labels="tlt.dev/component=trainer")
        return {pod["metadata"]["annotations"][ROLLOUT_POD_ANNOTATION]: pod for pod in pods if is_ready(pod)}

    def trainers(self) -> dict[str, TrainerState]:
        """What they say, by rollout pod."""
        pods = self.trainer_pods()
        return {name: trainer_state_of(pod["status"]["podIP"], self.token) for name, pod in pods.items()}

    def replicas(self) -> dict[str, int]:
        """How many each of them trains with, by rollout pod."""
        return {name: state.replicas for name, state in self.trainers().items()}

    def lease(self, pod: str) -> str | None:
        """The lease under which the pod's device is lent."""
        lease = self.rollout(pod).lease
        return lease.id if lease is not None and lease.phase is LeasePhase.GRANTED else None

    def record(self) -> None:
        """Has both pods generate, and multiplies what was recorded of it."""
        for pod, address in self.addresses.items():
            complete(address, tokens=TOKENS, count=8)  # fewer leave nothing to judge by
            eventually(lambda pod=pod: self.rollout(pod).capture.shards, deadline=30, every=0.2, reason="shards")
        arguments = ("exec", "-i", PODS[0], "-n", self.namespace, "--", "python", "-")
        self.cluster.kubectl(*arguments, f"{self.namespace}/{JOB}", str(ENOUGH_COPIES), text=COPIES)

    def until_together(self) -> None:
        """Returns while both trainers train as one."""
        eventually(
            lambda: self.replicas() == dict.fromkeys(PODS, 2),
            deadline=240,
            every=0.5,
            reason="two trainers that train as one",
        )


@pytest.fixture(scope="module")
def team(operator: Cluster, namespace: str) -> Iterator[Team]:
    """Two ready rollout pods, adopted by a TLTJob whose lighthouse is ready."""
    items = [store_claim(), job(), *rollout_set(JOB, image=WORKLOADS_IMAGE, device_class="gpu.example.com")]
    operator.apply(*(in_namespace(item, namespace) for item in items))
    pods = eventually(
        lambda: operator.pods_ready(namespace, "app=rollout", 2), deadline=300, every=1, reason="two ready rollout pods"
    )
    eventually(
        lambda: operator.pods_ready(namespace, f"tlt.dev/job={JOB},tlt.dev/component=lighthouse", 1),
        deadline=60,
        every=0.5,
        reason="a ready lighthouse",
    )
    addresses = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in pods}
    made = Team(operator, namespace, addresses, operator.secret(f"{JOB}-tlt-control", namespace, "token"))
    eventually(
        lambda: all(made.rollout(pod).config_digest for pod in PODS),
        deadline=60,
        every=0.5,
        reason="both pods' configuration",
    )
    made.record()
    yield made
    operator.kubectl("delete", "tltjob", JOB, "-n", namespace, "--ignore-not-found", "--timeout=60s")


def test_two_idle_devices_train_one_drafter(team: Team) -> None:
    team.until_together()
    eventually(
        lambda: "together" in team.cluster.condition(JOB, team.namespace, "Harvesting").get("message", ""),
        deadline=30,
        every=0.5,
        reason="a condition that says so",
    )


def test_a_request_takes_one_device_back_and_the_other_trains_on(team: Team) -> None:
    team.until_together()
    taken, kept = team.lease("rollout-0"), team.lease("rollout-1")
    assert len(complete(team.addresses["rollout-0"], tokens=16)) == 1

    def the_end() -> EndedLease | None:
        last = team.rollout("rollout-0").last_lease
        return last if last is not None and last.id == taken else None

    ended = eventually(the_end, deadline=20, every=0.1, reason="the end of the lease")
    assert ended is not None
    assert ended.reason is RevokeReason.REQUEST
    assert team.lease("rollout-1") == kept, "nobody had asked for that one"
    assert [team.rollout(pod).failed_requests for pod in PODS] == [0, 0]
    team.until_together()


def test_a_trainer_that_is_killed_is_missed_by_nobody(team: Team) -> None:
    team.until_together()
    kept = team.lease("rollout-1")
    trained = team.trainers()["rollout-1"].trained_tokens
    killed = team.trainer_pods()["rollout-0"]["metadata"]
    team.cluster.kubectl("delete", "pod", killed["name"], "-n", team.namespace, "--grace-period=0", "--force")

    def trains_on() -> bool:
        state = team.trainers()["rollout-1"]
        return state.replicas == 1 and state.trained_tokens > trained

    eventually(trains_on, deadline=30, every=0.1, reason="the other one, training by itself")
    assert team.lease("rollout-1") == kept, "its window goes on"

    def another_has_come() -> bool:
        pod = team.trainer_pods().get("rollout-0")
        return pod is not None and pod["metadata"]["uid"] != killed["uid"]

    eventually(another_has_come, deadline=90, every=0.5, reason="another trainer in its place")
    team.until_together()


def test_what_they_learn_is_one_drafter(team: Team) -> None:
    """Whoever leads publishes, and both pods get the same."""

    def both_have_the_active_one() -> bool:
        items = team.cluster.list("drafterrevisions", team.namespace)
        active = [item["metadata"]["name"] for item in items if item.get("status", {}).get("phase") == "Active"]
        return len(active) == 1 and {team.rollout(pod).drafter_revision for pod in PODS} == set(active)

    eventually(both_have_the_active_one, deadline=180, every=0.5, reason="one active revision in both pods")
