"""Whatever happens to a pool in whatever order: no pod that generates is taken, never two at once, and it ends."""

from __future__ import annotations

import dataclasses

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.pool_world import BROKEN, PoolPod, PoolWorld
from tlt_operator.plan.actions import ApplyPool, ReplacePod
from tlt_operator.plan.pool import Change

MOST = 4
ROUNDS = 60  # of everything in turn, enough for four pods with recall, trainer's end and replacement each


class PoolHistory(RuleBasedStateMachine):
    """Random histories of one pool; the operator hears of changes late, in parts, or after a restart."""

    @initialize(replicas=st.integers(1, MOST), suspend=st.booleans())
    def begin(self, replicas: int, suspend: bool) -> None:
        self.world = PoolWorld(replicas, suspend=suspend)
        self.seen = 0
        self.templates = 0
        self.settle()  # most of what matters happens to a pool that runs

    def pod(self, index: int) -> PoolPod | None:
        return self.world.pods[index % len(self.world.pods)] if self.world.pods else None

    @rule(index=st.integers(0, MOST))
    def request(self, index: int) -> None:
        pod = self.pod(index)
        if pod is not None:
            self.world.request(pod)

    @rule(index=st.integers(0, MOST))
    def finish(self, index: int) -> None:
        pod = self.pod(index)
        if pod is not None:
            pod.running = 0

    @rule(index=st.integers(0, MOST), begins=st.booleans())
    def update_policy(self, index: int, begins: bool) -> None:
        pod = self.pod(index)
        if pod is not None and pod.ready:
            pod.updating, pod.holder = begins, None

    @rule(index=st.integers(0, MOST))
    def cut_off(self, index: int) -> None:
        pod = self.pod(index)
        if pod is not None:
            pod.reachable = not pod.reachable

    @rule(index=st.integers(0, MOST))
    def crash(self, index: int) -> None:
        """The server of a pod starts again."""
        pod = self.pod(index)
        if pod is not None:
            pod.ready, pod.running, pod.updating, pod.holder = False, 0, False, None

    @rule(index=st.integers(0, MOST))
    def come_up(self, index: int) -> None:
        pod = self.pod(index)
        if pod is not None:
            self.world.come_up(pod)

    @rule(broken=st.sampled_from([False, False, True]))
    def change_template(self, broken: bool) -> None:
        self.templates += 1
        self.world.wanted = BROKEN if broken else f"t{self.templates}"

    @rule(replicas=st.integers(1, MOST))
    def scale(self, replicas: int) -> None:
        self.world.replicas = replicas

    @rule(
        steps=st.lists(
            st.sampled_from(["operate", "operate", "hear pods", "hear set", "control", "slow control"]),
            min_size=1,
            max_size=8,
        )
    )
    def go_on(self, steps: list[str]) -> None:
        """The cluster, its news and the operator, each as far as it comes."""
        for step in steps:
            match step:
                case "operate":
                    self.act()
                case "hear pods":
                    self.world.hear_pods()
                case "hear set":
                    self.world.hear_set()
                case _:
                    self.world.control(slow=step == "slow control")

    @rule(rounds=st.integers(1, 6), slow=st.booleans())
    def go_on_with_news(self, rounds: int, slow: bool) -> None:
        """The same without delay, and no pod changes by itself."""
        for _ in range(rounds):
            self.world.control(slow=slow)
            self.world.hear_pods()
            self.world.hear_set()
            self.act()

    @rule()
    def restart_operator(self) -> None:
        self.world.restart_operator()

    @precondition(lambda self: self.world.wanted != BROKEN)
    @rule()
    def let_it_come_to_rest(self) -> None:
        self.settle()
        world = self.world
        assert [pod.ordinal for pod in sorted(world.pods, key=lambda pod: pod.ordinal)] == list(range(world.replicas))
        assert {pod.template for pod in world.pods} == {world.wanted}
        assert world.last is not None
        assert world.last.pool is not None
        assert world.last.pool.change is Change.NONE

    def act(self) -> None:
        before = [dataclasses.replace(pod) for pod in self.world.pods]
        views = {view.pod.uid: view for view in self.world.heard_pods}
        for action in self.world.operate().actions:
            doomed = action.removed if isinstance(action, ApplyPool) else ()
            for uid in (action.rollout_uid,) if isinstance(action, ReplacePod) else doomed:
                state, pod = views[uid].state, views[uid].pod
                heard_idle = state is not None and state.idle and state.lease is None and views[uid].fault is None
                assert heard_idle or not pod.started, "a pod is taken that did not say it is idle"
        for taken, for_newer in self.world.taken[self.seen :]:
            pod = next(item for item in before if item.uid == taken.uid)
            assert pod.running == 0, "a pod that generates was taken"
            assert not pod.updating, "a pod in the middle of a policy update was taken"
            assert pod.holder is None, "a pod whose device is lent was taken"
            assert all(item.of != pod.uid for item in self.world.trainers), "its trainer still has its claim"
            if for_newer:
                assert pod.template != self.world.wanted
                others = [item for item in before if item.uid != pod.uid]
                assert not any(item.going for item in others), "two at once"
                assert len(others) >= self.world.replicas - 1, "one was missing already"
                if pod.ready:
                    fresh = [item for item in others if item.template == self.world.wanted]
                    assert all(item.ready for item in fresh if self.is_told(item)), "the one before is not ready"
        assert sum(for_newer for _, for_newer in self.world.taken[self.seen :]) <= 1
        self.seen = len(self.world.taken)

    def is_told(self, pod: PoolPod) -> bool:
        """Whether the operator knew that this pod was not ready."""
        view = next((view for view in self.world.heard_pods if view.pod.uid == pod.uid), None)
        return view is not None and not view.pod.ready

    def settle(self) -> None:
        """Everybody does what they should: requests end, pods come up, news arrive."""
        for _ in range(ROUNDS):
            self.world.control()
            for pod in self.world.pods:
                pod.running, pod.updating, pod.reachable = 0, False, True
                self.world.come_up(pod)
            self.world.hear_pods()
            self.world.hear_set()
            self.act()
            if self.rests():
                return

    def rests(self) -> bool:
        """Whether there is nothing left to do about the pods."""
        last, pods = self.world.last, self.world.pods
        assert last is not None
        assert last.pool is not None
        return not last.pool.actions and last.pool.change is Change.NONE and not any(pod.going for pod in pods)

    @invariant()
    def a_pod_that_is_to_go_is_not_lent(self) -> None:
        world = getattr(self, "world", None)
        if world is None or world.last is None or world.last.pool is None:
            return
        granted = {action.rollout_uid for action in world.last.lending.grants}
        assert not granted & world.last.pool.leaving


TestPoolHistory = PoolHistory.TestCase
TestPoolHistory.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
