"""Finds the target model on this machine; torch-free, so that the supervisor can look before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


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
