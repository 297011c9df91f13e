"""TRL's client of a vLLM server, with the policy handed over as a file in the shared store.

TRL 1.16 hands a policy over by an NCCL group, which needs a CUDA device on both sides and ends the run when a rollout
pod comes or goes.  A file needs neither: pods may join at any time, and it works on a CPU.  Everything else, generation
included, is TRL's own.

Use, before the trainer is made:

    trl_client.install("/tlt/my-namespace/my-job/policy")
    GRPOTrainer(..., args=GRPOConfig(use_vllm=True, vllm_mode="server", vllm_server_base_url=...))
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import trl.generation.vllm_generation
from trl.generation.vllm_client import VLLMClient

from tlt_workloads.contract import JOB_VARIABLE, POLICY_FILE_PATTERN, POLICY_FOLDER, STORE_URL_VARIABLE

# The newest is what a pod that joins is given; the one before may still be open in a slow reader.
KEPT_FILES = 2


class Activity(enum.StrEnum):
    """What the client spends the learner's time on."""

    GENERATE = "generate"
    WRITE_POLICY = "write-policy"  # to the store
    LOAD_POLICY = "load-policy"  # into the pods


@dataclass(frozen=True, kw_only=True)
class Span:
    """One stretch of one activity, in seconds since 1970."""

    activity: Activity
    begin: float
    end: float


class FileSyncClient(VLLMClient):  # type: ignore[misc]
    """A VLLMClient whose weight updates are files.  `install` binds the folder."""

    folder: Path
    observe: Callable[[Span], None] | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.policy_number = max(policy_files(self.folder), default=0)
        self._dtype: torch.dtype | None = None

    def init_communicator(self, device: torch.device | str | int = 0) -> None:
        """Tells the server that policies come by file; no group is formed, so any device will do."""
        model_config = self.get_server_info().get("model_config") or {}
        # The server casts what it loads, so casting here changes nothing but the size of the file.
        self._dtype = getattr(torch, str(model_config.get("dtype", "")).removeprefix("torch."), None)
        self._post(f"{self.base_url}/init_weight_transfer_engine", json={"init_info": {"transport": "file"}})

    def generate(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """TRL's own generation, observed."""
        with self._observed(Activity.GENERATE):
            result: dict[str, Any] = super().generate(*arguments, **options)
            return result

    def update_named_params(
        self, metadata: list[tuple[str, str, list[int]]], named_params: Iterator[tuple[str, torch.Tensor]]
    ) -> None:
        """Writes the tensors to one file, which all pods load."""
        with self._observed(Activity.WRITE_POLICY):
            path = self._write(dict(named_params))
        update_info = {"transport": "file", "path": str(path)}
        with self._observed(Activity.LOAD_POLICY):
            if not self._updating_weights:
                self._start_weight_update()
            self._post(f"{self.base_url}/update_weights", json={"update_info": update_info})
            if not self._updating_weights:
                self._finish_weight_update()

    def _finish_weight_update(self) -> None:
        version = f"policy-{self.policy_number}"
        self._post(f"{self.base_url}/finish_weight_update", json={"weight_version": version})
        self._remove_old_files()

    @contextlib.contextmanager
    def _observed(self, activity: Activity) -> Iterator[None]:
        begin = time.time()
        yield
        if self.observe is not None:
            self.observe(Span(activity=activity, begin=begin, end=time.time()))

    def _write(self, tensors: Mapping[str, torch.Tensor]) -> Path:
        """A new policy file, seen whole or not at all."""
        self.policy_number += 1
        path = self.folder / f"policy-{self.policy_number}.safetensors"
        # Names that begin with a dot are unfinished writes, as everywhere in the store.
        partial = self.folder / f".{path.name}.{secrets.token_hex(4)}.partial"
        try:
            safetensors.torch.save_file({name: self._portable(tensor) for name, tensor in tensors.items()}, partial)
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def _portable(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(device="cpu", dtype=self._dtype).contiguous()

    def _remove_old_files(self) -> None:
        files = policy_files(self.folder)
        for number in sorted(files)[:-KEPT_FILES]:
            files[number].unlink(missing_ok=True)


def policy_files(folder: Path) -> dict[int, Path]:
    """The finished policy files of a folder by number."""
    found = ((re.fullmatch(POLICY_FILE_PATTERN, path.name), path) for path in folder.iterdir())
    return {int(match.group(1)): path for match, path in found if match}


def policy_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """The job's policy folder in the store, from `TLT_STORE_URL` (a file URL or a path) and `TLT_JOB`.

    Raises:
        ValueError: a variable is missing, or the store is not on a mounted volume.
    """
    for variable in (STORE_URL_VARIABLE, JOB_VARIABLE):
        if not environment.get(variable):
            raise ValueError(f"{variable} is not set; the policy's files need the store that the rollout pods mount")
    url = environment[STORE_URL_VARIABLE]
    path = url.removeprefix("file://")
    if not path.startswith("/"):
        raise ValueError(f"{STORE_URL_VARIABLE}: {url!r} is not a mounted folder; write file:///folder")
    return Path(path) / environment[JOB_VARIABLE] / POLICY_FOLDER


def install(folder: Path | str | None = None, *, observe: Callable[[Span], None] | None = None) -> type[FileSyncClient]:
    """Makes TRL's trainers use FileSyncClient.

    TRL makes its client by this name and takes no other (trl 1.16, `VLLMGeneration._init_vllm`:
    https://github.com/huggingface/trl/blob/v1.16.0/trl/generation/vllm_generation.py).  It is the only name replaced.

    Args:
        folder: the job's policy folder in the store; by default from `TLT_STORE_URL` and `TLT_JOB`.
        observe: called after each generation and each part of a policy sync.
    """
    keep = staticmethod(observe) if observe is not None else None
    bound = type("BoundFileSyncClient", (FileSyncClient,), {"folder": Path(folder or policy_folder()), "observe": keep})
    trl.generation.vllm_generation.VLLMClient = bound
    return bound
