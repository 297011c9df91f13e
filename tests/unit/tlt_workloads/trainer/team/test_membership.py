"""Who follows whom, who heals, and that two sides never go on without each other."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlt_workloads.trainer.team.membership import (
    Introduction,
    Member,
    Survey,
    form,
    host_among,
    may_go_on,
    next_host,
    read_introductions,
    signed,
)

LINEAGE, OTHER = "a" * 32, "b" * 32


def member(number: int, *, lineage: str = LINEAGE, steps: int = 10) -> Member:
    name = f"{number:032x}"
    return Member(
        replica=name, url=f"http://10.0.0.{number}:8002", knock=name[::-1], lineage=lineage, steps=steps, tokens=steps
    )


def introduction(
    number: int, *, lineage: str | None = None, established: bool = True, began_at: int = 0, rank: int = 0
) -> Introduction:
    return Introduction(
        replica=f"{number:032x}",
        url=f"http://10.0.0.{number}:8002",
        lineage=lineage or f"{number:032x}",
        rank=rank,
        began_at=began_at,
        is_established=established,
    )


def test_equal_steps_of_another_history_are_healed_and_never_averaged() -> None:
    host, stranger = member(1), member(2, lineage=OTHER, steps=10)
    formation = form("c" * 32, host, [stranger])
    assert formation.giver == host
    assert formation.must_heal(stranger)
    assert not formation.must_heal(host)


def test_a_stranger_that_is_further_follows_all_the_same() -> None:
    host, stranger = member(1, steps=10), member(2, lineage=OTHER, steps=500)
    assert form("c" * 32, host, [stranger]).giver == host


def test_those_that_have_the_last_step_of_a_broken_team_give_it_to_those_that_do_not() -> None:
    host, further = member(1, steps=10), member(2, steps=11)
    formation = form("c" * 32, host, [further])
    assert formation.giver == further
    assert formation.must_heal(host)
    assert formation.rank(host.replica) == 0, "the host leads whoever gives the state"


def test_kin_at_the_same_step_need_nothing() -> None:
    assert not form("c" * 32, member(2), [member(1), member(3)]).heals_anybody


def test_everybody_finds_the_same_host() -> None:
    found = [
        introduction(1, established=False, began_at=900),
        introduction(2, began_at=100),
        introduction(3, lineage=OTHER, began_at=200, rank=1),
        introduction(4, lineage=OTHER, began_at=200, rank=0),
    ]
    hosts = {host_among(order) for order in itertools.permutations(found)}
    assert hosts == {found[3]}, "the established lineage that began with most, by its lowest rank"
    assert host_among([]) is None


def test_only_what_a_holder_of_the_token_has_signed_is_believed() -> None:
    honest = signed(introduction(1), "secret")
    moved = {**honest, "url": "http://203.0.113.5:8002"}
    foreign = signed(introduction(2), "another job's")
    assert read_introductions([honest, moved, foreign, {}, {"replica": 5}], ["secret"]) == (introduction(1),)


def test_both_tokens_count_during_a_rotation() -> None:
    assert read_introductions([signed(introduction(1), "new")], ["old", "new"]) == (introduction(1),)


@pytest.mark.parametrize("field", ["url", "lineage", "rank", "began_at", "is_established", "replica"])
def test_the_signature_covers_everything(field: str) -> None:
    one = introduction(1)
    changed = {
        "url": "http://10.9.9.9:1",
        "lineage": OTHER,
        "rank": 3,
        "began_at": 7,
        "is_established": False,
        "replica": OTHER,
    }
    assert replace(one, **{field: changed[field]}).signature("secret") != one.signature("secret")


def test_whoever_knows_that_all_others_are_gone_goes_on_without_asking() -> None:
    survey = Survey(rank=1, alive=frozenset(), gone=frozenset({0}))
    assert may_go_on(survey, size=2)
    assert next_host(survey) == 1


def test_of_two_that_cannot_see_each_other_the_lower_rank_goes_on() -> None:
    nobody: frozenset[int] = frozenset()
    assert may_go_on(Survey(rank=0, alive=nobody, gone=nobody), size=2)
    assert not may_go_on(Survey(rank=1, alive=nobody, gone=nobody), size=2)


@given(st.lists(st.integers(0, 2), min_size=2, max_size=7))
def test_of_all_sides_of_a_split_network_one_at_most_goes_on(sides: list[int]) -> None:
    """Each rank sees those on its own side and nothing of the others."""
    going = set()
    for rank, side in enumerate(sides):
        alive = frozenset(other for other, there in enumerate(sides) if there == side and other != rank)
        if may_go_on(Survey(rank=rank, alive=alive, gone=frozenset()), size=len(sides)):
            going.add(side)
    assert going == {sides[0]}, "the side of rank 0, and all of it"
