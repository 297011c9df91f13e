"""What a learner sees of the gateway: batches, deaths, control calls, late pods."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.eventually import eventually_async
from tests.support.mounted_secret import MountedSecret
from tests.unit.tlt_workloads.gateway.conftest import TOKEN, RunningGateway, StartGateway
from tests.unit.tlt_workloads.gateway.fake_pod import PROMPT_ERROR, FakePod
from tlt_workloads.contract import GATEWAY_ROUTE

FILE_UPDATE = {"update_info": {"transport": "file", "path": "/tlt/policy-1.safetensors"}}


def batch(count: int, **extra: Any) -> dict[str, Any]:
    return {"model": "policy", "prompt": [[index, index + 1] for index in range(count)], **extra}


async def update_policy(gateway: RunningGateway, *, version: str = "policy-1") -> None:
    assert (await gateway.post("/init_weight_transfer_engine", {"init_info": {"transport": "file"}}))[0] == 200
    assert (await gateway.post("/start_weight_update", {}))[0] == 200
    assert (await gateway.post("/update_weights", FILE_UPDATE))[0] == 200
    assert (await gateway.post("/finish_weight_update", {"weight_version": version}))[0] == 200


async def test_a_batch_is_spread_and_answered_in_the_order_of_the_prompts(
    gateway: RunningGateway, pods: list[FakePod]
) -> None:
    status, answer = await gateway.post("/v1/completions", batch(8, n=2, seed=5))
    assert status == 200
    assert [choice["index"] for choice in answer["choices"]] == list(range(16))
    prompts = [choice["prompt_token_ids"] for choice in answer["choices"]]
    assert prompts == [[index, index + 1] for index in range(8) for _ in range(2)]
    assert [choice["token_ids"] for choice in answer["choices"]] == [prompt[::-1] for prompt in prompts]
    assert [choice["text"] for choice in answer["choices"]] == ["seed 5", "seed 6"] * 8
    assert answer["usage"]["prompt_tokens"] == 16
    assert answer["usage"]["completion_tokens"] == 32
    assert [len(pod.completions) for pod in pods] == [8, 8]


async def test_a_limit_per_pod_holds_the_rest_back(start_gateway: StartGateway, pods: list[FakePod]) -> None:
    async with start_gateway(concurrency=2) as gateway:
        await gateway.serving(2)
        for pod in pods:
            pod.hold()
        request = asyncio.create_task(gateway.post("/v1/completions", batch(10)))
        await eventually_async(lambda: sum(pod.in_flight for pod in pods) == 4)
        state = await gateway.state()
        assert (state.queued, state.outstanding, state.batch_size, state.completed) == (6, 4, 10, 0)
        pods[0].release()  # it does the rest while the other still holds its two
        await eventually_async(lambda: len(pods[0].completions) == 8)
        state = await gateway.state()
        assert (state.queued, state.outstanding, state.completed) == (0, 2, 8)
        pods[1].release()
        status, answer = await request
        assert status == 200
        assert len(answer["choices"]) == 10
        assert max(pod.most_in_flight for pod in pods) == 2


async def test_the_state_tells_what_is_left_once_a_step_was_seen(gateway: RunningGateway, pods: list[FakePod]) -> None:
    for looks in (50, 1):  # the second step is looked at long before it is as old as the first one was
        for pod in pods:
            pod.hold()
        request = asyncio.create_task(gateway.post("/v1/completions", batch(8)))
        await eventually_async(lambda: sum(pod.in_flight for pod in pods) == 8)
        for _ in range(looks):
            state = await gateway.state()
        assert (state.remaining is not None) == (looks == 1)
        for pod in pods:
            pod.release()
        await request
    assert (await gateway.state()).remaining is None


async def test_completions_of_a_pod_that_dies_are_answered_by_another(
    gateway: RunningGateway, pods: list[FakePod]
) -> None:
    pods[0].hold()
    request = asyncio.create_task(gateway.post("/v1/completions", batch(6)))
    await eventually_async(lambda: pods[0].in_flight == 3)
    await pods[0].stop()
    status, answer = await request
    assert status == 200
    assert [choice["prompt_token_ids"][0] for choice in answer["choices"]] == list(range(6))
    state = await gateway.state()
    assert (state.retried_requests, state.failed_requests, state.requests) == (3, 0, 6)


async def test_a_broken_connection_costs_a_retry_and_no_more(gateway: RunningGateway, pods: list[FakePod]) -> None:
    pods[0].break_next = 1
    status, _ = await gateway.post("/v1/completions", batch(4))
    assert status == 200
    assert (await gateway.state()).retried_requests == 1
    await gateway.serving(2)


async def test_an_engine_that_shuts_down_does_not_cut_answers_short(
    gateway: RunningGateway, pods: list[FakePod]
) -> None:
    pods[1].abort_next = 1
    status, answer = await gateway.post("/v1/completions", batch(4))
    assert status == 200
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"stop"}


async def test_an_abort_that_the_learner_asked_for_reaches_it(gateway: RunningGateway, pods: list[FakePod]) -> None:
    for pod in pods:
        pod.hold()
        pod.abort_next = 1
    request = asyncio.create_task(gateway.post("/v1/completions", batch(2)))
    await eventually_async(lambda: sum(pod.in_flight for pod in pods) == 2)
    assert (await gateway.post("/pause", mode="abort"))[0] == 200
    for pod in pods:
        pod.release()
    _, answer = await request
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["abort", "abort"]


async def test_attempts_end_when_every_pod_fails(start_gateway: StartGateway, pods: list[FakePod]) -> None:
    async with start_gateway(attempts=3) as gateway:
        await gateway.serving(2)
        for pod in pods:
            pod.refuse["/v1/completions"] = (500, {"error": {"message": "engine is dead"}})
        status, answer = await gateway.post("/v1/completions", batch(1))
        assert status == 502
        assert "3 attempts" in answer["error"]["message"]
        assert "engine is dead" in answer["error"]["message"]
        assert (await gateway.state()).failed_requests == 1


async def test_a_refusal_by_a_pod_is_passed_on_as_it_is(gateway: RunningGateway, pods: list[FakePod]) -> None:
    for pod in pods:
        pod.refuse["/v1/completions"] = (400, PROMPT_ERROR)
    assert await gateway.post("/v1/completions", batch(4)) == (400, PROMPT_ERROR)
    state = await gateway.state()
    assert (state.retried_requests, state.queued, state.outstanding) == (0, 0, 0)


@pytest.mark.parametrize(
    ("body", "field"), [({"model": "policy"}, "prompt"), ({"prompt": "a", "n": -1}, "n"), ({"prompt": [[]]}, "prompt")]
)
async def test_a_bad_request_gets_an_openai_shaped_error_that_names_the_field(
    gateway: RunningGateway, body: dict[str, Any], field: str
) -> None:
    status, answer = await gateway.post("/v1/completions", body)
    assert status == 400
    assert answer["error"]["param"] == field
    assert answer["error"]["type"] == "BadRequestError"


async def test_a_body_that_is_not_json_is_refused(gateway: RunningGateway) -> None:
    async with gateway.session.post(gateway.url + "/v1/completions", data=b"{not json") as response:
        assert response.status == 400
        assert "not JSON" in (await response.json())["error"]["message"]


async def test_a_client_that_goes_away_takes_its_completions_along(
    gateway: RunningGateway, pods: list[FakePod]
) -> None:
    for pod in pods:
        pod.hold()
    request = asyncio.create_task(gateway.post("/v1/completions", batch(4)))
    await eventually_async(lambda: sum(pod.in_flight for pod in pods) == 4)
    request.cancel()

    async def nothing_left() -> bool:
        state = await gateway.state()
        return (state.outstanding, state.batch_size, state.failed_requests) == (0, 0, 0)

    await eventually_async(nothing_left)


async def test_a_stream_passes_through_one_pod(gateway: RunningGateway, pods: list[FakePod]) -> None:
    async with gateway.session.post(gateway.url + "/v1/completions", json=batch(1, stream=True)) as response:
        assert response.content_type == "text/event-stream"
        assert (await response.text()).endswith("data: [DONE]\n\n")
    assert sum(len(pod.completions) for pod in pods) == 1


async def test_a_chat_passes_through_one_pod_and_survives_its_death(
    gateway: RunningGateway, pods: list[FakePod]
) -> None:
    pods[0].refuse["/v1/chat/completions"] = (503, {"error": {"message": "shutting down"}})
    status, answer = await gateway.post("/v1/chat/completions", {"messages": []})
    assert (status, answer) == (200, {"message": "/v1/chat/completions done"})
    assert len(pods[1].called("/v1/chat/completions")) == 1


async def test_requests_wait_for_the_first_pod(start_gateway: StartGateway, pods: list[FakePod]) -> None:
    for pod in pods:
        await pod.stop()
    async with start_gateway() as gateway:
        request = asyncio.create_task(gateway.post("/v1/completions", batch(2)))
        await eventually_async(gateway.state, reason="an answer")
        assert (await gateway.get("/health"))[0] == 503
        await pods[1].start()
        assert (await request)[0] == 200


async def test_patience_ends(start_gateway: StartGateway, pods: list[FakePod]) -> None:
    for pod in pods:
        await pod.stop()
    async with start_gateway(patience=0) as gateway:
        status, answer = await gateway.post("/v1/completions", batch(1))
        assert status == 503
        assert pods[0].address in answer["error"]["message"]


async def test_world_sizes_add_up_and_ranks_do_not_overlap(gateway: RunningGateway, pods: list[FakePod]) -> None:
    pods[0].world_size, pods[1].world_size = 2, 4
    assert await gateway.get("/get_world_size") == (200, {"world_size": 6})
    info = {"master_address": "10.0.0.1", "master_port": 51216, "rank_offset": 1, "world_size": 7, "packed": True}
    assert (await gateway.post("/init_weight_transfer_engine", {"init_info": info}))[0] == 200
    ranks: list[int] = []
    for pod in sorted(pods, key=lambda pod: pod.port):
        (body,) = pod.called("/init_weight_transfer_engine")
        assert {**body["init_info"], "rank_offset": 1} == info
        ranks += range(body["init_info"]["rank_offset"], body["init_info"]["rank_offset"] + pod.world_size)
    assert ranks == [1, 2, 3, 4, 5, 6]


async def test_a_policy_update_reaches_every_pod_and_gets_a_version(
    gateway: RunningGateway, pods: list[FakePod]
) -> None:
    await gateway.post("/start_weight_update", {})
    await gateway.post("/update_weights", FILE_UPDATE)
    assert (await gateway.post("/finish_weight_update"))[0] == 200
    assert [pod.weight_version for pod in pods] == ["policy-1", "policy-1"]
    assert [pod.called("/update_weights") for pod in pods] == [[FILE_UPDATE], [FILE_UPDATE]]
    assert (await gateway.state()).policy_version == 1
    assert await gateway.get("/weight_info") == (200, {"weight_version": "policy-1"})


@pytest.mark.parametrize("path", ["/start_weight_update", "/update_weights", "/finish_weight_update"])
async def test_a_refused_update_names_the_pod(gateway: RunningGateway, pods: list[FakePod], path: str) -> None:
    pods[1].refuse[path] = (500, {"error": {"message": "no space left"}})
    bodies = {"/update_weights": FILE_UPDATE}
    for step in ("/start_weight_update", "/update_weights", "/finish_weight_update"):
        status, answer = await gateway.post(step, bodies.get(step, {}))
        if step == path:
            break
        assert status == 200
    assert status == 500
    assert pods[1].address in answer["error"]["message"]
    assert "no space left" in answer["error"]["message"]
    assert (await gateway.state()).policy_version == 0


async def test_an_update_in_parts_reaches_every_pod_and_cannot_be_repeated(
    start_gateway: StartGateway, pods: list[FakePod]
) -> None:
    await pods[1].stop()
    async with start_gateway() as gateway:
        await gateway.serving(1)
        parts = {"update_info": [FILE_UPDATE["update_info"], FILE_UPDATE["update_info"]]}
        await gateway.post("/start_weight_update", {})
        assert (await gateway.post("/update_weights", parts))[0] == 200
        assert (await gateway.post("/finish_weight_update", {}))[0] == 200
        assert pods[0].called("/update_weights") == [parts]
        await pods[1].start()
        await eventually_async(lambda: pods[1].tally()["/weight_info"] > 1)
        await gateway.serving(1)  # the late pod cannot be given the policy, so it waits for the next


@pytest.mark.parametrize("info", [None, "a path", [], ["a path"]])
async def test_an_update_of_another_shape_names_its_field(gateway: RunningGateway, info: Any) -> None:
    await gateway.post("/start_weight_update", {})
    status, answer = await gateway.post("/update_weights", {"update_info": info})
    assert (status, answer["error"]["param"]) == (400, "update_info")


async def test_a_learners_key_reaches_the_pods(gateway: RunningGateway, pods: list[FakePod]) -> None:
    headers = {"Authorization": "Bearer key"}
    async with gateway.session.post(gateway.url + "/v1/completions", json=batch(2), headers=headers) as response:
        assert response.status == 200
    assert [pod.completions[0]["headers"]["Authorization"] for pod in pods] == ["Bearer key", "Bearer key"]


async def test_an_update_without_a_start_is_refused(gateway: RunningGateway) -> None:
    status, answer = await gateway.post("/update_weights", FILE_UPDATE)
    assert status == 409
    assert "/start_weight_update" in answer["error"]["message"]


async def test_a_pod_that_joins_late_gets_the_policy_before_it_serves(
    start_gateway: StartGateway, pods: list[FakePod]
) -> None:
    await pods[1].stop()
    async with start_gateway() as gateway:
        await gateway.serving(1)
        await update_policy(gateway)
        await pods[1].start()
        await gateway.serving(2)
        assert pods[1].called("/update_weights") == [FILE_UPDATE]
        assert pods[1].weight_version == "policy-1"
        assert not pods[1].completions


async def test_a_pod_that_restarts_gets_the_policy_again(gateway: RunningGateway, pods: list[FakePod]) -> None:
    await update_policy(gateway)
    await pods[0].stop()
    await gateway.serving(1)
    reborn = FakePod(port=pods[0].port)
    await reborn.start()
    try:
        await gateway.serving(2)
        assert reborn.weight_version == "policy-1"
    finally:
        await reborn.stop()


async def test_a_pod_that_only_stumbled_keeps_its_policy(gateway: RunningGateway, pods: list[FakePod]) -> None:
    await update_policy(gateway)
    pods[0].healthy = False
    await gateway.serving(1)
    pods[0].healthy = True
    await gateway.serving(2)
    assert len(pods[0].called("/update_weights")) == 1


async def test_a_pod_that_dies_in_a_file_update_does_not_fail_the_learner(
    gateway: RunningGateway, pods: list[FakePod]
) -> None:
    await gateway.post("/init_weight_transfer_engine", {"init_info": {"transport": "file"}})
    await gateway.post("/start_weight_update", {})
    await pods[0].stop()
    assert (await gateway.post("/update_weights", FILE_UPDATE))[0] == 200
    assert (await gateway.post("/finish_weight_update", {"weight_version": "policy-1"}))[0] == 200
    assert pods[1].weight_version == "policy-1"


async def test_a_pod_that_dies_in_a_network_update_fails_it_by_name(
    gateway: RunningGateway, pods: list[FakePod]
) -> None:
    await gateway.post("/start_weight_update", {})
    await pods[0].stop()
    await gateway.serving(1)
    for pod in pods[1:]:
        await pod.stop()
    status, answer = await gateway.post("/update_weights", {"update_info": {"names": []}})
    assert status in (502, 503)
    assert "rollout pod" in answer["error"]["message"]


async def test_after_a_restart_of_the_gateway_pods_with_an_older_policy_wait(
    start_gateway: StartGateway, pods: list[FakePod]
) -> None:
    pods[0].weight_version, pods[1].weight_version = "policy-4", "policy-5"
    async with start_gateway() as gateway:
        state = await gateway.serving(1)
        assert state.policy_version == 5
        assert [backend.healthy for backend in state.backends if backend.address == pods[1].address] == [True]
        await update_policy(gateway, version="policy-6")
        await gateway.serving(2)


async def test_reset_prefix_cache_succeeds_only_where_every_pod_does(
    gateway: RunningGateway, pods: list[FakePod]
) -> None:
    assert await gateway.post("/reset_prefix_cache") == (200, {"success": True})
    pods[1].reset_succeeds = False
    assert await gateway.post("/reset_prefix_cache") == (200, {"success": False})


async def test_pods_with_different_models_are_told_apart(gateway: RunningGateway, pods: list[FakePod]) -> None:
    assert (await gateway.get("/v1/models"))[1]["data"][0]["id"] == "policy"
    pods[1].model = "another"
    status, answer = await gateway.get("/v1/models")
    assert status == 409
    assert "another" in answer["error"]["message"]


async def test_health_names_the_pod_in_trouble(gateway: RunningGateway, pods: list[FakePod]) -> None:
    assert (await gateway.get("/health"))[0] == 200
    pods[1].healthy = False
    await gateway.serving(1)
    status, answer = await gateway.get("/health")
    assert status == 503
    assert pods[1].address in answer["error"]["message"]
    assert (await gateway.get("/healthz"))[0] == 200


async def test_the_state_needs_the_token(gateway: RunningGateway) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        async with gateway.session.get(gateway.url + GATEWAY_ROUTE, headers=headers) as response:
            assert response.status == 401
            assert (await response.json())["error"]["reason"] == "Unauthorized"


async def test_a_pod_that_is_a_step_behind_in_a_rotation_gets_the_other_token(
    start_gateway: StartGateway, pods: list[FakePod], tmp_path: Path
) -> None:
    secret = MountedSecret(tmp_path / "mount", {"token": "new", "token-previous": TOKEN})
    for pod in pods:
        pod.protected_by = TOKEN
    async with start_gateway(token_file=secret.token) as gateway:
        await gateway.serving(2)
        for token, status in ((TOKEN, 200), ("new", 200), ("newer", 401)):
            headers = {"Authorization": f"Bearer {token}"}
            async with gateway.session.get(gateway.url + GATEWAY_ROUTE, headers=headers) as response:
                assert response.status == status
    assert [pod.tokens_seen[:2] for pod in pods] == [["Bearer new", f"Bearer {TOKEN}"]] * 2


async def test_a_long_poll_is_answered_by_the_next_change(gateway: RunningGateway, pods: list[FakePod]) -> None:
    pods[0].hold()
    pods[1].hold()
    request = asyncio.create_task(gateway.post("/v1/completions", batch(1)))
    await eventually_async(lambda: sum(pod.in_flight for pod in pods) == 1)
    state = await gateway.state()
    poll = asyncio.create_task(gateway.state(seq=str(state.seq), wait="30"))
    for pod in pods:
        pod.release()
    changed = await poll
    assert changed.seq != state.seq
    assert changed.boot == state.boot
    await request


async def test_a_long_poll_without_a_change_ends(gateway: RunningGateway) -> None:
    state = await gateway.state()
    assert (await gateway.state(seq=str(state.seq), wait="0.05")).boot == state.boot


async def test_metrics_show_the_same_numbers_as_the_state(gateway: RunningGateway, pods: list[FakePod]) -> None:
    await gateway.post("/v1/completions", batch(3))
    async with gateway.session.get(gateway.url + "/metrics") as response:
        page = await response.text()
    assert "tlt_gateway_completions_total 3.0" in page
    assert f'tlt_gateway_pod_serves{{pod="{pods[0].address}"}} 1.0' in page
    assert "tlt_gateway_batch_seconds_count 1.0" in page


async def test_a_silent_pod_is_given_up(start_gateway: StartGateway, pods: list[FakePod]) -> None:
    async with start_gateway(probe_timeout=0.1, lost_after=0.2) as gateway:
        await gateway.serving(2)
        pods[0].hold()
        request = asyncio.create_task(gateway.post("/v1/completions", batch(2)))
        await eventually_async(lambda: pods[0].in_flight == 1)
        pods[0].healthy = False  # stands for a node that stopped answering: the connection itself stays open
        status, answer = await request
        assert status == 200
        assert len(answer["choices"]) == 2


async def test_an_unknown_host_is_no_pod(start_gateway: StartGateway) -> None:
    async with start_gateway(backend="no-such-host.invalid:8000") as gateway:
        status, answer = await gateway.get("/health")
        assert status == 503
        assert "no rollout pod serves" in answer["error"]["message"]
        with pytest.raises(aiohttp.ClientResponseError):
            async with gateway.session.get(gateway.url + "/get_world_size", raise_for_status=True):
                pass
