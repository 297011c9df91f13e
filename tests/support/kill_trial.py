"""One job's training twice from the same beginning: with workers that are killed, and without."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from tests.support.toy_language import ToyLanguage
from tests.support.windows import Blow, Course, differences, run_killed
from tlt_workloads.store import open_store
from tlt_workloads.trainer.loop import train_window
from tlt_workloads.trainer.opening import open_session
from tlt_workloads.trainer.settings import TrainerSettings
from tlt_workloads.trainer.stopping import StopFlag
from tlt_workloads.trainer.window import WorkerMessage, WorkerStepped
from tlt_workloads.trainer.workshop import Workshop

TOLERANCE = 1e-4  # relative, of losses


async def kill_trial(settings: TrainerSettings, moments: list[Blow], *, shards: int) -> Course:
    """Fails when the two ways differ; the course of the killed one.

    Args:
        settings: for a job whose store is on this machine; micro-steps of less than an optimiser step, checkpoints
            within fractions of a second and some judging in between make it hard.
        moments: of the kills.
        shards: of the toy language, to learn from.
    """
    hard = replace(
        settings,
        publish_tokens=3000,
        cores=(min(os.sched_getaffinity(0)),),  # threads that wait for each other would take most of a busy machine
        config=replace(settings.config, micro_batch_tokens=96, checkpoint_interval=0.3),
    )
    killed, whole = replace(hard, job="namespace/killed"), replace(hard, job="namespace/whole")
    ToyLanguage(Path(hard.config.target_model)).write_shards(open_store(killed.job_store_url), count=shards)
    _begin(killed)
    shutil.copytree(_folder(killed), _folder(whole))
    workshop = Workshop()
    await workshop.warm_up()
    course = await run_killed(killed, moments, workshop=workshop)
    wanted = await run_killed(whole, [], workshop=workshop)
    assert not course.complaints, course.complaints[:5]
    assert not (found := differences(course.losses, wanted.losses, tolerance=TOLERANCE)), found
    return course


def _begin(settings: TrainerSettings) -> None:
    """A first window of one micro-step, so that there is a checkpoint to begin from."""
    stop = StopFlag()
    session = open_session(settings, device=torch.device("cpu"), check=stop.abandon_step)

    def listen(message: WorkerMessage) -> None:
        if isinstance(message, WorkerStepped):
            stop.set()

    train_window(session, stop, listen)
    session.close()


def _folder(settings: TrainerSettings) -> Path:
    return Path(settings.job_store_url.removeprefix("file://"))
