"""Accepted tokens of a drafter everywhere tell of a batch size until it has drafts of its own."""

from __future__ import annotations

import pytest

from tlt_workloads.contract import DraftSource
from tlt_workloads.rollout.draft_acceptance import AcceptanceSettings, DraftAcceptance
from tlt_workloads.rollout.plans import OFF, DraftPlan

TWO, NGRAM = DraftPlan(2), DraftPlan(2, DraftSource.NGRAM)


def new_acceptance() -> DraftAcceptance:
    return DraftAcceptance(AcceptanceSettings(longest=3))


def drafts(*accepted: int, of: str = "gone") -> list[tuple[str, int]]:
    """By one request, which does not run any more unless something is said of it."""
    return [(of, count) for count in accepted]


def test_without_drafts_a_step_yields_one_token() -> None:
    assert new_acceptance().tokens(8, OFF) == 1.0


def test_nothing_is_told_of_drafts_that_were_never_made() -> None:
    acceptance = new_acceptance()
    acceptance.note(8, TWO, drafts(1, 2))
    assert acceptance.tokens(8, DraftPlan(3)) is None
    assert acceptance.tokens(8, NGRAM) is None


def test_a_batch_size_without_drafts_is_told_by_all_others() -> None:
    acceptance = new_acceptance()
    acceptance.note(8, TWO, drafts(2, 1, 0, 1) * 100)
    assert acceptance.tokens(1, TWO) == pytest.approx(1 + 0.75 + 0.25)
    assert acceptance.tokens(1, DraftPlan(1)) == pytest.approx(1 + 0.75)


def test_a_batch_size_is_told_by_its_own_drafts_once_it_has_some() -> None:
    """N-grams find much in the long answers of a rollout's tail and little in those that have just begun."""
    acceptance = new_acceptance()
    acceptance.note(1, NGRAM, drafts(2) * 4000)
    acceptance.note(8, NGRAM, drafts(0) * 64)
    assert acceptance.tokens(8, NGRAM) == pytest.approx(1 + 2 * 0.5, rel=0.02)
    acceptance.note(8, NGRAM, drafts(0) * 1000)
    assert acceptance.tokens(8, NGRAM) == pytest.approx(1.0, abs=0.15)
    assert acceptance.tokens(1, NGRAM) == pytest.approx(3.0, rel=0.02)


def test_a_request_tells_of_itself_while_it_runs() -> None:
    acceptance = new_acceptance()
    acceptance.note(2, NGRAM, drafts(0) * 1000)
    acceptance.note_running({"dull", "repeating"})
    acceptance.note(2, NGRAM, drafts(2, of="repeating") * 16)
    assert acceptance.tokens(2, NGRAM) == pytest.approx(1 + (2 * 0.5 + 0) / 2, abs=0.05), "half of two requests"
    acceptance.note_running({"repeating"})
    acceptance.note(2, NGRAM, drafts(2, of="repeating") * 48)
    alone = acceptance.tokens(2, NGRAM)
    assert alone is not None
    assert alone > 2.5
    acceptance.note_running({"another"})
    assert acceptance.tokens(2, NGRAM) == pytest.approx(1.0, abs=0.25)


def test_newer_drafts_count_more() -> None:
    acceptance = new_acceptance()
    acceptance.note(4, TWO, drafts(0) * 5000)
    acceptance.note(4, TWO, drafts(2) * 5000)
    tokens = acceptance.tokens(4, TWO)
    assert tokens is not None
    assert tokens > 2.8


def test_a_new_drafter_is_credited_and_has_nothing_of_the_last_one() -> None:
    acceptance = new_acceptance()
    acceptance.note(4, TWO, drafts(0) * 500)
    acceptance.note(4, NGRAM, drafts(2) * 500)
    acceptance.forget(DraftSource.LEARNED)
    assert acceptance.tokens(4, TWO) is None
    assert acceptance.tokens(4, NGRAM) == pytest.approx(3.0)
    acceptance.note(4, TWO, drafts(0))
    few, credited = acceptance.tokens(4, TWO), acceptance.tokens(4, TWO, is_credited=True)
    assert few == 1.0
    assert credited is not None
    assert credited > 2.0
    acceptance.note(4, TWO, drafts(0) * 100)
    assert acceptance.tokens(4, TWO, is_credited=True) == 1.0
