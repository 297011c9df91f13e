"""The weight-transfer engine `tlt`: the policy comes by file or NCCL, the drafter by file.

One backend serves a whole vLLM server, and learners want NCCL for the policy while the drafter comes from the store;
hence a composite.  `transport.py` says how messages are understood.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from tlt_workloads.rollout.compat import refresh_tied_head
from tlt_workloads.rollout.locations import JobFolder
from tlt_workloads.rollout.policy_files import open_policy
from tlt_workloads.rollout.transport import Transport, read_introduction, read_part

logger = logging.getLogger("vllm.tlt")


@dataclass
class InitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """How the learner will send the policy."""

    transport: Transport
    nccl: dict[str, Any] = field(default_factory=dict)


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """One part of the policy's weights, or a drafter's tensors handed over inside the worker."""

    transport: Transport
    path: str = ""
    nccl: dict[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] | None = None


class TltWeightTransferEngine(WeightTransferEngine[InitInfo, UpdateInfo]):  # type: ignore[misc]
    """See the module's docstring."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = True

    def __init__(
        self, config: WeightTransferConfig, vllm_config: VllmConfig, device: torch.device, model: torch.nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self.job_folder = JobFolder.from_environment()
        self.policy_generation = 0  # how often the policy's weights have begun to be written
        self._nccl: Any | None = None
        self._reloading = False

    def parse_init_info(self, init_dict: dict[str, Any]) -> InitInfo:
        """Reads `init_info`."""
        found = read_introduction(init_dict)
        return InitInfo(transport=found.transport, nccl=dict(found.nccl))

    def parse_update_info(self, update_dict: dict[str, Any]) -> UpdateInfo:
        """Reads `update_info`, or takes a drafter's tensors from within this process."""
        if "tensors" in update_dict:
            return UpdateInfo(transport=Transport.FILE, tensors=update_dict["tensors"])
        found = read_part(update_dict)
        return UpdateInfo(transport=found.transport, path=found.path, nccl=dict(found.nccl))

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Joins the learner's NCCL group; a file needs no rendezvous."""
        if init_info.transport is Transport.NCCL:
            engine = self._nccl_engine()
            engine.init_transfer_engine(engine.parse_init_info(init_info.nccl))

    def start_weight_update(self) -> None:
        """Nothing yet: the model is opened when the first weights are at hand, so that a bad path costs nothing."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Loads one part.  The base class would synchronise an accelerator, which a CPU does not have."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Loads one part into the model that the session is for."""
        if update_info.transport is Transport.NCCL:
            self._open()
            engine = self._nccl_engine()
            with self._closing_on_error():
                engine.receive_weights(engine.parse_update_info(update_info.nccl))
        elif update_info.tensors is not None:
            self._open()
            with self._closing_on_error():
                self.model.load_weights(update_info.tensors.items())
        else:
            with open_policy(self.job_folder.resolve(update_info.path)) as weights:
                self._open()
                with self._closing_on_error():
                    self.model.load_weights(weights)

    def finish_weight_update(self) -> None:
        """Puts the weights in place, packed as the kernels want them."""
        self._close()

    def reset_weight_update_target(self) -> None:
        """Back to the policy; vLLM calls it after every session, also after one that failed."""
        self._close()
        super().reset_weight_update_target()

    def shutdown(self) -> None:
        """Leaves the learner's NCCL group."""
        if self._nccl is not None:
            self._nccl.shutdown()
            self._nccl = None

    def _open(self) -> None:
        if self._reloading:
            return
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        if self.model is self._default_model:
            self.policy_generation += 1
        initialize_layerwise_reload(self.model)
        self._reloading = True

    def _close(self) -> None:
        if not self._reloading:
            return
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        self._reloading = False
        finalize_layerwise_reload(self.model, self.model_config)
        if self.model is self._default_model:
            refresh_tied_head(self.model)

    @contextlib.contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        """Layers that got nothing yet keep their old weights instead of staying empty."""
        try:
            yield
        except BaseException:
            self._close()
            raise

    def _nccl_engine(self) -> Any:
        if self._nccl is None:
            from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

            self._nccl = NCCLWeightTransferEngine(self.config, self.vllm_config, self.device, self.model)
        self._nccl.set_weight_update_target(self.model, self.model_config)
        return self._nccl
