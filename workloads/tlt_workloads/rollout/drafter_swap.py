"""A new drafter in a worker: read and checked in a thread, put in place between two steps, undone when in doubt."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from tlt_workloads.contract import DrafterRefusal
from tlt_workloads.drafter import DrafterConfig
from tlt_workloads.rollout.background import background_thread
from tlt_workloads.rollout.checksum import policy_checksum, shared_tensors
from tlt_workloads.rollout.locations import OutsideStoreError
from tlt_workloads.rollout.revision_files import read_shape, read_tensors
from tlt_workloads.rollout.revision_folder import RefusedDrafterError, RevisionFolder

NOT_LOADED = frozenset({"t2d"})  # vLLM derives it from d2t
HEAD = "lm_head.weight"


@dataclass(frozen=True, kw_only=True)
class PolicyMark:
    """The policy as it was at a moment, to tell whether loading a drafter touched it, and to put it back."""

    generation: int
    checksum: str
    shared: frozenset[int]  # addresses that policy and drafter have in common
    backup: Mapping[str, torch.Tensor]  # host copies of these


@dataclass(frozen=True, kw_only=True)
class ReadyDrafter:
    """A drafter that passed every check."""

    tensors: Mapping[str, torch.Tensor]
    head_is_copy: bool  # its head is a frozen copy of the policy's rows, and must follow them


@dataclass(frozen=True, kw_only=True)
class StagedDrafter:
    """What waits to be put in place."""

    drafter: ReadyDrafter
    policy: PolicyMark | None  # None: it was being written just then


class DrafterSwap:
    """One worker's drafter.

    Args:
        policy: the policy's model.
        drafter: the drafter's model.
        find: the folder of the job at a location; raises OutsideStoreError for any other.
        config: the drafter that the server started with; a new one must have exactly its tensors.
        initial: the tensors that the server started with, to go back to.
        load_tensors: puts tensors into the drafter through vLLM's weight-transfer session.
        generation: how often the policy's weights have been written since start.
        head_rows: the policy's head, [tokens, hidden], of these target ids; None when it cannot be read.
    """

    def __init__(
        self,
        *,
        policy: torch.nn.Module,
        drafter: torch.nn.Module,
        find: Callable[[str], RevisionFolder],
        config: DrafterConfig,
        initial: Callable[[], Mapping[str, torch.Tensor]],
        load_tensors: Callable[[Mapping[str, torch.Tensor]], None],
        generation: Callable[[], int],
        head_rows: Callable[[torch.Tensor], torch.Tensor | None],
    ) -> None:
        self._policy = policy
        self._drafter = drafter
        self._find = find
        self._config = config
        self._initial = initial
        self._load_tensors = load_tensors
        self._generation = generation
        self._head_rows = head_rows
        self._active: ReadyDrafter | None = None
        self._thread: threading.Thread | None = None
        self._staged: StagedDrafter | RefusedDrafterError | None = None

    def stage(self, location: str, *, sha256: str) -> None:
        """Starts to read a revision; a second call forgets the first."""
        self._begin(lambda: self._read(location, sha256))

    def stage_own(self) -> None:
        """Starts to read the tensors that the server started with, as `stage` does a revision's."""
        self._begin(lambda: self._staged_beside(self._own()))

    def _begin(self, read: Callable[[], StagedDrafter]) -> None:
        self._staged = None

        def work() -> None:
            try:
                staged: StagedDrafter | RefusedDrafterError = read()
            except RefusedDrafterError as error:
                staged = error
            except Exception as error:  # noqa: BLE001 - a thread has no caller; the asker gets the reason
                staged = RefusedDrafterError(DrafterRefusal.UNREADABLE, f"{type(error).__name__}: {error}")
            if self._thread is threading.current_thread():
                self._staged = staged

        self._thread = background_thread(work, name="tlt-drafter")
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
            raise RefusedDrafterError(DrafterRefusal.NOT_STAGED, "no drafter is staged")
        staged, self._staged = self._staged, None
        began = time.perf_counter()
        before = staged.policy
        if before is None or before.generation != self._generation():
            before = self._mark()  # the policy has changed since the drafter was read: compare with what it is now
        drafter = self._following(staged.drafter)
        try:
            self._load_tensors(drafter.tensors)
            after = policy_checksum(self._policy, shared=before.shared)
        except Exception as error:  # vLLM raises all kinds of errors while loading
            self._undo(before)
            raise RefusedDrafterError(DrafterRefusal.LOAD_FAILED, f"{type(error).__name__}: {error}") from error
        if after != before.checksum:
            self._undo(before)
            raise RefusedDrafterError(
                DrafterRefusal.POLICY_TOUCHED, "loading the drafter changed the policy; both were put back"
            )
        self._active = drafter
        return {"seconds": time.perf_counter() - began, "before": before.checksum, "after": after}

    def follow_policy(self) -> bool:
        """Takes the policy's current rows into a head that is a copy of them; called when the policy has changed.

        A head that was trained stays as it is: its rows are the drafter's own.

        Returns:
            Whether there was something to take.
        """
        drafter = self._in_place()
        following = self._following(drafter)
        if following is drafter:
            return False
        self._load_tensors({HEAD: following.tensors[HEAD]})
        self._active = following
        return True

    def _read(self, location: str, sha256: str) -> StagedDrafter:
        try:
            folder = self._find(location)
        except OutsideStoreError as error:
            raise RefusedDrafterError(DrafterRefusal.OUTSIDE_STORE, str(error)) from error
        shape = read_shape(folder, own=self._config)
        tensors = read_tensors(folder, sha256=sha256, config=self._config)
        return self._staged_beside(_ready(tensors, head_is_copy=shape is not None and shape.head_is_copy))

    def _staged_beside(self, drafter: ReadyDrafter) -> StagedDrafter:
        """Notes what the policy is like before the drafter comes near it."""
        try:
            return StagedDrafter(drafter=drafter, policy=self._mark())
        except Exception:  # noqa: BLE001 - a policy that is being written has layers without memory
            return StagedDrafter(drafter=drafter, policy=None)

    def _mark(self) -> PolicyMark:
        generation = self._generation()  # first: a change of the policy meanwhile is then noticed
        shared = shared_tensors(self._policy, self._drafter)
        addresses = frozenset(tensor.data_ptr() for tensor in shared.values())
        return PolicyMark(
            generation=generation,
            checksum=policy_checksum(self._policy, shared=addresses),
            shared=addresses,
            backup={name: tensor.detach().to("cpu", copy=True) for name, tensor in shared.items()},
        )

    def _following(self, drafter: ReadyDrafter) -> ReadyDrafter:
        """The drafter with the head that the policy has now; itself when that makes no difference."""
        if not drafter.head_is_copy or HEAD not in drafter.tensors or not self._generation():
            return drafter
        d2t = drafter.tensors["d2t"]
        rows = self._head_rows(torch.arange(len(d2t)) + d2t)
        if rows is None:
            return drafter
        copied = rows.detach().to("cpu", drafter.tensors[HEAD].dtype, copy=True)
        return replace(drafter, tensors={**drafter.tensors, HEAD: copied})

    def _in_place(self) -> ReadyDrafter:
        if self._active is None:
            self._active = self._own()
        return self._active

    def _own(self) -> ReadyDrafter:
        """The drafter that the server started with."""
        return _ready(self._initial(), head_is_copy=self._config.head_is_copy)

    def _undo(self, policy: PolicyMark) -> None:
        """Puts back the shared tensors first: they decide what the policy says."""
        parameters = dict(self._policy.named_parameters()) | dict(self._policy.named_buffers())
        with torch.no_grad():
            for name, tensor in policy.backup.items():
                parameters[name].data.copy_(tensor)
        self._load_tensors(self._following(self._in_place()).tensors)


def _ready(tensors: Mapping[str, torch.Tensor], *, head_is_copy: bool) -> ReadyDrafter:
    loaded = {name: tensor for name, tensor in tensors.items() if name not in NOT_LOADED}
    return ReadyDrafter(tensors=loaded, head_is_copy=head_is_copy)
