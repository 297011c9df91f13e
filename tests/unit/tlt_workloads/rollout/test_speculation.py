"""Draft lengths by mode and batch size."""

from __future__ import annotations

import pytest

from tlt_workloads.contract import SpeculationMode, SpeculationSettings
from tlt_workloads.rollout.speculation import SpeculationRefusedError, draft_lengths


def lengths(mode: SpeculationMode, draft_length: int = 3) -> list[int]:
    settings = SpeculationSettings(mode=mode, draft_length=draft_length)
    return draft_lengths(settings, longest=3, largest_batch=4, max_batch=6)


@pytest.mark.parametrize("mode", [SpeculationMode.STATIC, SpeculationMode.ADAPTIVE])
def test_large_batches_draft_nothing(mode: SpeculationMode) -> None:
    assert lengths(mode, 2) == [0, 2, 2, 2, 2, 0, 0]


def test_off_drafts_nothing() -> None:
    assert lengths(SpeculationMode.OFF) == [0] * 7


def test_every_batch_size_has_an_entry() -> None:
    assert len(lengths(SpeculationMode.STATIC)) == 7


@pytest.mark.parametrize("length", [-1, 4])
def test_longer_drafts_than_the_server_was_started_for_are_refused(length: int) -> None:
    with pytest.raises(SpeculationRefusedError, match="draftLength"):
        lengths(SpeculationMode.STATIC, length)


def test_another_drafter_is_refused() -> None:
    with pytest.raises(SpeculationRefusedError, match="NGram"):
        lengths(SpeculationMode.NGRAM)
