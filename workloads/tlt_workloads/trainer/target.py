"""Finds the target model on this machine; torch-free, so that the supervisor can look before anything is loaded.

The folder holds the model as it was before RL.  Where the learner hands its policy over by file, the newest of these
files has what the policy has become, and a drafter that borrows embedding and head borrows those of today.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from tlt_workloads.contract import POLICY_FILE_PATTERN, POLICY_FOLDER
from tlt_workloads.store import Store


class TargetError(ValueError):
    """The target model is not there; the message names the field and every place that was tried."""


def find_target(model: str, *, environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of a model that is given as a path or as a name in the local Hugging Face cache.

    Raises:
        TargetError: nothing there.
    """
    folder = Path(model)
    if (folder / "config.json").is_file():
        return folder
    tried = [str(folder)]
    if not folder.is_absolute():
        home = Path(environment.get("HF_HOME", "~/.cache/huggingface")).expanduser()
        cache = Path(environment.get("HF_HUB_CACHE", home / "hub"))
        snapshots = cache / f"models--{model.replace('/', '--')}" / "snapshots"
        tried.append(str(snapshots))
        found = sorted(snapshots.glob("*/config.json"), key=lambda path: path.stat().st_mtime)
        if found:
            return found[-1].parent
    raise TargetError(
        f"spec.target.model: no config.json of {model!r}; tried {' and '.join(tried)}; "
        "mount the model there in the trainer template or name the path where it lies"
    )


def newest_policy(store: Store) -> Path | None:
    """The newest of the policy's files in the job's folder; None when there is none, or the store is not mounted."""
    found = [
        (int(match.group(1)), file.name)
        for file in (store.list(POLICY_FOLDER) if store.is_local else ())
        if (match := re.fullmatch(POLICY_FILE_PATTERN, file.name))
    ]
    return store.local_path(f"{POLICY_FOLDER}/{max(found)[1]}") if found else None
