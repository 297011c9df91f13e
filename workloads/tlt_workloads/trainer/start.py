"""Where training begins.

The newest checkpoint, else the newest revision, else the drafter that the job names, else one that is solved for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from tlt_workloads.contract import REVISION_WEIGHTS, TrainerConfig
from tlt_workloads.drafter import (
    CONFIG_FILE,
    DrafterConfig,
    DrafterError,
    DraftVocabulary,
    TargetFiles,
    check_drafter_tensors,
    draft_vocabulary,
    drafter_config,
    initial_tensors,
    parse_drafter_config,
)
from tlt_workloads.store import Store, open_store
from tlt_workloads.trainer.checkpoint import load_checkpoint
from tlt_workloads.trainer.progress import TrainingProgress
from tlt_workloads.trainer.revisions import published_revisions, revision_folder


@dataclass(frozen=True, eq=False)
class Start:
    """A drafter and how far it has come."""

    tensors: Mapping[str, torch.Tensor]  # by their names in a drafter file
    progress: TrainingProgress = field(default_factory=TrainingProgress)
    moments: Mapping[str, torch.Tensor] = field(default_factory=dict)  # of the optimiser, and the mean of the weights
    is_new: bool = False  # nothing of it is in the store


def shape_of_drafter(config: TrainerConfig, target: TargetFiles) -> DrafterConfig:
    """The drafter's shape: the named initial revision's, else the target's default.

    Raises:
        DrafterError: the initial revision does not fit the target or the draft vocabulary.
    """
    wanted = drafter_config(target.config, draft_vocab_size=config.draft_vocab_size)
    if config.initial_revision is None:
        return wanted
    data = json.loads(open_store(config.initial_revision).read(CONFIG_FILE))
    shape = parse_drafter_config(data, where=f"{config.initial_revision}/{CONFIG_FILE}")
    if (shape.hidden_size, shape.vocab_size) != (wanted.hidden_size, wanted.vocab_size):
        raise DrafterError(f"spec.drafter.initialRevision: {config.initial_revision} is not a drafter of this target")
    if shape.draft_vocab_size != wanted.draft_vocab_size:
        raise DrafterError(
            f"spec.drafter.draftVocabSize: {wanted.draft_vocab_size}, but the initial revision has "
            f"{shape.draft_vocab_size}"
        )
    return shape


def find_start(
    store: Store,
    *,
    config: TrainerConfig,
    target: TargetFiles,
    shape: DrafterConfig,
    token_weights: Callable[[], Mapping[int, float]],
) -> Start:
    """Where this window begins.

    Args:
        store: the job's folder.
        config: what the job asks for.
        target: the policy's files.
        shape: of the drafter.
        token_weights: how much each token is worth drafting; called only when the draft vocabulary has to be chosen,
            which happens once in a job's life.
    """
    if found := load_checkpoint(store):
        return start_from(*found)
    if revisions := published_revisions(store):
        newest = revisions[-1]
        progress = TrainingProgress(
            trained_tokens=newest.trained_tokens, attempted_tokens=newest.trained_tokens, parent=newest.revision
        )
        return Start(revision_tensors(store, newest.revision, shape), progress)
    weights = token_weights() if config.initial_revision is None else None  # that one brings its vocabulary
    chosen = draft_vocabulary(weights, draft_vocab_size=shape.draft_vocab_size, vocab_size=shape.vocab_size)
    return Start(untrained_tensors(config, target=target, shape=shape, vocabulary=chosen), is_new=True)


def start_from(progress: TrainingProgress, tensors: Mapping[str, torch.Tensor]) -> Start:
    """Where a learner whose `tensors()` these are would go on."""
    weights = {name[len("model.") :]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    moments = {name: tensor for name, tensor in tensors.items() if not name.startswith("model.")}
    return Start(weights, progress, moments)


def parent_tensors(
    store: Store,
    progress: TrainingProgress,
    *,
    config: TrainerConfig,
    target: TargetFiles,
    shape: DrafterConfig,
    vocabulary: DraftVocabulary,
) -> dict[str, torch.Tensor]:
    """The drafter to be better than: the last revision, or the untrained drafter before the first one."""
    if progress.parent is not None:
        return revision_tensors(store, progress.parent, shape)
    return untrained_tensors(config, target=target, shape=shape, vocabulary=vocabulary)


def untrained_tensors(
    config: TrainerConfig, *, target: TargetFiles, shape: DrafterConfig, vocabulary: DraftVocabulary
) -> dict[str, torch.Tensor]:
    """The drafter before any training."""
    if config.initial_revision is not None:
        return _read_weights(open_store(config.initial_revision), REVISION_WEIGHTS, shape)
    return initial_tensors(target, shape, vocabulary=vocabulary)


def revision_tensors(store: Store, revision: str, shape: DrafterConfig) -> dict[str, torch.Tensor]:
    """The weights of a published revision."""
    return _read_weights(store, f"{revision_folder(revision)}/{REVISION_WEIGHTS}", shape)


def _read_weights(store: Store, path: str, shape: DrafterConfig) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load(store.read(path))
    except (SafetensorError, OSError) as error:
        raise DrafterError(f"{store.url}/{path}: cannot be read: {error}") from error
    check_drafter_tensors(tensors, shape)
    return tensors
