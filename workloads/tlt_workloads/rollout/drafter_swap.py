"""A new drafter in a worker: read and checked in a thread, put in place between two steps, undone when in doubt."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from tlt_workloads.contract import REVISION_WEIGHTS
from tlt_workloads.drafter import DrafterConfig, DrafterError, check_drafter_tensors
from tlt_workloads.rollout.checksum import policy_checksum, shared_tensors

NOT_LOADED = frozenset({"t2d"})  # vLLM derives it from d2t


class RefusedDrafterError(Exception):
    """These weights are not taken; `reason` is CamelCase."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class StagedDrafter:
    """A drafter that passed every check and waits to be put in place."""

    tensors: Mapping[str, torch.Tensor]
    checksum_before: str
    shared: frozenset[int]  # addresses that policy and drafter have in common
    backup: Mapping[str, torch.Tensor]  # host copies of these, in case that loading touches them all the same


class DrafterSwap:
    """One worker's drafter.

    Args:
        policy: the policy's model.
        drafter: the drafter's model.
        config: the drafter that the server started with; a new one must have exactly its tensors.
        initial: the tensors that the server started with, to go back to.
        load_tensors: puts tensors into the drafter through vLLM's weight-transfer session.
    """

    def __init__(
        self,
        *,
        policy: torch.nn.Module,
        drafter: torch.nn.Module,
        config: DrafterConfig,
        initial: Callable[[], Mapping[str, torch.Tensor]],
        load_tensors: Callable[[Mapping[str, torch.Tensor]], None],
    ) -> None:
        self._policy = policy
        self._drafter = drafter
        self._config = config
        self._initial = initial
        self._load_tensors = load_tensors
        self._active: Mapping[str, torch.Tensor] | None = None
        self._thread: threading.Thread | None = None
        self._staged: StagedDrafter | RefusedDrafterError | None = None

    def stage(self, folder: Path, *, sha256: str) -> None:
        """Starts to read a revision; a second call forgets the first."""
        self._begin(lambda: self._check(self._read(folder / REVISION_WEIGHTS, sha256)))

    def stage_own(self) -> None:
        """Starts to read the tensors that the server started with, as `stage` does a revision's."""
        self._begin(lambda: self._check(self._initial()))

    def _begin(self, read: Callable[[], StagedDrafter]) -> None:
        self._staged = None

        def work() -> None:
            try:
                staged: StagedDrafter | RefusedDrafterError = read()
            except RefusedDrafterError as error:
                staged = error
            except Exception as error:  # noqa: BLE001 - a thread has no caller; the asker gets the reason
                staged = RefusedDrafterError("Unreadable", f"{type(error).__name__}: {error}")
            if self._thread is threading.current_thread():
                self._staged = staged

        self._thread = threading.Thread(target=work, name="tlt-drafter", daemon=True)
        self._thread.start()

    def ready(self) -> bool:
        """Whether the drafter can be put in place.

        Raises:
            RefusedDrafterError: it was refused.
        """
        if isinstance(self._staged, RefusedDrafterError):
            raise self._staged
        return self._staged is not None

    def apply(self) -> dict[str, Any]:
        """Puts the staged drafter in place; called between two steps.

        Raises:
            RefusedDrafterError: loading failed or touched the policy; both were put back.
        """
        if not isinstance(self._staged, StagedDrafter):
            raise RefusedDrafterError("NotStaged", "no drafter is staged")
        staged, self._staged = self._staged, None
        began = time.perf_counter()
        try:
            self._load_tensors(staged.tensors)
            after = policy_checksum(self._policy, shared=staged.shared)
        except Exception as error:  # vLLM raises all kinds of errors while loading
            self._undo(staged)
            raise RefusedDrafterError("LoadFailed", f"{type(error).__name__}: {error}") from error
        if after != staged.checksum_before:
            self._undo(staged)
            raise RefusedDrafterError("PolicyTouched", "loading the drafter changed the policy; both were put back")
        self._active = staged.tensors
        return {"seconds": time.perf_counter() - began, "before": staged.checksum_before, "after": after}

    def _read(self, path: Path, sha256: str) -> Mapping[str, torch.Tensor]:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RefusedDrafterError("Unreadable", f"{path}: {error.strerror}") from error
        digest = hashlib.sha256(data).hexdigest()  # of the bytes that are parsed below, not of the file behind the name
        if digest != sha256.lower():
            raise RefusedDrafterError("DigestMismatch", f"{path} has sha256 {digest}, expected {sha256}")
        try:
            tensors: Mapping[str, torch.Tensor] = load(data)
            check_drafter_tensors(tensors, self._config)
        except SafetensorError as error:
            raise RefusedDrafterError("Unreadable", f"{path}: {error}") from error
        except DrafterError as error:
            raise RefusedDrafterError("TensorRefused", str(error)) from error
        return tensors

    def _check(self, tensors: Mapping[str, torch.Tensor]) -> StagedDrafter:
        """Notes what the policy is like before these come near it."""
        shared = shared_tensors(self._policy, self._drafter)
        addresses = frozenset(tensor.data_ptr() for tensor in shared.values())
        return StagedDrafter(
            tensors={name: tensor for name, tensor in tensors.items() if name not in NOT_LOADED},
            checksum_before=policy_checksum(self._policy, shared=addresses),
            shared=addresses,
            backup={name: tensor.detach().to("cpu", copy=True) for name, tensor in shared.items()},
        )

    def _undo(self, staged: StagedDrafter) -> None:
        """Puts back the shared tensors first: they decide what the policy says."""
        parameters = dict(self._policy.named_parameters()) | dict(self._policy.named_buffers())
        with torch.no_grad():
            for name, tensor in staged.backup.items():
                parameters[name].data.copy_(tensor)
        if self._active is None:
            self._active = self._initial()
        self._load_tensors(self._active)
