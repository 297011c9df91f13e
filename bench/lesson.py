"""What a drafter is taught on one real engine: answers to the example's questions, recorded, and the trainer's window
loop over them, with the settings that a trainer pod has but for its learning rate.
"""

from __future__ import annotations

import concurrent.futures
import json
import shutil
import time
from pathlib import Path

import torch

from bench import engines, rl_task
from tests.support.rollout_server import JOB, RolloutServer
from tlt_workloads.contract import REVISION_FOLDER, REVISION_MANIFEST, RevisionManifest, TrainerConfig
from tlt_workloads.store import open_store
from tlt_workloads.trainer.data import Feed
from tlt_workloads.trainer.learner import Learner
from tlt_workloads.trainer.loop import train_window
from tlt_workloads.trainer.opening import open_session
from tlt_workloads.trainer.revisions import published_revisions
from tlt_workloads.trainer.settings import TrainerSettings
from tlt_workloads.trainer.stopping import StopFlag
from tlt_workloads.trainer.window import WorkerMessage

CAPTURE_BATCH = 32  # answers at once
QUESTIONS = 6000  # more than are asked
LEARNING_RATE = 3e-4
HELD_OUT_TOKENS = 4000  # more than a pod takes: figures of the curve rest on them


def take_steps(learner: Learner, feed: Feed, *, tokens: int, rows: int) -> int:
    """Trains on so many tokens, in micro-steps of so many rows, or on all there are; the tokens that were trained."""
    trained = 0
    while trained < tokens and (batch := feed.next_batch(rows)) is not None:
        trained += batch.packed.trained_tokens
        learner.micro_step(batch)
        feed.mark_trained(learner.step_if_due())
    return trained


class Lesson:
    """A server whose answers a drafter is trained on.

    Args:
        server: with the plugin.
        model: its policy's folder.
        draft_length: that is trained for.
        seed: of the questions.
    """

    def __init__(self, server: RolloutServer, model: Path, *, draft_length: int, seed: int) -> None:
        self.server = server
        self.lengths: list[int] = []  # of all recorded answers, in tokens; those to one question stand together
        self._questions = rl_task.prompts(QUESTIONS, seed=seed)
        self._pool = concurrent.futures.ThreadPoolExecutor(CAPTURE_BATCH)
        self._settings = TrainerSettings(
            job=JOB,
            store_url=f"file://{server.store}",
            rollout_url=server.url,
            holder="bench/00000000",
            token_file=server.store.parent / "token",
            config=TrainerConfig(target_model=str(model), draft_length=draft_length, learning_rate=LEARNING_RATE),
            held_out_tokens=HELD_OUT_TOKENS,
        )

    @property
    def recorded(self) -> int:
        """Tokens that the server has recorded."""
        return int(self.server.state()["capture"]["tokens"])

    def capture(self, tokens: int) -> None:
        """Has questions answered until so many tokens are recorded in all; the server is never short of requests."""
        engines.configure(self.server, capture={}, draft_length=0)
        jobs: list[concurrent.futures.Future[int]] = []
        while self.recorded < tokens:
            while len(waiting := [job for job in jobs if not job.done()]) < CAPTURE_BATCH:
                prompt = self._questions[(len(self.lengths) + len(jobs)) // rl_task.GENERATIONS]
                jobs += [self._pool.submit(self.answer, prompt) for _ in range(rl_task.GENERATIONS)]
            concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
        self.lengths += [job.result() for job in jobs]
        engines.configure(self.server, capture={"enabled": False}, draft_length=0)

    def answer(self, prompt: str, *, tokens: int = rl_task.LONGEST_ANSWER, fixed: bool = False) -> int:
        """Tokens of one answer, at the task's temperature; `fixed` goes on to exactly so many."""
        return engines.answer(self.server, prompt, max_tokens=tokens, temperature=rl_task.TEMPERATURE, ignore_eos=fixed)

    def train(self, seconds: float) -> None:
        """One window on all of this machine's cores."""
        stop, ends = StopFlag(), time.monotonic() + seconds
        session = open_session(self._settings, device=torch.device("cpu"), check=stop.abandon_step)

        def listen(_message: WorkerMessage) -> None:
            if time.monotonic() > ends:
                stop.set()

        train_window(session, stop, listen)
        session.close()

    def published(self) -> tuple[RevisionManifest, ...]:
        """All revisions so far, oldest first."""
        return tuple(published_revisions(open_store(self._settings.job_store_url)))

    def keep_newest(self, folder: Path) -> None:
        """Copies the newest revision, for benchmarks that need a drafter and not how it came about."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._revisions / self.published()[-1].revision, folder)

    def take_over(self, folder: Path) -> RevisionManifest:
        """Puts a revision in place that was kept.

        Raises:
            RuntimeError: there is none, or the server refuses it.
        """
        try:
            name = json.loads((folder / REVISION_MANIFEST).read_text())["revision"]
        except (OSError, ValueError, KeyError) as error:
            raise RuntimeError(f"{folder}: no drafter that python -m bench.learning has kept: {error}") from error
        shutil.copytree(folder, self._revisions / name)
        return self.load_newest()

    @property
    def _revisions(self) -> Path:
        return self.server.job / REVISION_FOLDER

    def load_newest(self) -> RevisionManifest:
        """Puts the newest revision in place.

        Raises:
            RuntimeError: there is none, or the server refuses it.
        """
        if not (found := self.published()):
            raise RuntimeError("training has published no revision; give it more tokens or more time")
        newest = found[-1]
        url = f"file://{self._revisions / newest.revision}"
        body = {"revision": newest.revision, "url": url, "sha256": newest.sha256}
        status, answer = self.server.call("POST", "/tlt/v1/drafter", body)
        if status != 200:
            raise RuntimeError(f"{newest.revision} was refused: {status} {answer}")
        return newest
