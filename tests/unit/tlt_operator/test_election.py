"""When a candidate may take the Lease: never while its holder may still act."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlt_operator.reconcile.election import ElectionTerms, Sighting, may_take, sighted

TERMS = ElectionTerms()


def lease(holder: str | None, *, version: str = "1", duration: int | None = 10) -> dict[str, Any]:
    return {
        "metadata": {"resourceVersion": version},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": duration},
    }


@pytest.mark.parametrize("free", [lease(None), lease(""), lease("me"), {"metadata": {"resourceVersion": "1"}}])
def test_a_free_lease_and_ones_own_can_be_taken_at_once(free: dict[str, Any]) -> None:
    assert may_take(free, sighted(free, None, now=5.0), identity="me", now=5.0)


def test_another_holder_is_waited_for_as_long_as_it_promised() -> None:
    held = lease("other", duration=7)
    seen = sighted(held, None, now=100.0)
    assert not may_take(held, seen, identity="me", now=106.9)
    assert may_take(held, seen, identity="me", now=107.0)


def test_every_renewal_starts_the_wait_again() -> None:
    seen = sighted(lease("other", version="1"), None, now=0.0)
    renewed = lease("other", version="2")
    seen = sighted(renewed, seen, now=9.0)
    assert seen == Sighting(version="2", at=9.0)
    assert not may_take(renewed, seen, identity="me", now=18.9)
    assert sighted(renewed, seen, now=12.0) == seen


@given(
    renewals=st.lists(st.floats(min_value=0.0, max_value=TERMS.deadline), max_size=20),
    delay=st.floats(min_value=0.0, max_value=60.0),
    offset=st.floats(min_value=-1e6, max_value=1e6),
)
def test_nobody_follows_while_the_holder_may_act(renewals: list[float], delay: float, offset: float) -> None:
    """The holder renews at any pace within its deadline; the candidate looks late, on a clock of its own."""
    written, seen = 0.0, None
    for number, pause in enumerate(renewals):
        written += pause
        held = lease("other", version=str(number), duration=round(TERMS.duration))
        seen = sighted(held, seen, now=written + delay + offset)
        acts_until = written + TERMS.deadline
        if may_take(held, seen, identity="me", now=acts_until + offset):
            raise AssertionError("the holder still acts")


@pytest.mark.parametrize("bad", [{"retry": 0.0}, {"renew": 9.0}, {"deadline": 12.0}])
def test_terms_under_which_two_could_act_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="renew < deadline < duration"):
        ElectionTerms(**bad)
