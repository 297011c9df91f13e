"""A trainer pod's settings for a folder of captured answers; imports no more than a trainer pod's first process."""

from __future__ import annotations

from pathlib import Path

from tlt_workloads.contract import TrainerConfig
from tlt_workloads.trainer.settings import TrainerSettings

DRAFT_LENGTH = 3
LOSS = "kl_div"  # that both trainers minimise


def job_settings(folder: Path, model: Path, *, job: str) -> TrainerSettings:
    """Settings of a pod whose store is `folder/store`."""
    return TrainerSettings(
        job=job,
        store_url=f"file://{folder}/store",
        rollout_url="http://127.0.0.1:9",
        holder="bench/00000000",
        token_file=folder / "token",
        config=TrainerConfig(target_model=str(model), draft_length=DRAFT_LENGTH, min_new_tokens=100),
    )
