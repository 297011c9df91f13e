"""The composite weight engine: which transport a message means, and that NCCL is vLLM's own engine."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing vLLM warns about things that are not ours
    from vllm.distributed.weight_transfer import nccl_engine

    from tlt_workloads.rollout.weights import TltWeightTransferEngine

pytestmark = pytest.mark.filterwarnings("ignore")  # and so do the modules that it imports later

# What TRL 1.16 and vime send; the second still names the packing, which vLLM 0.32 takes at the start only.
TRL_INIT = {"master_address": "10.0.0.1", "master_port": 51216, "rank_offset": 1, "world_size": 3, "packed": True}
TRL_UPDATE = {"names": ["a.weight"], "dtype_names": ["bfloat16"], "shapes": [[2, 2]]}
VIME_UPDATE = {**TRL_UPDATE, "packed": True}


class NcclEngine:
    """Writes down how vLLM's engine is used."""

    def __init__(self, *_: Any) -> None:
        self.calls: list[Any] = []

    def set_weight_update_target(self, model: Any, model_config: Any) -> None:
        self.calls.append(("target", model))

    def parse_init_info(self, info: dict[str, Any]) -> Any:
        return nccl_engine.NCCLWeightTransferInitInfo(**info)

    def parse_update_info(self, info: dict[str, Any]) -> Any:
        return nccl_engine.NCCLWeightTransferUpdateInfo(**info)

    def init_transfer_engine(self, info: Any) -> None:
        self.calls.append(("init", info.world_size))

    def receive_weights(self, info: Any) -> None:
        self.calls.append(("receive", info.names))

    def shutdown(self) -> None:
        self.calls.append("shutdown")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> TltWeightTransferEngine:
    monkeypatch.setattr(nccl_engine, "NCCLWeightTransferEngine", NcclEngine)
    config = SimpleNamespace(parallel_config=None, model_config=SimpleNamespace(dtype=torch.float32))
    return TltWeightTransferEngine(None, config, torch.device("cpu"), torch.nn.Module())


def test_an_address_means_nccl_and_nothing_means_a_file(engine: TltWeightTransferEngine) -> None:
    assert engine.parse_init_info(TRL_INIT).transport == "nccl"
    assert engine.parse_init_info({"transport": "nccl", **TRL_INIT}).nccl == TRL_INIT
    assert engine.parse_init_info({}).transport == "file"
    assert engine.parse_init_info({"transport": "file"}).transport == "file"


@pytest.mark.parametrize("update", [TRL_UPDATE, VIME_UPDATE, {"transport": "nccl", **TRL_UPDATE}])
def test_learners_of_vllms_own_engine_are_understood(engine: TltWeightTransferEngine, update: dict[str, Any]) -> None:
    info = engine.parse_update_info(update)
    assert (info.transport, info.nccl) == ("nccl", TRL_UPDATE)


@pytest.mark.parametrize(
    ("message", "word"),
    [({"transport": "pigeon"}, "pigeon"), ({"transport": "file"}, "path"), ({"transport": "file", "path": 7}, "path")],
)
def test_a_message_that_means_nothing_names_the_field(
    engine: TltWeightTransferEngine, message: dict[str, Any], word: str
) -> None:
    with pytest.raises(ValueError, match=word):
        engine.parse_update_info(message)
    with pytest.raises(ValueError, match="mean nothing"):
        engine.parse_init_info({"path": "/x"})


def test_nccl_is_vllms_own_engine_from_rendezvous_to_shutdown(engine: TltWeightTransferEngine) -> None:
    engine.init_transfer_engine(engine.parse_init_info(TRL_INIT))
    engine.start_weight_update()
    engine.update_weights(TRL_UPDATE)
    nccl = engine._nccl
    engine.finish_weight_update()
    engine.shutdown()
    assert nccl is not None
    receipts = [call for call in nccl.calls if call[0] != "target"]
    assert receipts == [("init", 3), ("receive", ["a.weight"]), "shutdown"]
    assert ("target", engine.model) in nccl.calls


def test_an_update_that_fails_closes_the_model_again(
    engine: TltWeightTransferEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("peer gone")

    monkeypatch.setattr(NcclEngine, "receive_weights", broken)
    engine.init_transfer_engine(engine.parse_init_info(TRL_INIT))
    engine.start_weight_update()
    with pytest.raises(RuntimeError, match="peer gone"):
        engine.update_weights(TRL_UPDATE)
    assert not engine._reloading


def test_the_plugin_registers_once_however_often_it_is_called() -> None:
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    from tlt_workloads.rollout.plugin import register

    register()
    once = WorkerWrapperBase.init_device
    register()
    assert WorkerWrapperBase.init_device is once
    assert "tlt" in WeightTransferEngineFactory._registry
