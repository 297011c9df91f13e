"""The gateway's HTTP routes; each is a few calls into the modules that do the work."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import aiohttp
from aiohttp import web

from tlt_workloads import contract
from tlt_workloads.contract import GatewayBackend, GatewayState
from tlt_workloads.gateway.backends import Backends
from tlt_workloads.gateway.completions import SingleCompletion, is_aborted, is_splittable, merge, split
from tlt_workloads.gateway.control import Control, ControlCall
from tlt_workloads.gateway.errors import GatewayError, InvalidRequestError, PodFailedError, PodUnreachableError
from tlt_workloads.gateway.exchange import Exchange
from tlt_workloads.gateway.metrics import GatewayMetrics
from tlt_workloads.gateway.pods import PodAnswer, PodClient
from tlt_workloads.gateway.policy import PolicyLedger
from tlt_workloads.gateway.settings import GatewaySettings
from tlt_workloads.gateway.state import Batch, Progress
from tlt_workloads.guard import Guard, TooManyAttemptsError
from tlt_workloads.tokens import TokenFile, UnauthorizedError

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 1 << 30  # a batch of long prompts as token ids
LONGEST_POLL = 60.0
STALE_AFTER = 60.0  # s without a pass over the pods
# Answers that say more of the pod than of the request: an engine that died, is shutting down or is full.
POD_STATUSES = frozenset({429, 500, 502, 503, 504})
# Any one pod serves these, as they are.
ONE_POD_ROUTES = ("/v1/chat/completions", "/v1/chat/completions/render", "/tokenize", "/detokenize")
PASSED_HEADERS = ("Authorization",)  # vLLM's own API key, or the job's token where pods protect their weights

CONTROL_ROUTES: tuple[tuple[str, str, Callable[[Control, ControlCall], Awaitable[Any]]], ...] = (
    ("GET", "/health", Control.health),
    ("GET", "/v1/models", Control.models),
    ("GET", "/server_info", Control.server_info),
    ("GET", "/get_world_size", Control.world_size),
    ("GET", "/is_paused", Control.is_paused),
    ("GET", "/weight_info", Control.weight_info),
    ("POST", "/init_weight_transfer_engine", Control.initialise_transfer),
    ("POST", "/start_weight_update", Control.start_update),
    ("POST", "/update_weights", Control.update),
    ("POST", "/finish_weight_update", Control.finish_update),
    ("POST", "/reset_prefix_cache", Control.reset_prefix_cache),
    ("POST", "/pause", Control.pause),
    ("POST", "/resume", Control.resume),
)


class Refused(Exception):  # noqa: N818 - an answer on its way to the client, not a failure of ours
    """A pod refused the request itself; its answer goes to the client as it is."""

    def __init__(self, answer: PodAnswer) -> None:
        super().__init__(answer.message)
        self.answer = answer


class Gateway:
    """All parts of one gateway, wired together; to be made inside a running event loop."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        tokens = TokenFile(settings.token_file)
        self._guard = Guard(tokens)
        self._progress = Progress()
        self._ledger = PolicyLedger()
        self._pods = PodClient()
        self._exchange = Exchange(
            settings=settings,
            progress=self._progress,
            on_unreachable=lambda address, reason: self._backends.suspect(address, reason),
        )
        self._backends = Backends(
            settings=settings, pods=self._pods, exchange=self._exchange, ledger=self._ledger, tokens=tokens
        )
        self._control = Control(pods=self._pods, backends=self._backends, exchange=self._exchange, ledger=self._ledger)
        self._metrics = GatewayMetrics(self.view)

    def application(self) -> web.Application:
        """The routes, and the task that follows the pods."""
        app = web.Application(client_max_size=MAX_REQUEST_BYTES, middlewares=[_answer_errors])
        app.cleanup_ctx.append(self._follow_pods)
        app.router.add_post("/v1/completions", self._completions)
        for path in ONE_POD_ROUTES:
            app.router.add_post(path, self._one_pod)
        app.router.add_get("/version", self._one_pod)
        for method, path, function in CONTROL_ROUTES:
            app.router.add_route(method, path, self._controlled_by(function))
        app.router.add_get(contract.GATEWAY_ROUTE, self._state)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/metrics", self._metrics_page)
        return app

    def view(self) -> GatewayState:
        """The public state, now."""
        dispatcher = self._exchange.dispatcher
        return self._progress.view(
            queued=dispatcher.queued,
            outstanding=dispatcher.outstanding,
            remaining=self._exchange.outlook.remaining(now=asyncio.get_running_loop().time()),
            policy_version=self._ledger.number,
            backends=(
                GatewayBackend(
                    address=backend.address,
                    outstanding=dispatcher.outstanding_at(backend.address),
                    healthy=backend.serves,
                )
                for backend in self._backends.all()
            ),
        )

    async def _follow_pods(self, _app: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(self._backends.run())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await self._pods.close()

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await _json_object(request)
        if not is_splittable(body):
            return await self._one_pod(request)
        pieces = split(body)
        identity = f"cmpl-{uuid.uuid4().hex}"
        headers = _passed_headers(request)
        with self._progress.batch(len(pieces)) as batch, self._metrics.batch_seconds.time():
            tasks = [
                asyncio.create_task(self._piece(piece, batch=batch, identity=f"{identity}-{index}", headers=headers))
                for index, piece in enumerate(pieces)
            ]
            try:
                answers = await asyncio.gather(*tasks)
            except Refused as refusal:
                return _as_response(refusal.answer)
            except GatewayError:
                self._progress.failed += batch.size - batch.completed
                raise
            finally:
                for task in tasks:  # after the first failure the client gets nothing of the others
                    task.cancel()
        return web.json_response(merge(pieces, answers, identity=identity))

    async def _piece(
        self, piece: SingleCompletion, *, batch: Batch, identity: str, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        async def at_pod(address: str, *, attempt: int) -> dict[str, Any]:
            # The engine refuses a second request of the same name, so each attempt has its own.
            marked = {**headers, "X-Request-Id": f"{identity}-{attempt}"}
            aborts = self._exchange.aborts_wanted
            answer = await self._pods.request("POST", address, "/v1/completions", body=piece.body, headers=marked)
            if answer.status in POD_STATUSES:
                raise PodUnreachableError(address, f"HTTP {answer.status}: {answer.message}")
            data = answer.json()
            if answer.status != 200 or not isinstance(data, dict):
                raise Refused(answer)
            if is_aborted(data) and aborts == self._exchange.aborts_wanted:
                raise PodUnreachableError(address, "the engine aborted the completion")
            return data

        data = await self._exchange.run(at_pod)
        self._progress.complete(batch)
        return data

    async def _one_pod(self, request: web.Request) -> web.StreamResponse:
        """Passes a request to one pod as it is; a stream that has begun cannot move to another pod."""
        body = await _json_object(request) or None  # a GET has none
        begun = False

        async def at_pod(address: str, *, attempt: int) -> web.StreamResponse:
            nonlocal begun
            if begun:
                raise PodFailedError("the rollout pod died in mid-stream")
            async with self._pods.stream(
                request.method, address, request.path, body=body, query=request.query, headers=_passed_headers(request)
            ) as upstream:
                if upstream.content_type != "text/event-stream":
                    answer = await self._pods.read(upstream, address=address)
                    if answer.status in POD_STATUSES:
                        raise PodUnreachableError(address, f"HTTP {answer.status}: {answer.message}")
                    return _as_response(answer)
                begun = True
                response = web.StreamResponse(status=upstream.status, headers={"Content-Type": "text/event-stream"})
                await response.prepare(request)
                try:
                    async for chunk in upstream.content.iter_any():
                        await response.write(chunk)
                except aiohttp.ClientPayloadError as failure:
                    raise PodUnreachableError(address, str(failure)) from failure
                await response.write_eof()
                return response

        with self._progress.batch(1) as batch:
            try:
                response = await self._exchange.run(at_pod)
            except GatewayError:
                self._progress.failed += 1
                raise
            self._progress.complete(batch)
            return response

    def _controlled_by(
        self, function: Callable[[Control, ControlCall], Awaitable[Any]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            body = await _json_object(request)
            data = await function(
                self._control, ControlCall(body=body, query=request.query, headers=_passed_headers(request))
            )
            return web.Response() if data is None else web.json_response(data)

        return handle

    async def _state(self, request: web.Request) -> web.Response:
        try:
            self._guard.check(request.headers.get("Authorization"), address=request.remote or "")
            sequence = int(request.query.get("seq", "0"))
            wait = min(float(request.query.get("wait", "0")), LONGEST_POLL)
        except TooManyAttemptsError as error:
            refusal = _contract_error(429, "TooManyAttempts", str(error))
            refusal.headers["Retry-After"] = str(error.retry_after)
            return refusal
        except UnauthorizedError as error:
            return _contract_error(401, "Unauthorized", str(error))
        except ValueError:
            return _contract_error(400, "BadQuery", "seq and wait are numbers")
        await self._progress.pulse.differs_from(sequence, within=wait)
        return web.json_response(contract.encode(self.view()))

    async def _healthz(self, _request: web.Request) -> web.Response:
        age = asyncio.get_running_loop().time() - self._backends.last_pass
        return web.json_response({"lastPassSecondsAgo": round(age, 3)}, status=200 if age < STALE_AFTER else 503)

    async def _metrics_page(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.page(), headers={"Content-Type": "text/plain; version=0.0.4"})


@web.middleware
async def _answer_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except GatewayError as failure:
        logger.warning("%s %s: %s", request.method, request.path, failure.message)
        return web.json_response(failure.body(), status=failure.status)


async def _json_object(request: web.Request) -> Mapping[str, Any]:
    text = await request.text()
    try:
        body = json.loads(text) if text else {}
    except ValueError as failure:
        raise InvalidRequestError(f"body: not JSON: {failure}") from None
    if not isinstance(body, dict):
        raise InvalidRequestError("body: expected an object")
    return body


def _passed_headers(request: web.Request) -> dict[str, str]:
    return {name: request.headers[name] for name in PASSED_HEADERS if name in request.headers}


def _as_response(answer: PodAnswer) -> web.Response:
    return web.Response(body=answer.content, status=answer.status, content_type=answer.content_type)


def _contract_error(status: int, reason: str, message: str) -> web.Response:
    return web.json_response({"error": {"reason": reason, "message": message}}, status=status)
