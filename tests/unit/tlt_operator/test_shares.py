"""Leases that all jobs share: never more than the limit, and to the job that has harvested least."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.snapshots import busy, idle, lent, make_snapshot, make_trainer
from tlt_operator.api.names import ConditionType, Reason
from tlt_operator.plan.decision import Decision, Memory, decide
from tlt_operator.plan.ledger import Ledger
from tlt_operator.plan.lending import LeaseTerms
from tlt_operator.plan.shares import Wish, share_leases
from tlt_operator.reconcile.wishes import FRESH, Wishes

WISHES = st.lists(
    st.builds(
        Wish,
        job=st.sampled_from([f"ns/job-{number}" for number in range(6)]),
        held=st.integers(0, 3),
        wanted=st.integers(0, 3),
        idle=st.floats(0, 1e6),
        harvested=st.floats(0, 1e6),
    ),
    unique_by=lambda wish: wish.job,
)


@given(WISHES, st.integers(1, 10))
def test_limit_is_kept_and_no_lease_is_left_over(wishes: list[Wish], limit: int) -> None:
    given_out = share_leases(wishes, limit=limit)
    held = sum(wish.held for wish in wishes)
    wanted = sum(wish.wanted for wish in wishes)
    assert all(0 <= given_out[wish.job] <= wish.wanted for wish in wishes)
    assert sum(given_out.values()) == min(wanted, max(0, limit - held))


@given(WISHES, st.integers(1, 10))
def test_no_job_gets_one_that_a_job_which_harvested_less_still_wants(wishes: list[Wish], limit: int) -> None:
    given_out = share_leases(wishes, limit=limit)
    for wish in wishes:
        for other in wishes:
            if given_out[wish.job] and given_out[other.job] < other.wanted:
                assert wish.harvested_share <= other.harvested_share


@given(WISHES)
def test_without_a_limit_everybody_gets_what_it_wants(wishes: list[Wish]) -> None:
    assert share_leases(wishes, limit=0) == {wish.job: wish.wanted for wish in wishes}


@given(WISHES, st.integers(1, 10), st.randoms(use_true_random=False))
def test_order_of_the_jobs_does_not_matter(wishes: list[Wish], limit: int, random: object) -> None:
    shuffled = list(wishes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert share_leases(wishes, limit=limit) == share_leases(shuffled, limit=limit)


@given(st.lists(st.floats(5, 50), min_size=2, max_size=4))
@settings(max_examples=30)
def test_shares_even_out(idle_per_turn: list[float]) -> None:
    """One lease at a time, for jobs that always want it and have more or less idle time."""
    jobs = range(len(idle_per_turn))
    idle_time, harvested = [0.0] * len(jobs), [0.0] * len(jobs)
    for _ in range(200):
        wishes = [Wish(job=str(job), wanted=1, idle=idle_time[job], harvested=harvested[job]) for job in jobs]
        given_out = share_leases(wishes, limit=1)
        for job in jobs:
            idle_time[job] += idle_per_turn[job]
            harvested[job] += 5.0 * given_out[str(job)]
    shares = [harvested[job] / idle_time[job] for job in jobs]
    assert max(shares) - min(shares) < 0.02


def one_pass(*rivals: Wish, limit: int, harvested: float = 0.0) -> Decision:
    ledger = Ledger(idle=100.0, harvested=harvested)
    snapshot = make_snapshot(busy("a"), idle("b"), make_trainer("b"), rivals=rivals)
    return decide(snapshot, Memory(ledger=ledger), terms=LeaseTerms(limit=limit))


def test_job_waits_while_others_hold_all_leases() -> None:
    decision = one_pass(Wish(job="default/other", held=1), limit=1)
    assert decision.lending.grants == ()
    assert decision.lending.wish.wanted == 1
    found = next(item for item in decision.conditions if item.type is ConditionType.HARVESTING)
    assert found.reason is Reason.BUDGET_SPENT
    assert "TLT_MAX_LEASES" in found.message
    assert len(one_pass(Wish(job="default/other", held=1), limit=2).lending.grants) == 1
    assert len(one_pass(Wish(job="default/other", held=1), limit=0).lending.grants) == 1


def test_job_that_has_harvested_less_goes_first() -> None:
    rival = Wish(job="default/other", wanted=1, idle=100.0, harvested=20.0)
    assert one_pass(rival, limit=1, harvested=30.0).lending.grants == ()
    assert len(one_pass(rival, limit=1, harvested=10.0).lending.grants) == 1


def test_lease_that_was_just_granted_counts_for_the_others() -> None:
    decision = one_pass(limit=1)
    assert (decision.lending.wish.held, decision.lending.wish.wanted) == (1, 0)
    held = decide(make_snapshot(busy("a"), lent("b"), make_trainer("b")), Memory(), terms=LeaseTerms(limit=1))
    assert (held.lending.wish.held, held.lending.wish.wanted) == (1, 0)


def test_job_that_is_not_looked_at_any_more_wants_nothing_but_may_hold_until_its_lease_has_ended() -> None:
    wishes = Wishes()
    wishes.publish(Wish(job="a", held=1, wanted=1), now=0.0, wake=lambda: None)
    assert wishes.rivals("a", now=0.0, longest=600.0) == ()
    assert wishes.rivals("b", now=FRESH, longest=600.0) == (Wish(job="a", held=1, wanted=1),)
    assert wishes.rivals("b", now=FRESH + 1, longest=600.0) == (Wish(job="a", held=1, wanted=0),)
    assert wishes.rivals("b", now=601.0, longest=600.0) == ()
    wishes.forget("a")
    assert wishes.rivals("b", now=0.0, longest=600.0) == ()


def test_those_who_wait_are_woken_when_a_lease_becomes_free() -> None:
    wishes, woken = Wishes(), []
    wishes.publish(Wish(job="a", wanted=1), now=0.0, wake=lambda: woken.append("a"))
    wishes.publish(Wish(job="b", held=1), now=0.0, wake=lambda: woken.append("b"))
    wishes.publish(Wish(job="b", held=1), now=1.0, wake=lambda: woken.append("b"))
    assert woken == []
    wishes.publish(Wish(job="b", held=0), now=2.0, wake=lambda: woken.append("b"))
    assert woken == ["a"]
    wishes.forget("b")
    assert woken == ["a", "a"]
