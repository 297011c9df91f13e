"""Several operators, one Lease, a real API server: one acts, and another one soon after it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.api.conftest import World
from tests.support.eventually import eventually_async
from tlt_operator.clients.kube import LEASE, Kubernetes
from tlt_operator.reconcile.answers import cancel
from tlt_operator.reconcile.election import Election, ElectionTerms, LeadershipLostError

NAME = "tlt-operator"
TERMS = ElectionTerms(duration=2.0, deadline=1.2, renew=0.2, retry=0.2)


class Candidate:
    """An election, and when it acted by one clock for all."""

    def __init__(self, kube: Kubernetes, namespace: str, identity: str) -> None:
        self.election = Election(kube=kube, namespace=namespace, name=NAME, identity=identity, terms=TERMS)
        self.acted: list[float] = []
        self.lost: LeadershipLostError | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def crash(self) -> None:
        """Ends without a word."""
        if self._task is not None:
            await cancel(self._task)

    async def _run(self) -> None:
        await self.election.win()
        acting = asyncio.create_task(self._act())
        try:
            await self.election.hold()
        except LeadershipLostError as error:
            self.lost = error
        finally:
            await cancel(acting)

    async def _act(self) -> None:
        while True:
            self.acted.append(time.monotonic())
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def two(kube: Kubernetes, namespace: str) -> AsyncIterator[tuple[Candidate, Candidate]]:
    """The first one leads, the second one stands by."""
    first, second = Candidate(kube, namespace, "first"), Candidate(kube, namespace, "second")
    first.start()
    await eventually_async(lambda: first.acted)
    second.start()
    await asyncio.sleep(2 * TERMS.retry)
    yield first, second
    await first.crash()
    await second.crash()


async def test_one_acts_for_as_long_as_it_renews(two: tuple[Candidate, Candidate]) -> None:
    first, second = two
    await asyncio.sleep(2 * TERMS.duration)
    assert not second.acted
    assert time.monotonic() - first.acted[-1] < 1.0


async def test_after_a_crash_the_other_follows_and_they_never_overlap(two: tuple[Candidate, Candidate]) -> None:
    first, second = two
    await first.crash()
    await eventually_async(lambda: second.acted, deadline=10 * TERMS.duration)
    assert second.acted[0] > first.acted[-1]


async def test_a_released_lease_is_taken_without_the_wait(two: tuple[Candidate, Candidate], kube: Kubernetes) -> None:
    first, second = two
    await first.crash()
    await first.election.release()
    await eventually_async(lambda: second.acted)
    found = await kube.get(LEASE, namespace=second.election.namespace, name=NAME)
    assert found["spec"]["holderIdentity"] == "second"
    assert found["spec"]["leaseTransitions"] == 1


async def test_a_holder_cut_off_from_the_api_server_stops_before_the_other_begins(
    two: tuple[Candidate, Candidate], kubeconfig: Path
) -> None:
    first, second = two
    nowhere = await Kubernetes.connect(kubeconfig=str(kubeconfig), request_timeout=0.5)
    nowhere.configuration.host = "https://127.0.0.1:9"
    first.election.kube = nowhere
    await eventually_async(lambda: second.acted, deadline=10 * TERMS.duration)
    assert first.lost is not None
    assert first.acted[-1] < second.acted[0]
    await nowhere.close()


async def test_a_lease_that_a_person_gave_to_somebody_else_is_lost_at_once(
    two: tuple[Candidate, Candidate], kube: Kubernetes
) -> None:
    first, _ = two
    namespace = first.election.namespace
    await kube.patch(LEASE, namespace=namespace, name=NAME, body={"spec": {"holderIdentity": "somebody"}})
    await eventually_async(lambda: first.lost)
    assert "held by somebody" in str(first.lost)


async def test_a_deleted_lease_is_made_again(two: tuple[Candidate, Candidate], kube: Kubernetes) -> None:
    first, second = two
    namespace = first.election.namespace
    await kube.delete(LEASE, namespace=namespace, name=NAME)

    async def holder() -> str:
        found = await kube.find(LEASE, namespace=namespace, name=NAME)
        return str(found["spec"]["holderIdentity"]) if found else ""

    await eventually_async(holder)
    acting = {"first": first, "second": second}[await holder()]
    await eventually_async(lambda: acting.acted and time.monotonic() - acting.acted[-1] < 0.5)


async def test_of_many_at_once_one_wins(kube: Kubernetes, namespace: str) -> None:
    candidates = [Candidate(kube, namespace, f"candidate-{number}") for number in range(8)]
    for candidate in candidates:
        candidate.start()
    try:
        await eventually_async(lambda: any(candidate.acted for candidate in candidates))
        await asyncio.sleep(TERMS.duration)
        assert sum(bool(candidate.acted) for candidate in candidates) == 1
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*(candidate.crash() for candidate in candidates))


async def test_releasing_what_one_does_not_hold_does_nothing(kube: Kubernetes, namespace: str) -> None:
    await Election(kube=kube, namespace=namespace, name=NAME, identity="first").release()
    assert await kube.find(LEASE, namespace=namespace, name=NAME) is None


async def test_an_operator_that_lost_the_lease_lets_go_and_goes_on_when_it_has_it_again(world: World) -> None:
    await world.apply_job()
    busy, idle = await world.add_rollout("rollout-0"), await world.add_rollout("rollout-1")
    busy.generate()
    idle.finish(captured=1000)
    await eventually_async(lambda: idle.lease, deadline=60, reason="a lease")
    await world.jobs.pause()
    busy.finish()
    await asyncio.sleep(1.0)
    assert idle.lease is not None, "nobody asks it back now"
    assert not world.jobs.acting
    world.jobs.begin()
    await eventually_async(lambda: idle.last_lease, deadline=60, reason="the end of the adopted lease")
    assert idle.last_lease is not None
    assert idle.last_lease.reason == "WindowEnd"
