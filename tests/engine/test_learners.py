"""The requests of the learners that are supported, in their order: what reaches the engine, and what they are told.

The routes, the updates and the pod are the real ones; only the engine behind them writes down what it is asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from safetensors.torch import save_file

from tests.unit.tlt_workloads.rollout.test_updates import make
from tlt_workloads.contract import RolloutState
from tlt_workloads.rollout.locations import JobFolder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing vLLM warns about things that are not ours
    from vllm.entrypoints.serve.exception_handling.register import init_exception_handler

    from tlt_workloads.rollout import weight_routes
    from tlt_workloads.rollout.assembly import Rollout

pytestmark = pytest.mark.filterwarnings("ignore")

# TRL 1.16 (`VLLMClient.init_communicator` and `update_named_params`), vime, and prime-rl's `update_weights`.
TRL_INIT = {"master_address": "10.0.0.1", "master_port": 51216, "rank_offset": 1, "world_size": 3, "packed": True}
TENSORS = {"names": ["a.weight"], "dtype_names": ["bfloat16"], "shapes": [[2, 2]]}


class Client:
    """vLLM's client, as far as its RL routes use it."""

    def __init__(self, calls: list[Any]) -> None:
        self.calls = calls
        self.version = "start"
        self.failure: Exception | None = None

    async def init_weight_transfer_engine(self, request: Any) -> None:
        self.calls.append(("init", request.init_info))

    async def start_weight_update(self) -> None:
        self.calls.append("start")

    async def update_weights(self, request: Any) -> None:
        if self.failure is not None:
            raise self.failure
        self.calls.append(("update", request.update_info))

    async def finish_weight_update(self, version: str | None) -> None:
        self.calls.append(("finish", version))
        self.version = version or self.version

    async def get_weight_version(self) -> str:
        return self.version

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        self.calls.append(("pause", mode))

    async def resume_generation(self) -> None:
        self.calls.append("resumed")

    async def reset_prefix_cache(self, *_: bool) -> bool:
        self.calls.append("reset")
        return True


class Pod:
    """A pod with its routes."""

    def __init__(self, folder: Path, *, takes_nccl: bool) -> None:
        self.folder = folder
        self._pod, engine, updates = make()
        self.calls: list[Any] = engine.calls
        self.client = Client(self.calls)
        rollout = Rollout(
            pod=self._pod,
            updates=updates,
            job_folder=JobFolder(str(folder)),
            model="policy",
            takes_nccl=takes_nccl,
            workers=1,
            longest_draft=3,
            largest_batch=32,
            has_trained_drafter=False,
            has_ngrams=False,
        )
        app = FastAPI()
        init_exception_handler(app)
        app.include_router(weight_routes.router)
        app.state.tlt_rollout = rollout
        app.state.engine_client = self.client
        app.state.args = SimpleNamespace(log_error_stack=False)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://pod")

    def facts(self) -> RolloutState:
        return self._pod.facts()

    def policy(self, name: str) -> str:
        """A policy in the store: a file, or a folder as Hugging Face lays models out."""
        path = self.folder / name
        tensors = {"a.weight": torch.ones(2, 2)}
        if path.suffix:
            save_file(tensors, path)
        else:
            path.mkdir()
            save_file(tensors, path / "model.safetensors")
        return str(path)

    async def post(self, path: str, body: Any = None, *, expected: int = 200) -> Any:
        answer = await self.http.post(path, json=body)
        assert answer.status_code == expected, answer.text
        return answer.json()


@pytest.fixture
async def on_gpus(tmp_path: Path) -> AsyncIterator[Pod]:
    pod = Pod(tmp_path, takes_nccl=True)
    async with pod.http:
        yield pod


@pytest.fixture
async def on_cpu(tmp_path: Path) -> AsyncIterator[Pod]:
    pod = Pod(tmp_path, takes_nccl=False)
    async with pod.http:
        yield pod


ENDING = [("version", 1), "follow", "forget", "resume"]


async def test_trl_by_nccl(on_gpus: Pod) -> None:
    await on_gpus.post("/init_weight_transfer_engine", {"init_info": TRL_INIT})
    await on_gpus.post("/start_weight_update", {})
    assert on_gpus.facts().updating
    await on_gpus.post("/update_weights", {"update_info": TENSORS})
    await on_gpus.post("/finish_weight_update", {})
    assert await on_gpus.post("/reset_prefix_cache") == {"success": True}
    assert on_gpus.calls == [
        ("init", TRL_INIT),
        "pause",
        "start",
        ("update", TENSORS),
        ("finish", "policy-1"),  # TRL gives none, so the pod does
        *ENDING,
        "reset",
    ]
    assert (await on_gpus.http.get("/weight_info")).json() == {"weight_version": "policy-1"}
    assert (on_gpus.facts().policy_version, on_gpus.facts().updating) == (1, False)


async def test_trl_tensor_by_tensor(on_gpus: Pod) -> None:
    """`with client.weight_update()`: many parts, one policy."""
    await on_gpus.post("/init_weight_transfer_engine", {"init_info": TRL_INIT})
    await on_gpus.post("/start_weight_update", {})
    for _ in range(3):
        await on_gpus.post("/update_weights", {"update_info": TENSORS})
    await on_gpus.post("/finish_weight_update", {})
    assert on_gpus.facts().policy_version == 1
    assert on_gpus.calls.count(("update", TENSORS)) == 3
    assert on_gpus.calls.count("pause") == on_gpus.calls.count("resume") == 1


async def test_this_projects_client_of_trl(on_cpu: Pod) -> None:
    """`tlt_workloads.learner.trl_client`: a file, and a version of its own."""
    part = {"transport": "file", "path": on_cpu.policy("policy-7.safetensors")}
    await on_cpu.post("/init_weight_transfer_engine", {"init_info": {"transport": "file"}})
    await on_cpu.post("/start_weight_update", {})
    await on_cpu.post("/update_weights", {"update_info": part})
    await on_cpu.post("/finish_weight_update", {"weight_version": "policy-7"})
    assert on_cpu.calls[-5:] == [("finish", "policy-7"), ("version", 7), *ENDING[1:]]
    assert on_cpu.facts().policy_version == 7


async def test_vime(on_gpus: Pod) -> None:
    """It pauses and resumes by itself, and says more than vLLM 0.32 takes."""
    part = {**TENSORS, "packed": True}
    await on_gpus.post("/init_weight_transfer_engine", {"init_info": TRL_INIT})
    await on_gpus.post("/pause?mode=keep&clear_cache=false")
    await on_gpus.post("/start_weight_update", {"is_checkpoint_format": True})
    await on_gpus.post("/update_weights", {"update_info": part})
    await on_gpus.post("/finish_weight_update", {})
    assert on_gpus.facts().paused
    await on_gpus.post("/resume")
    assert on_gpus.calls == [
        ("init", TRL_INIT),
        ("pause", "keep"),
        "start",
        ("update", part),
        ("finish", "policy-1"),
        *ENDING[:-1],
        "resumed",
    ]
    assert not on_gpus.facts().paused


async def test_prime_rl(on_cpu: Pod) -> None:
    """One call for the whole policy, a folder; nothing of it is open in between."""
    folder = on_cpu.policy("step_12")
    await on_cpu.post("/pause?mode=keep&clear_cache=false")
    assert await on_cpu.post("/update_weights", {"weight_dir": folder}) == {"status": "ok"}
    await on_cpu.post("/resume")
    part = {"transport": "file", "path": folder}
    assert on_cpu.calls == [
        ("pause", "keep"),
        "start",
        ("update", part),
        ("finish", "step_12"),
        ("version", 12),
        *ENDING[1:-1],
        "resumed",
    ]
    assert on_cpu.facts().policy_version == 12
    await on_cpu.post("/init_broadcaster", {"host": "learner", "port": 29501}, expected=404)  # which it tolerates


@pytest.mark.parametrize("body", [{"weight_dir": None}, {}, {"weight_dir": "/etc"}, {"weight_dir": "{job}/none"}])
async def test_prime_rl_without_a_folder(on_cpu: Pod, body: dict[str, Any]) -> None:
    sent = {name: value and value.format(job=on_cpu.folder) for name, value in body.items()}
    await on_cpu.post("/update_weights", sent, expected=400)
    assert on_cpu.calls == []
    assert not on_cpu.facts().updating


async def test_a_network_group_needs_gpus(on_cpu: Pod) -> None:
    """Joining one would wait for ever."""
    answer = await on_cpu.post("/init_weight_transfer_engine", {"init_info": TRL_INIT}, expected=400)
    assert '{"transport": "file"}' in answer["error"]["message"]
    await on_cpu.post("/start_weight_update", {})
    await on_cpu.post("/update_weights", {"update_info": TENSORS}, expected=409)
    assert on_cpu.calls == ["pause", "start", "close", "resume"]
    assert not on_cpu.facts().updating


async def test_a_list_has_one_entry_for_each_worker(on_gpus: Pod) -> None:
    await on_gpus.post("/init_weight_transfer_engine", {"init_info": TRL_INIT})
    await on_gpus.post("/start_weight_update", {})
    await on_gpus.post("/update_weights", {"update_info": [TENSORS]})
    await on_gpus.post("/update_weights", {"update_info": [TENSORS, TENSORS]}, expected=400)
    assert not on_gpus.facts().updating


async def test_weights_that_the_engine_does_not_take(on_cpu: Pod) -> None:
    """The learner's mistake when they are in a file; over a network the other end may have gone (5xx, tried again)."""
    on_cpu.client.failure = RuntimeError("size mismatch")
    await on_cpu.post("/start_weight_update", {})
    part = {"transport": "file", "path": on_cpu.policy("p.safetensors")}
    answer = await on_cpu.post("/update_weights", {"update_info": part}, expected=422)
    assert "size mismatch" in answer["error"]["message"]
    assert on_cpu.calls == ["pause", "start", "close", "resume"]
    assert on_cpu.facts().policy_version == 0
