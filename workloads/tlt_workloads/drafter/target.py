"""Single tensors of a target model, for a drafter to begin with."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tlt_workloads.drafter.shape import CONFIG_FILE, WEIGHTS_FILE, DrafterError, read_json

INDEX_FILE = "model.safetensors.index.json"


class TargetFiles:
    """Single tensors of a target model, read from its safetensors files without loading the rest.

    Args:
        folder: the model as it was before RL.
        newer: a file of its present weights by the same names; where it lacks one, or is gone, the folder's is read.
    """

    def __init__(self, folder: Path, *, newer: Path | None = None) -> None:
        if not (folder / CONFIG_FILE).is_file():
            raise DrafterError(
                f"spec.target.model: no {CONFIG_FILE} in {folder}; mount the model there or name its path"
            )
        self._folder = folder
        data = read_json(folder / CONFIG_FILE)
        self.config: Mapping[str, Any] = data.get("text_config", data)
        self._files = self._list_tensors()
        self._newer = newer

    @property
    def layers(self) -> int:
        """How many decoder layers the target has."""
        return int(self.config["num_hidden_layers"])

    def embedding(self) -> torch.Tensor:
        """[vocabulary, hidden]."""
        return self._one_of("embed_tokens.weight")

    def head(self) -> torch.Tensor:
        """[vocabulary, hidden]; the embedding when the target ties the two."""
        return self._one_of("lm_head.weight", "embed_tokens.weight")

    def final_norm(self) -> torch.Tensor:
        """[hidden]."""
        return self._one_of(
            ".norm.weight", starts=("model.norm.weight", "norm.weight", "model.language_model.norm.weight")
        )

    def last_layer(self, name: str) -> torch.Tensor | None:
        """A tensor of the last decoder layer, None when that layer has none of this name."""
        suffix = f"layers.{self.layers - 1}.{name}"
        found = [key for key in self._files if key == suffix or key.endswith(f".{suffix}")]
        return self._read(found[0]) if found else None

    def _one_of(self, *suffixes: str, starts: tuple[str, ...] = ()) -> torch.Tensor:
        for suffix in suffixes:
            for key in self._files:
                if (key in starts) if starts else (key == suffix or key.endswith(f".{suffix}")):
                    return self._read(key)
        raise DrafterError(f"{self._folder}: no tensor {' or '.join(suffixes)}")

    def _read(self, name: str) -> torch.Tensor:
        if self._newer is not None:
            with contextlib.suppress(OSError, SafetensorError), safe_open(self._newer, "pt") as file:
                newest: torch.Tensor = file.get_tensor(name)
                return newest
        with safe_open(self._files[name], "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def _list_tensors(self) -> dict[str, Path]:
        if (self._folder / INDEX_FILE).is_file():
            index = read_json(self._folder / INDEX_FILE)
            return {name: self._folder / file for name, file in index["weight_map"].items()}
        path = self._folder / WEIGHTS_FILE
        try:
            with safe_open(path, "pt") as file:
                return dict.fromkeys(file.keys(), path)
        except (OSError, SafetensorError) as error:
            raise DrafterError(f"spec.target.model: {path} cannot be read: {error}") from error
