"""TRL's real client and ours, speaking to the gateway in front of two pods."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.tlt_workloads.gateway.conftest import RunningGateway
from tests.unit.tlt_workloads.gateway.fake_pod import FakePod

# It says so of each vLLM newer than its last release.
pytestmark = pytest.mark.filterwarnings("ignore:TRL currently supports vLLM:UserWarning")


@pytest.fixture(scope="module")
def trl_client() -> ModuleType:
    """Imports TRL, which warns of vLLM versions that it has not been tested with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tlt_workloads.learner import trl_client

        return trl_client


@pytest.fixture
def installed(trl_client: ModuleType, tmp_path: Path) -> Iterator[type]:
    import trl.generation.vllm_generation as module

    before = module.VLLMClient
    yield trl_client.install(tmp_path / "policy")
    module.VLLMClient = before


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"a.weight": torch.full((2, 3), value), "b.weight": torch.full((4,), value)}


def sync(client: object, value: float) -> None:
    """One policy sync the way that TRL's VLLMGeneration does it."""
    named = tensors(value)
    metadata = [(name, str(item.dtype).removeprefix("torch."), list(item.shape)) for name, item in named.items()]
    client.update_named_params(metadata, iter(named.items()))  # type: ignore[attr-defined]
    client.reset_prefix_cache()  # type: ignore[attr-defined]


async def test_trls_own_client_generates_through_the_gateway(
    trl_client: ModuleType,
    gateway: RunningGateway,
    pods: list[FakePod],
) -> None:
    from trl.generation.vllm_client import VLLMClient

    def use() -> dict[str, list[list[int]]]:
        client = VLLMClient(base_url=gateway.url)
        assert client.model == "policy"
        assert client.get_world_size() == 2
        assert client.get_server_info()["weight_transfer_config"] is not None
        return client.generate([[1, 2], [3, 4, 5]], n=3, temperature=0.7, max_tokens=8)  # type: ignore[no-any-return]

    answer = await asyncio.to_thread(use)
    assert answer["prompt_ids"] == [[1, 2], [3, 4, 5]]
    assert answer["completion_ids"] == [[2, 1]] * 3 + [[5, 4, 3]] * 3
    assert answer["logprobs"] == [[[-0.5]] * 2] * 3 + [[[-0.5]] * 3] * 3
    assert all(len(pod.completions) == 3 for pod in pods)


async def test_a_policy_reaches_every_pod_as_one_file(
    installed: type,
    gateway: RunningGateway,
    pods: list[FakePod],
    tmp_path: Path,
) -> None:
    def use() -> None:
        client = installed(base_url=gateway.url)
        client.init_communicator(device="cpu")
        sync(client, 1.0)

    await asyncio.to_thread(use)
    path = tmp_path / "policy" / "policy-1.safetensors"
    for pod in pods:
        assert pod.called("/init_weight_transfer_engine") == [{"init_info": {"transport": "file"}}]
        assert pod.called("/update_weights") == [{"update_info": {"transport": "file", "path": str(path)}}]
        assert pod.weight_version == "policy-1"
        assert pod.tally()["/reset_prefix_cache"] == 1
    assert {name: item.tolist() for name, item in load_file(path).items()} == {
        name: item.tolist() for name, item in tensors(1.0).items()
    }


async def test_old_policies_are_removed_and_numbers_go_on_after_a_restart(
    installed: type,
    gateway: RunningGateway,
    tmp_path: Path,
) -> None:
    def run(syncs: int) -> None:
        client = installed(base_url=gateway.url)
        client.init_communicator(device="cpu")
        for value in range(syncs):
            sync(client, float(value))

    await asyncio.to_thread(run, 3)
    assert sorted(path.name for path in (tmp_path / "policy").iterdir()) == [
        "policy-2.safetensors",
        "policy-3.safetensors",
    ]
    await asyncio.to_thread(run, 1)
    assert (await gateway.state()).policy_version == 4


async def test_a_refused_policy_stops_the_learner_with_the_pods_name(
    installed: type,
    gateway: RunningGateway,
    pods: list[FakePod],
) -> None:
    pods[1].refuse["/update_weights"] = (400, {"error": {"message": "shape of a.weight is wrong"}})

    def use() -> None:
        client = installed(base_url=gateway.url)
        client.init_communicator(device="cpu")
        sync(client, 1.0)

    with pytest.raises(Exception, match=r"127\.0\.0\.1.*shape of a\.weight is wrong"):
        await asyncio.to_thread(use)


async def test_the_learners_time_can_be_observed(
    trl_client: ModuleType, installed: type, gateway: RunningGateway, tmp_path: Path
) -> None:
    spans: list[object] = []
    observed = trl_client.install(tmp_path / "policy", observe=spans.append)

    def use() -> None:
        client = observed(base_url=gateway.url)
        client.init_communicator(device="cpu")
        sync(client, 1.0)
        client.generate([[1, 2]], max_tokens=4)

    await asyncio.to_thread(use)
    assert [span.activity for span in spans] == ["write-policy", "load-policy", "generate"]  # type: ignore[attr-defined]
    assert all(span.begin <= span.end for span in spans)  # type: ignore[attr-defined]


async def test_grouped_updates_get_one_version(
    installed: type,
    gateway: RunningGateway,
    pods: list[FakePod],
) -> None:
    def use() -> None:
        client = installed(base_url=gateway.url)
        client.init_communicator(device="cpu")
        with client.weight_update():
            for name, item in tensors(1.0).items():
                client.update_named_param(name, item)

    await asyncio.to_thread(use)
    assert [len(pod.called("/start_weight_update")) for pod in pods] == [1, 1]
    assert [len(pod.called("/update_weights")) for pod in pods] == [2, 2]
    assert [pod.weight_version for pod in pods] == ["policy-2", "policy-2"]


def test_trl_still_takes_no_client_of_ours(trl_client: ModuleType) -> None:
    """When this fails, TRL has a way to pass a client in, and `install` need not replace a name any more."""
    from trl import GRPOConfig
    from trl.generation.vllm_generation import VLLMGeneration

    names = {*inspect.signature(VLLMGeneration.__init__).parameters, *inspect.signature(GRPOConfig).parameters}
    assert not [name for name in names if "client" in name or "weight_transfer" in name]


def test_the_policy_folder_is_the_jobs(trl_client: ModuleType) -> None:
    environment = {"TLT_STORE_URL": "file:///tlt", "TLT_JOB": "demo/grpo"}
    assert trl_client.policy_folder(environment) == Path("/tlt/demo/grpo/policy")


@pytest.mark.parametrize(
    ("environment", "named"),
    [({"TLT_JOB": "a/b"}, "TLT_STORE_URL"), ({"TLT_STORE_URL": "/tlt"}, "TLT_JOB")],
)
def test_a_missing_variable_is_named(trl_client: ModuleType, environment: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        trl_client.policy_folder(environment)


def test_a_store_that_is_not_mounted_is_refused(trl_client: ModuleType) -> None:
    with pytest.raises(ValueError, match="not a mounted folder"):
        trl_client.policy_folder({"TLT_STORE_URL": "s3://bucket", "TLT_JOB": "a/b"})
