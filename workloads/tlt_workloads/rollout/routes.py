"""The control routes below `/tlt/v1`: who may call, what comes in, what goes out.  vLLM's endpoint plugin."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import State

from tlt_workloads import contract
from tlt_workloads.guard import Guard, TooManyAttemptsError
from tlt_workloads.rollout import weight_routes
from tlt_workloads.rollout.assembly import Rollout, assemble
from tlt_workloads.rollout.body_limit import BodyLimit
from tlt_workloads.rollout.engine import DrafterRefusedError
from tlt_workloads.rollout.gate import RequestGate
from tlt_workloads.rollout.lease import NotHolderError
from tlt_workloads.rollout.openapi import Parameter, documented, schema_of
from tlt_workloads.rollout.pod import RefusedError, RolloutPod
from tlt_workloads.rollout.revision_files import FoundRevision, find_revision
from tlt_workloads.rollout.speculation import SpeculationRefusedError
from tlt_workloads.store import StoreError
from tlt_workloads.tokens import TokenFile, UnauthorizedError

logger = logging.getLogger("vllm.tlt")

LONGEST_WAIT = 60.0  # seconds of a long poll
HEARTBEAT = 0.5  # seconds between two looks at whether a polling holder, or the server, is still there

SEQ = Parameter(name="seq", schema={"type": "integer"}, meaning="the number of the last answer")
WAIT = Parameter(name="wait", schema={"type": "number", "minimum": 0}, meaning=f"seconds, {LONGEST_WAIT:g} at the most")
HOLDER = Parameter(name="holder", schema={"type": "string"}, meaning="who holds the lease; a heartbeat while it waits")
BACK = Parameter(name="holder", schema={"type": "string"}, meaning="who gives the lease back")
REVOKE = Parameter(name="revoke", schema=schema_of(contract.RevokeReason), meaning="why it is asked back")
LEASE_ANSWER = {
    "type": "object",
    "required": ["seq", "boot", "lease"],
    "properties": {
        "seq": {"type": "integer"},
        "boot": {"type": "string"},
        "lease": schema_of(contract.LeaseView | None),
    },
}
CONFIG_ANSWER = {
    "type": "object",
    "required": ["configDigest", "warnings"],
    "properties": {"configDigest": {"type": "string"}, "warnings": {"type": "array", "items": {"type": "string"}}},
}
FOR_GOOD = tuple(
    reason for reason in contract.DrafterRefusal if reason is not contract.DrafterRefusal.STORE_UNAVAILABLE
)

router = APIRouter()
Payload = TypeVar("Payload")
Handler = Callable[[Request, Rollout], Awaitable[Response]]


class BadRequestError(ValueError):
    """The request does not fit the contract."""


def control(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """Checks the token, hands the pod over and turns errors into the contract's answers."""

    @functools.wraps(handler)
    async def guarded(request: Request) -> Response:
        try:
            address = request.client.host if request.client is not None else ""
            request.app.state.tlt_guard.check(request.headers.get("authorization"), address=address)
            rollout: Rollout | None = getattr(request.app.state, "tlt_rollout", None)
            if rollout is None:
                return failure(503, "Starting", "the engine is not up yet")
            return await handler(request, rollout)
        except TooManyAttemptsError as error:
            answer = failure(429, "TooManyAttempts", str(error))
            answer.headers["Retry-After"] = str(error.retry_after)
            return answer
        except UnauthorizedError as error:
            return failure(401, "Unauthorized", str(error))
        except (BadRequestError, contract.ContractError, SpeculationRefusedError, StoreError) as error:
            return failure(400, "BadRequest", str(error))
        except RefusedError as error:
            return failure(409, error.reason, str(error))
        except NotHolderError as error:
            return failure(409, "NotHolder", str(error))
        except DrafterRefusedError as error:
            return failure(refusal_status(error.reason), error.reason.value, str(error))

    guarded.__annotations__ = {"request": Request, "return": Response}
    del guarded.__wrapped__  # FastAPI would read the handler's own signature
    return guarded


def refusal_status(reason: contract.DrafterRefusal) -> int:
    """422 for what is wrong with a drafter; 502 for a store that may be back soon, so that nobody gives up on it."""
    return 422 if reason in FOR_GOOD else 502


def failure(status: int, reason: str, message: str) -> JSONResponse:
    """An error as the contract shapes it."""
    return JSONResponse({"error": {"reason": reason, "message": message}}, status_code=status)


@router.get(contract.STATE_ROUTE, **documented(answer=contract.RolloutState, query=(SEQ, WAIT)))
@control
async def get_state(request: Request, rollout: Rollout) -> Response:
    """`GET state?seq=&wait=`: the pod's facts, at the next change."""
    async for _ in _waiting(request, rollout.pod):
        pass
    return JSONResponse(contract.encode(rollout.pod.facts()))


@router.post(
    contract.LEASE_ROUTE,
    **documented(
        body=contract.LeaseRequest,
        answer=contract.LeaseView,
        status=201,
        refusals={409: "NotIdle, Held, Paused, Updating, Unsupported or SleepFailed"},
    ),
)
@control
async def post_lease(request: Request, rollout: Rollout) -> Response:
    """`POST lease`: lends the GPU."""
    wanted = await _body(request, contract.LeaseRequest)
    view = await rollout.pod.grant(wanted)
    return JSONResponse(contract.encode(view), status_code=201)


@router.get(contract.LEASE_ROUTE, **documented(answer=LEASE_ANSWER, query=(HOLDER, SEQ, WAIT)))
@control
async def get_lease(request: Request, rollout: Rollout) -> Response:
    """`GET lease?holder=&seq=&wait=`: the lease at its next change; a heartbeat of the holder while it waits."""
    pod = rollout.pod
    holder = request.query_params.get("holder", "")
    if holder:
        pod.heartbeat(holder)
    async for _ in _waiting(request, pod):
        if holder and not await request.is_disconnected():
            pod.heartbeat(holder)
    lease = pod.facts().lease
    return JSONResponse({"seq": pod.seq, "boot": pod.boot, "lease": None if lease is None else contract.encode(lease)})


@router.delete(
    contract.LEASE_ROUTE,
    **documented(
        answer=contract.RolloutState, query=(BACK, REVOKE), refusals={409: "NotHolder: somebody else has the lease"}
    ),
)
@control
async def delete_lease(request: Request, rollout: Rollout) -> Response:
    """`DELETE lease?holder=` gives it back, `?revoke=reason` asks it back."""
    holder, reason = request.query_params.get("holder"), request.query_params.get("revoke")
    if (holder is None) == (reason is None):
        raise BadRequestError("send either holder= (give back) or revoke= (ask back)")
    if holder is not None:
        await rollout.pod.release(holder)
    else:
        rollout.pod.revoke(_revoke_reason(reason or ""))
    return JSONResponse(contract.encode(rollout.pod.facts()))


@router.post(
    contract.DRAFTER_ROUTE,
    **documented(
        body=contract.DrafterLoad,
        answer=contract.DrafterLoaded,
        refusals={
            409: "NoDrafter, PolicyUpdate, Loading or Asleep: not now",
            422: f"refused for good: {', '.join(FOR_GOOD)}",
            502: "StoreUnavailable: the store does not answer or fails; ask again",
        },
    ),
)
@control
async def post_drafter(request: Request, rollout: Rollout) -> Response:
    """`POST drafter`: a new revision."""
    load = await _body(request, contract.DrafterLoad)

    async def find(url: str) -> FoundRevision:
        return await asyncio.to_thread(lambda: find_revision(rollout.job_folder.folder(url)))

    loaded = await rollout.load_drafter(load, find=find)
    return JSONResponse(contract.encode(loaded))


@router.delete(
    contract.DRAFTER_ROUTE,
    **documented(
        answer=contract.RolloutState,
        refusals={
            409: "NoDrafter, PolicyUpdate, Loading or Asleep: not now",
            422: "Unreadable: the file of the server's own drafter is gone",
        },
    ),
)
@control
async def delete_drafter(request: Request, rollout: Rollout) -> Response:
    """`DELETE drafter`: back to the one that the server started with."""
    await rollout.unload_drafter()
    return JSONResponse(contract.encode(rollout.pod.facts()))


@router.post(contract.SPECULATION_ROUTE, **documented(body=contract.SpeculationSettings, answer=contract.RolloutState))
@control
async def post_speculation(request: Request, rollout: Rollout) -> Response:
    """`POST speculation`: mode and draft length from now on."""
    await rollout.set_speculation(await _body(request, contract.SpeculationSettings))
    return JSONResponse(contract.encode(rollout.pod.facts()))


@router.get(contract.SPECULATION_ROUTE, **documented(answer=contract.SpeculationReport))
@control
async def get_speculation(request: Request, rollout: Rollout) -> Response:
    """`GET speculation`: what is drafted, and what adaptive speculation knows."""
    return JSONResponse(contract.encode(await rollout.report_speculation()))


@router.post(contract.CONFIG_ROUTE, **documented(body=contract.RolloutConfig, answer=CONFIG_ANSWER))
@control
async def post_config(request: Request, rollout: Rollout) -> Response:
    """`POST config`: what the pod must know of its job; the same again changes nothing."""
    warnings = await rollout.configure(await _body(request, contract.RolloutConfig))
    return JSONResponse({"configDigest": rollout.pod.config_digest, "warnings": list(warnings)})


class TltEndpoints:
    """`vllm.endpoint_plugins` entry point; see vLLM's `plugins/endpoint_plugins/interface.py`."""

    name = "tlt"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Adds the routes and the door that generation requests pass."""
        app.state.tlt_guard = Guard(TokenFile.from_environment())
        app.include_router(router)
        app.include_router(weight_routes.router)
        app.add_middleware(RequestGate, doorkeeper=lambda: _doorkeeper(app))
        app.add_middleware(BodyLimit)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """The engine is up: from now on the pod has facts."""
        if engine_client is not None:
            state.tlt_rollout = await assemble(engine_client, args)


def _doorkeeper(app: FastAPI) -> Any:
    rollout: Rollout | None = getattr(app.state, "tlt_rollout", None)
    return None if rollout is None else rollout.pod


async def _body(request: Request, kind: type[Payload]) -> Payload:
    assert dataclasses.is_dataclass(kind)
    try:
        data = await request.json()
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"body: not JSON: {error}") from error
    return contract.decode(kind, data)


async def _waiting(request: Request, pod: RolloutPod) -> AsyncIterator[None]:
    """Waits as `?seq=&wait=` say, with a beat now and then.

    A server that is told to stop waits for its open connections, so that polls must end then; the lease goes first.
    """
    seq, left = _poll(request)
    while left > 0 and pod.seq == seq:
        await pod.wait_for_change(seq, within=min(left, HEARTBEAT))
        left -= HEARTBEAT
        server = getattr(request.app.state, "server", None)
        if server is not None and server.should_exit:
            pod.revoke(contract.RevokeReason.SHUTDOWN)
            return
        yield


def _poll(request: Request) -> tuple[int, float]:
    try:
        seq = int(request.query_params.get("seq", "0"))
        wait = float(request.query_params.get("wait", "0"))
    except ValueError as error:
        raise BadRequestError(f"seq, wait: expected numbers: {error}") from error
    return seq, min(max(wait, 0.0), LONGEST_WAIT)


def _revoke_reason(word: str) -> contract.RevokeReason:
    try:
        return contract.RevokeReason(word)
    except ValueError:
        choices = ", ".join(reason.value for reason in contract.RevokeReason)
        raise BadRequestError(f"revoke: {word!r} is not one of {choices}") from None
