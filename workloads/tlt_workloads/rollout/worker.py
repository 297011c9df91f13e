"""The engine worker's side of the control routes: what the general plugin adds to vLLM's `Worker`.

Answers are plain data, because vLLM carries them between processes; a refusal is an answer, not an exception.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tlt_workloads.contract import CaptureSettings, DrafterRefusal, decode
from tlt_workloads.drafter import WEIGHTS_FILE, DrafterError, read_drafter_config
from tlt_workloads.rollout.capture import CaptureTap
from tlt_workloads.rollout.compat import sample_plainly_without_drafts, steer_drafter, tap_model_runner
from tlt_workloads.rollout.counters import inherited_page
from tlt_workloads.rollout.drafter_swap import DrafterSwap
from tlt_workloads.rollout.drafts import Drafts
from tlt_workloads.rollout.recorder import ShardRecorder
from tlt_workloads.rollout.revision_folder import RefusedDrafterError
from tlt_workloads.rollout.shard_writer import Destination
from tlt_workloads.rollout.shared_head import policy_head_rows
from tlt_workloads.shards import ShardMetadata
from tlt_workloads.store import open_store

logger = logging.getLogger("vllm.tlt")


class WorkerSide:
    """One worker's recorder, tap and drafter."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._recorder: ShardRecorder | None = None
        self._tap: CaptureTap | None = None
        self._swap: DrafterSwap | None = None

    def attach(self) -> None:
        """Puts the methods where vLLM's remote calls find them, and the tap into the model runner."""
        self._worker.tlt_set_policy_version = self.set_policy_version
        self._worker.tlt_capture = self.capture
        self._worker.tlt_stage_drafter = self.stage_drafter
        self._worker.tlt_stage_own_drafter = self.stage_own_drafter
        self._worker.tlt_drafter_staged = self.drafter_staged
        self._worker.tlt_apply_drafter = self.apply_drafter
        self._worker.tlt_follow_policy = self.follow_policy
        self._steer_drafter()
        if self._worker.speculative_config is not None and _sees_hidden_states():
            page = inherited_page()
            self._recorder = ShardRecorder(count=page.add if page else _ignore)
            self._tap = CaptureTap(self._recorder, count=page.add if page else _ignore)
            tap_model_runner(self._worker.model_runner, self._tap)  # last: it sees what no drafter is asked for

    def _steer_drafter(self) -> None:
        """In all workers alike: they make the drafts together."""
        runner, speculative = self._worker.model_runner, self._worker.speculative_config
        if speculative is None or speculative.method != "eagle3" or not hasattr(runner, "propose_draft_token_ids"):
            return
        if hasattr(runner, "drafter"):
            steer_drafter(runner, Drafts(runner, page=inherited_page()))
            sample_plainly_without_drafts(runner)

    def set_policy_version(self, version: int) -> None:
        """From the next step on."""
        if self._tap is not None:
            self._tap.policy_version = version

    def capture(self, message: str) -> None:
        """Records from now on as ordered; `message` is the JSON of an `engine.CaptureOrder`."""
        order: dict[str, Any] = json.loads(message)
        settings = decode(CaptureSettings, order["settings"])
        self._worker.weight_transfer_engine.job_folder.url = order["store_url"]
        if self._tap is None or self._recorder is None:
            return
        self._recorder.direct(
            Destination(
                store=open_store(order["store_url"]),
                folder=order["folder"],
                metadata=ShardMetadata(model=order["model"], layer_ids=_auxiliary_layers(self._worker.get_model())),
                settings=settings,
            )
        )
        self._tap.follow(settings)

    def stage_drafter(self, location: str, sha256: str) -> dict[str, Any]:
        """Reads a revision in the background."""
        return self._stage(lambda swap: swap.stage(location, sha256=sha256))

    def stage_own_drafter(self) -> dict[str, Any]:
        """Reads the drafter that the server started with, in the background."""
        return self._stage(DrafterSwap.stage_own)

    def drafter_staged(self) -> dict[str, Any]:
        """Whether it is read."""
        assert self._swap is not None
        try:
            return {"ready": self._swap.ready()}
        except RefusedDrafterError as error:
            return {"refused": error.reason, "message": str(error)}

    def apply_drafter(self) -> dict[str, Any]:
        """Puts it in place."""
        assert self._swap is not None
        try:
            return self._swap.apply()
        except RefusedDrafterError as error:
            return {"refused": error.reason, "message": str(error)}

    def _stage(self, stage: Callable[[DrafterSwap], None]) -> dict[str, Any]:
        try:
            stage(self._drafter_swap())
        except RefusedDrafterError as error:
            return {"refused": error.reason, "message": str(error)}
        return {}

    def follow_policy(self) -> dict[str, Any]:
        """The policy has changed: what the drafter has copied from it is copied anew."""
        if self._worker.speculative_config is None:
            return {}
        try:
            return {"followed": self._drafter_swap().follow_policy()}
        except Exception:  # a drafter that stays behind drafts worse, which is no reason to fail a policy update
            logger.exception("drafter: does not follow the policy")
            return {"followed": False}

    def _drafter_swap(self) -> DrafterSwap:
        if self._swap is None:
            self._swap = self._build_swap()
        return self._swap

    def _build_swap(self) -> DrafterSwap:
        folder = Path(self._worker.speculative_config.draft_model_config.model)
        policy = self._worker.get_model()
        try:
            config = read_drafter_config(folder)
        except DrafterError as error:
            message = f"the server's own drafter cannot be read: {error}"
            raise RefusedDrafterError(DrafterRefusal.UNKNOWN_DRAFTER, message) from error
        return DrafterSwap(
            policy=policy,
            drafter=self._worker.get_draft_model(),
            find=lambda location: self._worker.weight_transfer_engine.job_folder.folder(location),
            config=config,
            initial=lambda: load_file(folder / WEIGHTS_FILE),
            load_tensors=self._load_tensors,
            generation=lambda: self._worker.weight_transfer_engine.policy_generation,
            head_rows=functools.partial(policy_head_rows, policy),
        )

    def _load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._worker.start_draft_weight_update()
        self._worker.update_weights({"tensors": tensors})
        self._worker.finish_weight_update()


def _sees_hidden_states() -> bool:
    """Whether this worker has whole hidden states, and is the one among equals that records them."""
    from vllm.distributed import get_pp_group, get_tp_group

    return bool(get_pp_group().is_last_rank and get_tp_group().rank_in_group == 0)


def _auxiliary_layers(model: torch.nn.Module) -> tuple[int, ...]:
    """The layers whose input the engine hands to the drafter."""
    found = (getattr(module, "aux_hidden_state_layers", ()) for module in model.modules())
    return tuple(int(layer) for layer in next(filter(None, found), ()))


def _ignore(*_: object) -> None:
    """Outside a server nobody reads the totals."""
