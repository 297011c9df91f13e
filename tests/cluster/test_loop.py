"""The whole loop on a real node: real vLLM pods, real trainers on the same devices, real revisions.

The tests of this module are one story on one pair of rollout pods, because a pair takes a minute to start: each test
leaves the pods idle and the job as it found them, and none needs another to have run.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import requests

from tests.cluster.conftest import WORKLOADS_IMAGE, kill_operator, operator_pod
from tests.support.cluster import Cluster
from tests.support.eventually import eventually
from tests.support.rollouts import LABELS, MODEL, Load, complete, in_namespace, rollout_set, state_of, store_claim
from tlt_workloads.contract import EndedLease, LeasePhase, RevokeReason, RolloutState

JOB = "loop"
ENOUGH_TOKENS = 600
LONG = 400  # tokens of an answer that keeps a pod busy for a while


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """The job's two rollout pods."""

    cluster: Cluster
    namespace: str
    addresses: tuple[str, str]
    token: str

    def state(self, index: int) -> RolloutState:
        return state_of(self.addresses[index], self.token)

    def revisions(self, phase: str) -> list[str]:
        """Names of the job's revisions in this phase, oldest first."""
        items = self.cluster.list("drafterrevisions", self.namespace)
        return [item["metadata"]["name"] for item in items if item.get("status", {}).get("phase") == phase]

    def lease_training(self, index: int) -> bool:
        """Whether a trainer holds this pod's device."""
        lease = self.state(index).lease
        return lease is not None and lease.phase is LeasePhase.GRANTED

    def forget(self) -> None:
        """Lets the job's trainers begin anew, so that the next window has something better to publish for certain.

        A trainer that has given its device back may still be writing its last checkpoint, so this looks until nothing
        has come back since it last removed everything.
        """
        self.rest()
        pod = next(iter(self.cluster.list("pods", self.namespace, labels="app=rollout")))["metadata"]["name"]
        job = f"/tlt/{self.namespace}/{JOB}"
        script = (
            f"left=$(ls -d {job}/checkpoints/* {job}/revisions/*/manifest.json 2>/dev/null); rm -rf $left; echo $left"
        )
        eventually(
            lambda: not self.cluster.kubectl("exec", pod, "-n", self.namespace, "--", "sh", "-c", script).strip(),
            deadline=60,
            every=1,
            reason="an empty store of checkpoints and revisions",
        )

    def rest(self) -> None:
        """Waits until nothing runs and nothing is lent."""
        for index in (0, 1):
            eventually(
                lambda index=index: self.state(index).idle and self.state(index).lease is None,
                deadline=60,
                every=0.2,
                reason=f"rest of rollout pod {index}",
            )


def job(**changes: Any) -> dict[str, Any]:
    """The TLTJob under test; little data is enough, so that the story is short."""
    spec: dict[str, Any] = {
        "target": {"model": MODEL, "servedName": "policy"},
        "rollout": {"selector": {"matchLabels": LABELS}},
        "idle": {"after": "300ms", "minWindow": "3s", "scope": "Tail"},
        "drafter": {"speculativeTokens": 3},
        "training": {"trigger": {"minNewTokens": ENOUGH_TOKENS}},
        # One pod is idle for most of the story, so that a trial beside the other would have nothing to compare.
        "release": {"canary": {"replicas": 0}},
        "store": {"url": "file:///tlt", "volumeClaim": "store"},
    }
    return {"apiVersion": "tlt.dev/v1alpha1", "kind": "TLTJob", "metadata": {"name": JOB}, "spec": {**spec, **changes}}


@pytest.fixture(scope="module")
def rollouts(operator: Cluster, namespace: str) -> Rollouts:
    """Two ready rollout pods, adopted by a TLTJob, that have generated enough to learn from."""
    items = [store_claim(), job(), *rollout_set(JOB, image=WORKLOADS_IMAGE, device_class="gpu.example.com")]
    operator.apply(*(in_namespace(item, namespace) for item in items))
    pods = eventually(
        lambda: operator.pods_ready(namespace, "app=rollout", 2), deadline=300, every=1, reason="two ready rollout pods"
    )
    first, second = sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))
    made = Rollouts(
        operator,
        namespace,
        (first["status"]["podIP"], second["status"]["podIP"]),
        operator.secret(f"{JOB}-tlt-control", namespace, "token"),
    )
    eventually(
        lambda: operator.condition(JOB, namespace, "RolloutReady").get("status") == "True",
        deadline=90,
        every=0.5,
        reason="condition RolloutReady",
    )
    eventually(
        lambda: all(made.state(index).config_digest for index in (0, 1)),
        deadline=30,
        every=0.5,
        reason="both pods' configuration",
    )
    for address in made.addresses:
        complete(address, tokens=ENOUGH_TOKENS // 3, count=4)
    eventually(
        lambda: operator.condition(JOB, namespace, "DataReady").get("status") == "True",
        deadline=60,
        every=0.5,
        reason="condition DataReady",
    )
    return made


def train_while_the_other_generates(rollouts: Rollouts) -> Load:
    """Keeps pod 1 generating until a trainer has the device of pod 0; the load goes on."""
    rollouts.rest()
    load = Load(rollouts.addresses[1], tokens=LONG, count=4)
    eventually(
        lambda: rollouts.lease_training(0) or not load.running,
        deadline=240,
        every=0.1,
        reason="a lease on the idle pod",
    )
    if not rollouts.lease_training(0):  # the first trainer of a pod takes longer to start than one load lasts
        load.answers()
        return train_while_the_other_generates(rollouts)
    return load


def test_an_idle_pod_trains_while_the_other_generates_and_both_get_the_revision(rollouts: Rollouts) -> None:
    before = [rollouts.state(index) for index in (0, 1)]
    rollouts.forget()
    known = set(rollouts.revisions("Active"))

    def learned() -> bool:
        train_while_the_other_generates(rollouts).answers()
        return bool(set(rollouts.revisions("Active")) - known)

    eventually(learned, deadline=400, every=1, reason="a new active revision")

    def both_have_the_active_one() -> bool:
        active = rollouts.revisions("Active")  # asked again each time: the next one may be on its way
        return len(active) == 1 and all(rollouts.state(index).drafter_revision == active[0] for index in (0, 1))

    eventually(both_have_the_active_one, deadline=60, every=0.2, reason="the one active revision in both pods")
    after = [rollouts.state(index) for index in (0, 1)]
    assert after[0].lent_seconds > before[0].lent_seconds
    assert [state.failed_requests for state in after] == [0, 0]
    assert [state.aborted_requests for state in after] == [0, 0]
    assert [state.policy_version for state in after] == [state.policy_version for state in before]


def test_a_pod_whose_peers_are_idle_too_is_not_lent_in_scope_tail(rollouts: Rollouts) -> None:
    rollouts.rest()
    condition = eventually(
        lambda: (
            found
            if (found := rollouts.cluster.condition(JOB, rollouts.namespace, "Harvesting")).get("status") == "False"
            else None
        ),
        deadline=30,
        every=0.5,
        reason="Harvesting False",
    )
    assert condition["reason"] in {"OutOfScope", "NoIdlePod", "WaitingForData"}, condition
    assert [rollouts.state(index).lease for index in (0, 1)] == [None, None]


def test_a_request_takes_the_device_back(rollouts: Rollouts) -> None:
    load = train_while_the_other_generates(rollouts)
    failed_before = rollouts.state(0).failed_requests
    lease = rollouts.state(0).lease
    assert lease is not None
    assert len(complete(rollouts.addresses[0], tokens=16)) == 1

    def the_end() -> EndedLease | None:
        last = rollouts.state(0).last_lease
        return last if last is not None and last.id == lease.id else None

    ended = eventually(the_end, deadline=20, every=0.2, reason="the end of the lease")
    assert ended is not None
    assert ended.reason is RevokeReason.REQUEST
    assert rollouts.state(0).failed_requests == failed_before
    load.answers()


@pytest.mark.parametrize("moment", ["idle", "training", "handing back"])
def test_the_loop_goes_on_when_the_operator_is_killed(rollouts: Rollouts, moment: str) -> None:
    """A lease lives in the rollout pod, so a dead operator neither ends it nor keeps it."""
    rollouts.forget()
    known = set(rollouts.revisions("Active")) | set(rollouts.revisions("Superseded"))
    load = None
    if moment == "idle":
        rollouts.rest()
    else:
        load = train_while_the_other_generates(rollouts)
    if moment == "handing back":
        complete(rollouts.addresses[0], tokens=8)
    kill_operator(rollouts.cluster)
    if load is not None:
        assert len(load.answers()) == 4, "generation does not need the operator"
    operator_pod(rollouts.cluster)

    def learned() -> bool:
        train_while_the_other_generates(rollouts).answers()
        return bool(set(rollouts.revisions("Active")) - known)

    eventually(learned, deadline=400, every=1, reason="a new active revision after the operator's death")


def test_the_control_routes_refuse_a_wrong_token(rollouts: Rollouts) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = requests.get(f"http://{rollouts.addresses[0]}:8000/tlt/v1/state", headers=headers, timeout=10)
        assert answer.status_code == 401


def test_the_gateway_answers_for_all_pods(rollouts: Rollouts) -> None:
    service = rollouts.cluster.get("service", f"{JOB}-gateway", rollouts.namespace)
    assert service is not None
    before = [rollouts.state(index).requests for index in (0, 1)]
    assert len(complete(service["spec"]["clusterIP"], tokens=8, count=6)) == 6
    after = [rollouts.state(index).requests for index in (0, 1)]
    assert all(now > then for now, then in zip(after, before, strict=True)), "both pods took part"


def test_trainers_have_no_rights_and_end_with_the_job(rollouts: Rollouts) -> None:
    """Last in the story: it deletes the job."""
    train_while_the_other_generates(rollouts).answers()
    trainers = rollouts.cluster.list("pods", rollouts.namespace, labels="tlt.dev/component=trainer")
    assert trainers
    for pod in trainers:
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        [container] = pod["spec"]["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    rollouts.cluster.kubectl("delete", "tltjob", JOB, "-n", rollouts.namespace, "--timeout=60s")
    eventually(
        lambda: not rollouts.cluster.list("pods", rollouts.namespace, labels="tlt.dev/component=trainer"),
        deadline=60,
        every=0.5,
        reason="the end of the trainers",
    )
    assert len(rollouts.cluster.pods_ready(rollouts.namespace, "app=rollout", 2)) == 2, (
        "rollout pods belong to their owner"
    )
