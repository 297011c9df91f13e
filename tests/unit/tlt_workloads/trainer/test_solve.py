"""When a drafter is solved for again, and what becomes of the training that was there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.toy_language import ToyLanguage
from tlt_workloads.store import Store
from tlt_workloads.trainer.checkpoint import load_checkpoint
from tlt_workloads.trainer.loop import train_window
from tlt_workloads.trainer.opening import open_session
from tlt_workloads.trainer.progress import TrainingProgress, latest_progress
from tlt_workloads.trainer.revisions import published_revisions
from tlt_workloads.trainer.settings import TrainerSettings
from tlt_workloads.trainer.solve import FEWEST_ROWS, GROWTH, WINDOW_SHARE, rows_due
from tlt_workloads.trainer.stopping import StepAbandonedError, StopFlag
from tlt_workloads.trainer.window import WorkerMessage, WorkerStepped

CPU = torch.device("cpu")
SOLVED = TrainingProgress(solved_rows=4000, solve_seconds=2.0, windows=4, trained_seconds=400.0)


def test_rows_that_have_doubled_are_solved_from() -> None:
    assert rows_due(SOLVED, known=7999, most=60_000) == 0
    assert rows_due(SOLVED, known=8000, most=60_000) == 8000
    assert rows_due(SOLVED, known=10**6, most=30_000) == 30_000
    assert rows_due(SOLVED, known=10**6, most=0) == 0


def test_short_windows_are_left_to_gradients() -> None:
    """A row takes half a millisecond, and a quarter of a window may be used."""
    usual = replace(SOLVED, trained_seconds=4 * 20.0)
    assert rows_due(usual, known=60_000, most=60_000) == 10_000
    assert rows_due(replace(usual, trained_seconds=4 * 10.0), known=60_000, most=60_000) == 0


def test_others_wait_for_it_for_a_moment_only() -> None:
    patient = replace(SOLVED, trained_seconds=4 * 1000.0)
    assert rows_due(patient, known=60_000, most=60_000) == 60_000
    assert rows_due(patient, known=60_000, most=60_000, others_wait=True) == 40_000  # at half a millisecond each


def test_a_job_that_began_with_too_little_is_solved_for_once_there_is_enough() -> None:
    never = TrainingProgress(windows=1, trained_seconds=30.0)
    assert rows_due(never, known=FEWEST_ROWS - 1, most=60_000) == 0
    assert rows_due(never, known=FEWEST_ROWS, most=60_000) == FEWEST_ROWS


@given(st.integers(0, 10**6), st.floats(0, 100), st.integers(0, 1000), st.floats(0, 10**5), st.integers(0, 10**7))
def test_it_never_takes_more_than_its_share_nor_repeats_itself(
    solved: int, seconds: float, windows: int, trained: float, known: int
) -> None:
    progress = TrainingProgress(solved_rows=solved, solve_seconds=seconds, windows=windows, trained_seconds=trained)
    rows = rows_due(progress, known=known, most=60_000)
    assert rows == 0 or max(FEWEST_ROWS, GROWTH * solved) <= rows <= min(known, 60_000)
    if rows and solved:
        assert rows * seconds / solved <= WINDOW_SHARE * trained / max(1, windows) * 1.001


def window(settings: TrainerSettings, *, micro_steps: int) -> None:
    stop = StopFlag()

    def listen(message: WorkerMessage) -> None:
        if isinstance(message, WorkerStepped) and message.steps == micro_steps:
            stop.set()

    session = open_session(settings, device=CPU, check=stop.abandon_step)
    train_window(session, stop, listen)
    session.close()


@pytest.fixture
def grown(
    settings: TrainerSettings, store: Store, language: ToyLanguage, monkeypatch: pytest.MonkeyPatch
) -> TrainerSettings:
    """A job whose first drafter was solved from little, and which has ten times as much now."""
    monkeypatch.setattr("tlt_workloads.trainer.solve.WINDOW_SHARE", 1e9)
    settings = replace(settings, publish_tokens=50)
    monkeypatch.setattr("tlt_workloads.trainer.solve.FEWEST_ROWS", 50)  # 300 are all that this language needs
    language.write_shards(store, count=3, first=1)
    window(settings, micro_steps=1)
    assert 0 < latest_progress(store).solved_rows < 250
    language.write_shards(store, count=80, first=4)
    return settings


def test_ten_times_the_rows_give_a_better_drafter(grown: TrainerSettings, store: Store) -> None:
    before = published_revisions(store)[-1]
    window(grown, micro_steps=2)
    progress, after = latest_progress(store), published_revisions(store)[-1]
    assert progress.solved_rows > 5000
    assert progress.trained_tokens > progress.solved_rows, "and gradients went on from there"
    assert progress.steps > progress.solved_steps > 0
    assert after.parent == before.revision
    assert after.evaluation.accept_length > before.evaluation.accept_length
    window(grown, micro_steps=1)
    assert latest_progress(store).solved_rows == progress.solved_rows, "once is enough"


def test_gradients_that_do_better_are_kept(
    grown: TrainerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tlt_workloads.trainer.session.judge", lambda *_, **__: None)
    before = latest_progress(store)
    window(grown, micro_steps=1)
    progress = latest_progress(store)
    assert progress.solved_rows > 5000, "it is not tried again at once"
    assert progress.solved_steps == 0
    assert progress.trained_tokens < before.trained_tokens + 1000


def test_being_interrupted_changes_nothing(grown: TrainerSettings, store: Store) -> None:
    before = load_checkpoint(store)
    assert before is not None
    session = open_session(grown, device=CPU, check=lambda: None)
    calls = 0

    def leave() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise StepAbandonedError

    with pytest.raises(StepAbandonedError):
        session.try_solution(leave)
    session.close()
    after = load_checkpoint(store)
    assert after is not None
    assert after[0].solved_rows == before[0].solved_rows
    assert all(torch.equal(tensor, after[1][name]) for name, tensor in before[1].items())


def test_a_drafter_that_the_job_brought_is_trained_as_it_is(grown: TrainerSettings) -> None:
    brought = replace(grown, config=replace(grown.config, initial_revision=f"{grown.job_store_url}/revisions/job-r1"))
    session = open_session(brought, device=CPU, check=lambda: None)
    assert not session.solve_due
    session.close()
