"""How long the operator waits between two tries."""

from __future__ import annotations

import itertools

from tlt_operator.app import EndlessBackoffs
from tlt_operator.errors import OverloadedError, RefusedError, UnreachableError
from tlt_operator.reconcile.backoff import LONGEST, LONGEST_FINAL, SPREAD, Backoff


def test_waits_double_up_to_a_cap_that_depends_on_who_must_act() -> None:
    for error, longest in ((UnreachableError("x"), LONGEST), (RefusedError("x"), LONGEST_FINAL), (None, LONGEST)):
        backoff = Backoff(first=0.5)
        waits = [backoff.next(error) for _ in range(12)]
        assert 0.5 * (1 - SPREAD) <= waits[0] <= 0.5 * (1 + SPREAD)
        assert all(longest * (1 - SPREAD) <= wait <= longest * (1 + SPREAD) for wait in waits[-3:])
        backoff.reset()
        assert backoff.next(error) <= 0.5 * (1 + SPREAD)


def test_waits_are_never_shorter_than_the_server_asked_for() -> None:
    backoff = Backoff(first=0.5)
    assert backoff.next(OverloadedError("x", after=30.0)) == 30.0
    assert backoff.next(OverloadedError("x")) < 2.0


def test_kopf_never_gives_up() -> None:
    backoffs = EndlessBackoffs()
    first, second = list(itertools.islice(backoffs, 1000)), list(itertools.islice(backoffs, 1000))
    assert first == second
    assert max(first) == LONGEST
