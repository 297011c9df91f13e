"""Where a window begins: what is in the store becomes a session."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tlt_workloads.drafter import TargetFiles
from tlt_workloads.shards import ShardMetadata
from tlt_workloads.store import open_store
from tlt_workloads.trainer.data import DataSettings, Feed
from tlt_workloads.trainer.model import read_frozen_target
from tlt_workloads.trainer.progress import latest_progress
from tlt_workloads.trainer.session import Session
from tlt_workloads.trainer.settings import TrainerSettings
from tlt_workloads.trainer.solve import solve_start
from tlt_workloads.trainer.start import find_start, shape_of_drafter
from tlt_workloads.trainer.target import find_target, newest_policy
from tlt_workloads.trainer.team.team import Team
from tlt_workloads.trainer.vocabulary import token_weights


def open_session(
    settings: TrainerSettings, *, device: torch.device, check: Callable[[], None], team: Team | None = None
) -> Session:
    """Reads state and data.

    Args:
        settings: of the pod.
        device: to train on.
        check: called inside micro-steps; raises to leave one.
        team: None trains alone for ever.

    Raises:
        StoreError, DrafterError: the settings do not fit what is there; trying again cannot help.
        StepAbandonedError: asked to stop before there was anything to keep.
    """
    store = open_store(settings.job_store_url)
    target = TargetFiles(find_target(settings.config.target_model), newer=newest_policy(store))
    shape = shape_of_drafter(settings.config, target)
    feed = Feed(
        store,
        metadata=ShardMetadata(model=settings.config.target_model, layer_ids=shape.layer_ids),
        settings=DataSettings(
            max_policy_lag=settings.config.max_policy_lag,
            draft_length=settings.config.draft_length,
            memory_bytes=settings.data_memory_bytes,
        ),
        progress=latest_progress(store).shards,
    )
    feed.refresh()
    start = find_start(
        store,
        config=settings.config,
        target=target,
        shape=shape,
        token_weights=lambda: token_weights(
            target.head(), feed.freshest(tokens=settings.solved_tokens), device=device, check=check
        ),
    )
    frozen = read_frozen_target(target, start.tensors.get("t2d"))
    if start.is_new and settings.config.initial_revision is None:
        start = solve_start(
            start,
            shape=shape,
            frozen=frozen,
            sequences=feed.freshest(tokens=settings.solved_tokens),
            device=device,
            check=check,
        )
    return Session(
        settings,
        store=store,
        target=target,
        shape=shape,
        frozen=frozen,
        start=start,
        feed=feed,
        device=device,
        check=check,
        team=team,
    )
