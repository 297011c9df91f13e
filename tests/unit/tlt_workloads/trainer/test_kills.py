"""Real workers that are killed go on as if nothing had happened.  `tests/chaos` kills more of them."""

from __future__ import annotations

from tests.support.kill_trial import kill_trial
from tests.support.windows import Blow, blows
from tlt_workloads.trainer.settings import TrainerSettings


async def test_killed_workers_reach_the_same_losses_as_one_that_lives(settings: TrainerSettings) -> None:
    moments: list[Blow] = blows(4, seed=1)
    course = await kill_trial(settings, moments, shards=40)
    assert course.kills == len(moments)
    assert len(course.losses) > 50
