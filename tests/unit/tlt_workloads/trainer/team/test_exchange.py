"""A team's step: sums weighed by positions, the same bits everywhere, and nothing half done when somebody leaves."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tlt_workloads.trainer.stopping import StepAbandonedError
from tlt_workloads.trainer.team.exchange import Contribution, Exchange, Sum, Tried
from tlt_workloads.trainer.team.ring import Ring, RingBrokenError
from tlt_workloads.trainer.team.split import LEDGER_ENTRIES

MakeRings = Callable[[int], list[Ring]]


@pytest.fixture
def rings() -> Iterator[MakeRings]:
    """Rings whose members are threads of this process."""
    made: list[Ring] = []

    def make(size: int) -> list[Ring]:
        made.extend(one := connected(size))
        return one

    yield make
    for ring in made:
        ring.close()


def connected(size: int) -> list[Ring]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sending, receiving = [], []
        for _ in range(size):
            sending.append(socket.create_connection(server.getsockname()))
            receiving.append(server.accept()[0])
    return [
        Ring(rank=rank, size=size, sending=sending[rank], receiving=receiving[(rank - 1) % size])
        for rank in range(size)
    ]


def patient(_silence: float) -> None:
    """Waits for ever."""


def parameters(seed: int) -> list[torch.nn.Parameter]:
    """One without gradient among them, as a drafter has some."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for shape, has_gradient in (((300, 7), True), ((5,), False), ((1,), True)):
        parameter = torch.nn.Parameter(torch.zeros(shape))
        if has_gradient:
            parameter.grad = torch.randn(shape, generator=generator)
        made.append(parameter)
    return made


def step(ring: Ring, rank: int, size: int, own: list[torch.nn.Parameter]) -> Sum:
    contribution = Contribution(
        positions=100 * (rank + 1),
        policy_versions=(rank + 1, rank + 2),
        used={2**63 + rank: 40 + rank},
        tried=Tried(tokens=2**30 + rank, seconds=1.5, revision=3),
    )
    return Exchange(rank=rank, size=size).sum(ring, own, contribution, others_wait=rank == 0, wait=patient)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_everybody_ends_with_the_same_bits_and_knows_what_they_are_made_of(rings: MakeRings, size: int) -> None:
    everybody = rings(size)
    own = [parameters(rank) for rank in range(size)]
    expected = [sum(one[place].grad for one in own if one[place].grad is not None) for place in (0, 2)]
    with ThreadPoolExecutor(size) as threads:
        sums = list(threads.map(lambda rank: step(everybody[rank], rank, size, own[rank]), range(size)))
    for place, wanted in zip((0, 2), expected, strict=True):
        torch.testing.assert_close(own[0][place].grad, wanted)
        assert all(torch.equal(own[0][place].grad, one[place].grad) for one in own[1:])
    assert all(torch.count_nonzero(one[1].grad) == 0 for one in own)
    for rank, found in enumerate(sums):
        assert found.positions == sum(100 * (other + 1) for other in range(size))
        assert found.policy_versions == (1, size + 1)
        assert found.others_wait
        assert set(found.others_used) == {(2**63 + other, 40 + other) for other in range(size) if other != rank}
        assert found.tried == (Tried(tokens=2**30, seconds=1.5, revision=3) if rank else None)


def test_whoever_leaves_frees_the_others_at_once_and_their_gradients_stay(rings: MakeRings) -> None:
    stays, leaves = rings(2)
    own = parameters(0)
    before = own[0].grad.clone()
    leaves.close()
    with pytest.raises(RingBrokenError):
        step(stays, 0, 2, own)
    assert torch.equal(own[0].grad, before)


def test_a_sum_can_be_left_while_the_others_are_silent(rings: MakeRings) -> None:
    stays, _silent = rings(2)
    own, looks = parameters(0), []
    before = own[0].grad.clone()

    def stop(silence: float) -> None:
        looks.append(silence)
        if len(looks) == 3:
            raise StepAbandonedError

    with pytest.raises(StepAbandonedError):
        Exchange(rank=0, size=2).sum(
            stays, own, Contribution(positions=1, policy_versions=(1, 1)), others_wait=False, wait=stop
        )
    assert torch.equal(own[0].grad, before)


def test_what_finds_no_room_is_told_with_the_next_step(rings: MakeRings) -> None:
    giver, taker = rings(2)
    many = {2**40 + number: 1 for number in range(LEDGER_ENTRIES + 7)}
    exchanges = [Exchange(rank=rank, size=2) for rank in range(2)]
    used = [many, {}]
    told: dict[int, int] = {}

    def both(rank: int, used: dict[int, int]) -> Sum:
        return exchanges[rank].sum(
            [giver, taker][rank],
            parameters(rank),
            Contribution(positions=1, policy_versions=(1, 1), used=used),
            others_wait=False,
            wait=patient,
        )

    with ThreadPoolExecutor(2) as threads:
        for turn in range(2):
            _, found = threads.map(lambda rank: both(rank, used[rank] if turn == 0 else {}), range(2))  # noqa: B023
            told |= dict(found.others_used)
            if turn == 0:
                assert len(told) == LEDGER_ENTRIES
    assert told == many
