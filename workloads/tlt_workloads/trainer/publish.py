"""Writes a revision: filtered bfloat16 weights, config, and last the manifest that makes it visible."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

import torch
from safetensors.torch import save

from tlt_workloads.contract import REVISION_MANIFEST, REVISION_WEIGHTS, Evaluation, RevisionManifest, encode
from tlt_workloads.drafter import CONFIG_FILE, DrafterConfig, check_drafter_tensors, drafter_tensors
from tlt_workloads.store import Store
from tlt_workloads.trainer.revisions import next_number, revision_folder, revision_name


def drafter_file(model: torch.nn.Module, config: DrafterConfig) -> dict[str, torch.Tensor]:
    """The tensors of the allow-list, in the element types that a drafter file has.

    Raises:
        DrafterError: one of them is not finite.
    """
    state = model.state_dict()
    tensors = {name: state[name].to("cpu", spec.dtype).contiguous() for name, spec in drafter_tensors(config).items()}
    check_drafter_tensors(tensors, config)
    return tensors


def publish_revision(
    store: Store,
    *,
    job: str,
    tensors: Mapping[str, torch.Tensor],
    config: DrafterConfig,
    parent: str | None,
    policy_versions: tuple[int, int],
    trained_tokens: int,
    evaluation: Evaluation,
    now: datetime,
) -> RevisionManifest:
    """Publishes under the next free number; several writers never get the same one.

    Raises:
        OSError: the store does not take it; nothing is visible then.
    """
    name = _claim(store, job, json.dumps(config.to_json(), indent=2).encode())
    weights = save(dict(tensors), metadata={"format": "pt"})
    store.write_atomic(f"{revision_folder(name)}/{REVISION_WEIGHTS}", weights)
    manifest = RevisionManifest(
        revision=name,
        job=job,
        sha256=hashlib.sha256(weights).hexdigest(),
        parent=parent,
        method="Eagle3",
        policy_versions=policy_versions,
        trained_tokens=trained_tokens,
        evaluation=evaluation,
        draft_vocab_size=config.draft_vocab_size,
        trainer_version=trainer_version(),
        created_at=now.isoformat(timespec="seconds"),
    )
    store.write_atomic(f"{revision_folder(name)}/{REVISION_MANIFEST}", json.dumps(encode(manifest), indent=2).encode())
    return manifest


def trainer_version() -> str:
    """Version of this distribution; "source" when it is not installed."""
    try:
        return version("tlt-operator")
    except PackageNotFoundError:
        return "source"


def _claim(store: Store, job: str, config: bytes) -> str:
    number = next_number(store)
    while not store.create(f"{revision_folder(revision_name(job, number))}/{CONFIG_FILE}", config):
        number += 1
    return revision_name(job, number)
