"""The weight-transfer engine `tlt`: the policy comes by file or NCCL, the drafter by file.

One backend serves a whole vLLM server, and learners want NCCL for the policy while the drafter comes from the store;
hence a composite.  A message says which transport it means (`transport`: `file` or `nccl`); without that word an
address means NCCL and a path means a file, so that learners written for vLLM's own engines work unchanged.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from vllm.config import VllmConfig
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from tlt_workloads.rollout.compat import refresh_tied_head
from tlt_workloads.rollout.locations import JobFolder

logger = logging.getLogger("vllm.tlt")

FILE, NCCL = "file", "nccl"
NCCL_FIELDS = frozenset({"names", "dtype_names", "shapes"})  # newer and older learners send more; vLLM 0.32 takes these


@dataclass
class InitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """How the learner will send the policy."""

    transport: str
    nccl: dict[str, Any] = field(default_factory=dict)


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """One part of the policy's weights, or a drafter's tensors handed over inside the worker."""

    transport: str
    path: str | None = None
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
        self._nccl: Any | None = None
        self._reloading = False

    def parse_init_info(self, init_dict: dict[str, Any]) -> InitInfo:
        """Reads `init_info`: `{}` or `{"transport": "file"}`, or NCCL's own fields."""
        fields = dict(init_dict)
        transport = fields.pop("transport", NCCL if "world_size" in fields else FILE)
        _check_transport(transport)
        if transport == FILE and fields:
            raise ValueError(f"init_info: {sorted(fields)} mean nothing to the file transport")
        return InitInfo(transport=transport, nccl=fields)

    def parse_update_info(self, update_dict: dict[str, Any]) -> UpdateInfo:
        """Reads `update_info`: `{"transport": "file", "path": ...}`, or NCCL's own fields."""
        fields = dict(update_dict)
        if "tensors" in fields:
            return UpdateInfo(transport=FILE, tensors=fields["tensors"])
        transport = fields.pop("transport", FILE if "path" in fields else NCCL)
        _check_transport(transport)
        if transport == NCCL:
            return UpdateInfo(transport=NCCL, nccl={key: fields[key] for key in fields.keys() & NCCL_FIELDS})
        if not isinstance(fields.get("path"), str):
            raise ValueError('update_info.path: the file transport needs {"transport": "file", "path": "..."}')
        return UpdateInfo(transport=FILE, path=fields["path"])

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Joins the learner's NCCL group; a file needs no rendezvous."""
        if init_info.transport == NCCL:
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
        if update_info.transport == NCCL:
            self._open()
            engine = self._nccl_engine()
            with self._closing_on_error():
                engine.receive_weights(engine.parse_update_info(update_info.nccl))
        elif update_info.tensors is not None:
            self._open()
            with self._closing_on_error():
                self.model.load_weights(update_info.tensors.items())
        else:
            assert update_info.path is not None
            with _open_weights(self.job_folder.resolve(update_info.path)) as weights:
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


@contextlib.contextmanager
def _open_weights(path: Path) -> Iterator[Iterator[tuple[str, torch.Tensor]]]:
    try:
        with safe_open(path, "pt") as file:
            yield ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise ValueError(f"update_info.path: {path} is not a readable safetensors file: {error}") from error


def _check_transport(transport: object) -> None:
    if transport not in (FILE, NCCL):
        raise ValueError(f"transport: {transport!r} is not one of {FILE}, {NCCL}")
