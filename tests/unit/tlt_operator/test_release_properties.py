"""Whatever happens to pods, operator and API server: what must never happen to a revision, and what always will."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support.release_world import ReleaseWorld

GOOD, BAD, START = 1.8, 1.0, 1.4
CANARIES = 2


class Release(RuleBasedStateMachine):
    """Five pods; every third revision is refused by all pods, every other third guesses nothing."""

    def __init__(self) -> None:
        super().__init__()
        lengths: dict[int | None, float] = {number: BAD if number % 3 == 1 else GOOD for number in range(1, 40)}
        release = {"canary": {"replicas": CANARIES, "minDrafts": 500, "timeLimit": "60s"}}
        self.world = ReleaseWorld(5, accept_lengths={None: START, **lengths}, **release)
        self.refused: set[str] = set()
        self.by_hand: set[str] = set()

    def number(self, name: str) -> int:
        return int(name.rpartition("-r")[2])

    # -- rules -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.world.objects) < 12)
    @rule()
    def publish(self) -> None:
        name = self.world.publish()
        if self.number(name) % 3 == 2:
            self.world.refusing.add(name)

    @rule(drafts=st.sampled_from((10, 400, 3000)), lost=st.booleans())
    def look(self, drafts: int, lost: bool) -> None:
        self.world.generate(drafts)
        self.check(lost=lost)

    @rule()
    def restart_operator(self) -> None:
        self.world.restart_operator()

    @rule(pod=st.integers(0, 4))
    def restart_pod(self, pod: int) -> None:
        self.world.servers[f"pod-{pod}"].restart()

    @rule(pod=st.integers(0, 4), reachable=st.booleans())
    def cut_off(self, pod: int, reachable: bool) -> None:
        server = self.world.servers[f"pod-{pod}"]
        if server.reachable and not reachable:
            server.silent_since = self.world.now
        server.reachable = reachable

    @rule()
    def update_policy(self) -> None:
        for server in self.world.servers.values():
            server.policy_version += 1

    @rule(suspend=st.booleans())
    def suspend(self, suspend: bool) -> None:
        self.world.suspend = suspend

    @precondition(lambda self: self.world.objects)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        self.world.roll_back(data.draw(st.sampled_from(sorted(self.world.objects))))

    # -- what must hold --------------------------------------------------------------------------------------------

    def check(self, *, lost: bool) -> None:
        world = self.world
        gone = {name for name in world.objects if world.phase(name) == "RolledBack"}
        done = len(world.loads)
        rollout = world.operate(lost_marks=lost)
        for _, revision in world.loads[done:]:
            assert revision not in gone, f"{revision} was rolled back, and a pod was told to load it"
        if rollout.trial is not None:
            assert len(rollout.trial.canaries) <= CANARIES
        for server in world.servers.values():
            self.refused |= server.refused.keys()

    @invariant()
    def nothing_refused_or_worthless_is_promoted(self) -> None:
        for name in self.world.objects:
            if self.number(name) % 3 in (1, 2):
                assert self.world.phase(name) != "Active", f"{name} must never be the active one"

    @invariant()
    def at_most_so_many_pods_try_a_revision(self) -> None:
        """As many as asked for; a pod that cannot be reached keeps what it had."""
        trying = [name for name in self.world.objects if self.world.phase(name) == "Canary"]
        for name in trying:
            having = [item for item in self.world.servers.values() if item.drafter == name and item.reachable]
            targets = {arm.pod for arm in self.world.memory.trial.canaries}
            assert len([item for item in having if item.name in targets]) <= CANARIES

    @invariant()
    def one_is_active_at_most(self) -> None:
        active = [name for name in self.world.objects if self.world.phase(name) == "Active"]
        assert len(active) <= 2, "the new one, and the last one until the next look"

    def teardown(self) -> None:
        """Left alone, every pod comes to have the active revision, and nothing stays undecided that can be decided."""
        world = self.world
        world.suspend = False
        for server in world.servers.values():
            server.reachable = True
        for _ in range(260):
            world.generate(500)
            self.check(lost=False)
        open_ones = [name for name in world.objects if world.phase(name) in (None, "Candidate", "Canary")]
        assert open_ones == [], {name: world.objects[name].get("status") for name in open_ones}
        active = [name for name in world.objects if world.phase(name) == "Active"]
        assert len(active) <= 1
        assert {server.drafter for server in world.servers.values()} == {active[0] if active else None}


Release.TestCase.settings = settings(max_examples=30, stateful_step_count=40, deadline=None, derandomize=True)
TestRelease = Release.TestCase


@pytest.mark.parametrize("adaptive", [False, True])
def test_twenty_bad_drafters_are_never_promoted_and_cost_the_job_little(adaptive: bool) -> None:
    """Each is tried by one pod of eight for as long as it takes to see, or until its engine turned away from it."""
    lengths: dict[int | None, float] = {None: 1.0, 1: START, **dict.fromkeys(range(2, 30), 1.002)}
    limit = "60s" if adaptive else "600s"
    world = ReleaseWorld(8, accept_lengths=lengths, canary={"replicas": 1, "minDrafts": 500, "timeLimit": limit})
    good = world.publish()
    world.promote(good)
    world.live(20, drafts=50)
    assert world.phase(good) == "Active"
    spent = total = 0
    for _ in range(20):
        bad = world.publish()
        if adaptive:
            world.avoided.add(bad)
        while world.phase(bad) != "RolledBack":
            world.live(1, drafts=50)
            spent += 50 * sum(server.drafter == bad for server in world.servers.values())
            total += 50 * len(world.servers)
            assert world.phase(bad) in ("Candidate", "Canary", "RolledBack", None)
        world.live(5, drafts=50)
    assert spent / total <= 1.1 / 8
    assert world.phase(good) == "Active"
    assert {server.drafter for server in world.servers.values()} == {good}


@pytest.mark.parametrize("pods", [1, 2, 3, 40])
def test_a_good_drafter_comes_to_every_pod(pods: int) -> None:
    world = ReleaseWorld(pods, accept_lengths={None: START, 1: GOOD}, canary={"replicas": 1, "minDrafts": 500})
    world.publish()
    world.live(200, drafts=50)
    assert world.phase("demo-r1") == "Active"
    assert {server.drafter for server in world.servers.values()} == {"demo-r1"}


def test_a_pod_that_never_answers_keeps_no_other_from_the_revision() -> None:
    world = ReleaseWorld(4, accept_lengths={None: START, 1: GOOD}, canary={"replicas": 1, "minDrafts": 500})
    world.servers["pod-2"].reachable = False
    world.publish()
    world.live(200, drafts=50)
    assert world.phase("demo-r1") == "Active"
    others = {name: server.drafter for name, server in world.servers.items() if name != "pod-2"}
    assert set(others.values()) == {"demo-r1"}
