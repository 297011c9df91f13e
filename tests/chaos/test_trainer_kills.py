"""Twenty workers are killed at random moments; together they learn what one learns that lives.

`TLT_CHAOS_SEED` draws the moments.  Real processes and a real store, no cluster.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.kill_trial import kill_trial
from tests.support.tiny_target import write_tiny_target
from tests.support.windows import blows
from tlt_workloads.contract import TrainerConfig
from tlt_workloads.trainer.settings import TrainerSettings

KILLS = 20
SEED = int(os.environ.get("TLT_CHAOS_SEED", "1"))


@pytest.fixture
def settings(tmp_path: Path) -> TrainerSettings:
    target = write_tiny_target(tmp_path / "target")
    return TrainerSettings(
        job="namespace/job",
        store_url=f"file://{tmp_path}/store",
        rollout_url="http://127.0.0.1:9",
        holder="pod/12345678-uid",
        token_file=tmp_path / "token",
        config=TrainerConfig(target_model=str(target), draft_vocab_size=92, learning_rate=3e-3),
    )


async def test_twenty_kills_and_none_reach_the_same_loss_curve(settings: TrainerSettings) -> None:
    course = await kill_trial(settings, blows(KILLS, seed=SEED), shards=160)
    print(
        f"\n{course.kills} workers killed, {course.repeated} of {len(course.losses)} micro-steps repeated, seed {SEED}"
    )
    assert course.kills == KILLS
    assert course.repeated > 0, "no kill has taken anything back"
