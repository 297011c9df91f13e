"""vLLM's own RL routes, served without its developer mode and with this pod's bookkeeping around them.

vLLM opens them only together with `/collective_rpc`, which runs any method of the worker; here they come alone.  A
policy update asks the lease back, freezes running requests, numbers the policy and drops cached prefixes at its end.

Learners such as TRL send no token, so none is asked for unless TLT_PROTECT_WEIGHT_ROUTES=1; a NetworkPolicy keeps
everybody but the learner and the gateway away from them.

What makes no sense is refused here (4xx), before the engine is touched: several learners take a 5xx for a passing
trouble and send the same again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, HTTPException, Query, Request
from fastapi.responses import JSONResponse
from vllm.distributed.weight_transfer.base import WeightTransferUpdatePayload
from vllm.entrypoints.rl.online import api_router as vllm_routes
from vllm.entrypoints.serve.dev.cache import api_router as vllm_cache_routes
from vllm.entrypoints.serve.dev.server_info import api_router as vllm_info_routes
from vllm.v1.engine import PauseMode
from vllm.v1.engine.exceptions import EngineDeadError

from tlt_workloads.guard import TooManyAttemptsError
from tlt_workloads.rollout.assembly import Rollout
from tlt_workloads.rollout.locations import OutsideStoreError
from tlt_workloads.rollout.pod import RefusedError
from tlt_workloads.rollout.policy_files import PolicyFileError, open_policy
from tlt_workloads.rollout.transport import Part, Transport, TransportError, read_introduction, read_part
from tlt_workloads.tokens import UnauthorizedError

PROTECT_VARIABLE = "TLT_PROTECT_WEIGHT_ROUTES"


def permitted(request: Request) -> Rollout:
    """The pod, when the caller may change its weights."""
    if os.environ.get(PROTECT_VARIABLE) == "1":
        address = request.client.host if request.client is not None else ""
        try:
            request.app.state.tlt_guard.check(request.headers.get("authorization"), address=address)
        except TooManyAttemptsError as error:
            retry = {"Retry-After": str(error.retry_after)}
            raise HTTPException(status_code=429, detail=str(error), headers=retry) from error
        except UnauthorizedError as error:
            raise HTTPException(status_code=401, detail=str(error)) from error
    rollout: Rollout = request.app.state.tlt_rollout
    return rollout


Permitted = Annotated[Rollout, Depends(permitted)]
router = APIRouter()


@contextlib.asynccontextmanager
async def refusing() -> AsyncIterator[None]:
    """Answers a learner's mistakes with 400 and what cannot be now with 409."""
    try:
        yield
    except (OutsideStoreError, PolicyFileError, TransportError) as error:
        raise HTTPException(status_code=400, detail=str(error)) from error
    except RefusedError as error:
        raise HTTPException(status_code=409, detail=str(error)) from error


@router.post("/init_weight_transfer_engine")
async def init_weight_transfer_engine(
    request: Request, rollout: Permitted, init_info: Annotated[dict[str, Any], Body(embed=True)]
) -> JSONResponse:
    """The learner introduces itself: `{}` or `{"transport": "file"}`, or the fields of vLLM's NCCL engine."""
    async with refusing():
        introduction = read_introduction(init_info)
        if introduction.transport is Transport.NCCL and not rollout.takes_nccl:
            raise TransportError('init_info: NCCL needs GPUs, this engine has none; send {"transport": "file"}')
        answer: JSONResponse = await vllm_routes.init_weight_transfer_engine(request, init_info)
        rollout.updates.introduced = introduction.transport
    return answer


@router.post("/start_weight_update")
async def start_weight_update(request: Request, rollout: Permitted) -> JSONResponse:
    """A policy update begins."""
    async with refusing(), rollout.updates.starting_policy():
        answer: JSONResponse = await vllm_routes.start_weight_update(request)
    return answer


@router.post("/update_weights")
async def update_weights(
    request: Request,
    rollout: Permitted,
    update_info: Annotated[WeightTransferUpdatePayload | None, Body()] = None,
    weight_dir: Annotated[str | None, Body(description="prime-rl's word: a folder, and the whole update")] = None,
) -> JSONResponse:
    """Some of the policy's weights; or, with `weight_dir`, all of them, start and finish included."""
    async with refusing():
        if update_info is not None:
            return await _update(request, rollout, update_info)
        if weight_dir is None:
            raise TransportError('update_info: expected {"transport": "file", "path": "..."}, or weight_dir: a folder')
        part = {"transport": Transport.FILE.value, "path": weight_dir}
        await _check_part(rollout, read_part(part))  # before anything is frozen for it
        async with rollout.updates.starting_policy():
            await vllm_routes.start_weight_update(request)
        await _update(request, rollout, part)
        name = PurePosixPath(weight_dir).name
        async with rollout.updates.finishing_policy(name):
            await vllm_routes.finish_weight_update(request, name)
    return JSONResponse({"status": "ok"})


async def _update(request: Request, rollout: Rollout, update_info: WeightTransferUpdatePayload) -> JSONResponse:
    given = update_info if isinstance(update_info, list) else [update_info]
    async with rollout.updates.receiving_policy():
        if isinstance(update_info, list) and len(given) != rollout.workers:
            raise TransportError(f"update_info: a list needs one entry for each of the {rollout.workers} workers")
        parts = [read_part(item) for item in given]
        for part in parts:
            await _check_part(rollout, part)
        try:
            answer: JSONResponse = await vllm_routes.update_weights(request, update_info)
        except EngineDeadError:
            raise
        except Exception as error:
            if any(part.transport is Transport.NCCL for part in parts):
                raise  # the other end may have gone
            message = f"update_info: the engine does not take these weights: {error}"
            raise HTTPException(status_code=422, detail=message) from error
    return answer


async def _check_part(rollout: Rollout, part: Part) -> None:
    """Refuses what the workers would refuse, with an answer that says why."""
    if part.transport is Transport.NCCL:
        if rollout.updates.introduced is not Transport.NCCL:
            raise RefusedError("NoGroup", "update_info: no NCCL group, call /init_weight_transfer_engine first")
        return

    def check() -> None:
        with open_policy(rollout.job_folder.resolve(part.path)):
            pass

    try:
        await asyncio.to_thread(check)
    except OutsideStoreError as error:
        raise OutsideStoreError(f"update_info.path: {error}") from error


@router.post("/finish_weight_update")
async def finish_weight_update(
    request: Request,
    rollout: Permitted,
    weight_version: Annotated[str | None, Body(embed=True, max_length=253)] = None,
) -> JSONResponse:
    """A policy update ends."""
    async with refusing(), rollout.updates.finishing_policy(weight_version) as number:
        answer: JSONResponse = await vllm_routes.finish_weight_update(request, weight_version or f"policy-{number}")
    return answer


@router.get("/weight_info")
async def weight_info(request: Request, rollout: Permitted) -> JSONResponse:
    """The name of the policy in the engine."""
    answer: JSONResponse = await vllm_routes.weight_info(request)
    return answer


@router.post("/pause")
async def pause(
    request: Request,
    rollout: Permitted,
    mode: Annotated[PauseMode, Query()] = "abort",
    clear_cache: Annotated[bool, Query()] = True,
) -> JSONResponse:
    """Pauses generation; a paused pod is not idle."""
    async with rollout.updates.pausing() as was_paused:
        answer: JSONResponse = await vllm_routes.pause_generation(request, mode, clear_cache)
        rollout.pod.set_paused(answer.status_code == 200 or was_paused)
    return answer


@router.post("/resume")
async def resume(request: Request, rollout: Permitted) -> JSONResponse:
    """Goes on."""
    answer: JSONResponse = await vllm_routes.resume_generation(request)
    rollout.pod.set_paused(answer.status_code != 200 and rollout.pod.activity.paused)
    return answer


@router.get("/is_paused")
async def is_paused(request: Request, rollout: Permitted) -> JSONResponse:
    """Whether generation is paused."""
    answer: JSONResponse = await vllm_routes.is_paused(request)
    return answer


@router.get("/get_world_size")
async def get_world_size(
    request: Request, rollout: Permitted, include_dp: Annotated[bool, Query()] = True
) -> JSONResponse:
    """How many workers take weights."""
    answer: JSONResponse = await vllm_routes.get_world_size(request, include_dp)
    return answer


@router.post("/reset_prefix_cache")
async def reset_prefix_cache(
    request: Request,
    rollout: Permitted,
    reset_running_requests: Annotated[bool, Query()] = False,
    reset_external: Annotated[bool, Query()] = False,
) -> JSONResponse:
    """Drops cached prefixes."""
    answer: JSONResponse = await vllm_cache_routes.reset_prefix_cache(request, reset_running_requests, reset_external)
    return answer


@router.get("/server_info")
async def server_info(
    request: Request, rollout: Permitted, config_format: Annotated[Literal["text", "json"], Query()] = "text"
) -> JSONResponse:
    """The server's configuration, by which a learner recognises that it can send weights.

    Without vLLM's survey of the host: it runs a dozen programs, and fails where neither pip nor uv is installed.
    """
    config = request.app.state.vllm_config
    if config_format == "text":
        return JSONResponse({"vllm_config": str(config)})
    tree = vllm_info_routes.PydanticVllmConfig.dump_python(config, mode="json", fallback=str)
    return JSONResponse({"vllm_config": tree})
