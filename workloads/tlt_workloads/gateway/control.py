"""Control calls of the learner, sent to all pods and answered as one server would.

A refusal by any pod fails the call and names the pod.  A pod whose connection breaks while policies come by file is
taken out instead and catches up when it is back: the learner need not know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tlt_workloads.gateway.backends import Backends
from tlt_workloads.gateway.errors import (
    GatewayError,
    InvalidRequestError,
    NoPodError,
    PodFailedError,
    PodRefusedError,
    PodsDisagreeError,
    PodUnreachableError,
)
from tlt_workloads.gateway.exchange import Exchange
from tlt_workloads.gateway.pods import PodAnswer, PodClient
from tlt_workloads.gateway.policy import PolicyLedger

READ_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class ControlCall:
    """One control request as it came."""

    body: Mapping[str, Any] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


class Control:
    """One method per control route; each takes the call and returns the JSON of the answer."""

    def __init__(self, *, pods: PodClient, backends: Backends, exchange: Exchange, ledger: PolicyLedger) -> None:
        self._pods = pods
        self._backends = backends
        self._exchange = exchange
        self._ledger = ledger

    async def health(self, _call: ControlCall) -> Any:
        """Fails when a pod is in trouble or none is there; vLLM's own answer has no body."""
        known = self._backends.all()
        for backend in known:
            if backend.listed and not backend.healthy:
                raise NoPodError(f"rollout pod {backend.address} is in trouble: {backend.trouble}")
        if not any(backend.serves for backend in known):
            reasons = "; ".join(f"{backend.address} {backend.trouble}" for backend in known)
            raise NoPodError(f"no rollout pod serves{': ' + reasons if reasons else ' yet'}")
        return None

    async def models(self, call: ControlCall) -> Any:
        """The models, which must have the same names on all pods."""
        answers = await self._read("/v1/models", call)
        names = {
            answer.address: tuple(model.get("id") for model in _data(answer).get("data", ())) for answer in answers
        }
        if len(set(names.values())) > 1:
            raise PodsDisagreeError(f"rollout pods serve different models: {names}")
        return answers[0].json()

    async def server_info(self, call: ControlCall) -> Any:
        """One pod's configuration, for all: pods of one job are alike."""
        return (await self._read("/server_info", call))[0].json()

    async def world_size(self, call: ControlCall) -> Any:
        """Workers of all pods together."""
        return {"world_size": sum((await self._world_sizes(call)).values())}

    async def is_paused(self, call: ControlCall) -> Any:
        """Whether any pod is paused."""
        return {"is_paused": any(_data(answer).get("is_paused") for answer in await self._read("/is_paused", call))}

    async def weight_info(self, call: ControlCall) -> Any:
        """The policy version, which all pods must share."""
        answers = await self._read("/weight_info", call)
        versions = {answer.address: _data(answer).get("weight_version") for answer in answers}
        if len(set(versions.values())) > 1:
            raise PodsDisagreeError(f"rollout pods have different policies: {versions}")
        return answers[0].json()

    async def initialise_transfer(self, call: ControlCall) -> Any:
        """Opens the weight transfer; in a network group each pod gets ranks of its own, in the order of addresses."""
        info = _object(call, "init_info")
        self._ledger.initialise(info)
        bodies: dict[str, Any] = dict.fromkeys(self._backends.healthy(), call.body)
        if "rank_offset" in info:
            offset = info["rank_offset"]
            if not isinstance(offset, int):
                raise InvalidRequestError("init_info.rank_offset: expected a whole number", parameter="init_info")
            for address, size in (await self._world_sizes(ControlCall(headers=call.headers))).items():
                bodies[address] = {**call.body, "init_info": {**info, "rank_offset": offset}}
                offset += size
        return await self._send("/init_weight_transfer_engine", call, bodies)

    async def start_update(self, call: ControlCall) -> Any:
        """Begins a policy update on every pod that answers, those that wait for a policy included."""
        async with self._backends.policy_change:  # a pod that catches up does so first
            members = self._backends.healthy()
            self._ledger.start(members)
        return await self._update_step("/start_weight_update", call, call.body)

    async def update(self, call: ControlCall) -> Any:
        """Tells the pods of the update where the weights are."""
        info = call.body.get("update_info")
        given = info if isinstance(info, list) else [info]
        parts = [part for part in given if isinstance(part, dict)]
        if not parts or len(parts) != len(given):
            raise InvalidRequestError("update_info: expected an object or a list of them", parameter="update_info")
        self._members()
        for part in parts:
            self._ledger.stage(part)
        return await self._update_step("/update_weights", call, call.body)

    async def finish_update(self, call: ControlCall) -> Any:
        """Ends the update; the policy gets a version here when the learner gave none."""
        version = str(call.body.get("weight_version") or self._ledger.next_version())
        answer = await self._update_step("/finish_weight_update", call, {**call.body, "weight_version": version})
        members = self._members()
        self._ledger.finish(version)
        self._backends.admit(members)
        return answer

    async def reset_prefix_cache(self, call: ControlCall) -> Any:
        """Whether every pod could reset."""
        bodies = dict.fromkeys(self._backends.healthy())
        answers = await self._gather("POST", "/reset_prefix_cache", call, bodies)
        return {"success": all(_data(answer).get("success", True) for answer in answers)}

    async def pause(self, call: ControlCall) -> Any:
        """Pauses all pods; those that join later wait for the end of the pause."""
        if call.query.get("mode", "abort") == "abort":
            self._exchange.aborts_wanted += 1
        answer = await self._send("/pause", call, dict.fromkeys(self._backends.healthy()))
        self._ledger.paused = True
        return answer

    async def resume(self, call: ControlCall) -> Any:
        """Ends the pause."""
        answer = await self._send("/resume", call, dict.fromkeys(self._backends.healthy()))
        self._ledger.paused = False
        return answer

    def _members(self) -> list[str]:
        session = self._ledger.session
        if session is None:
            raise PodsDisagreeError("no weight update is open: call /start_weight_update first")
        return [address for address in self._backends.healthy() if address in session.members]

    async def _update_step(self, path: str, call: ControlCall, body: Mapping[str, Any]) -> Any:
        try:
            return await self._send(path, call, dict.fromkeys(self._members(), body))
        except GatewayError:
            self._ledger.abandon()
            raise

    async def _world_sizes(self, call: ControlCall) -> dict[str, int]:
        answers = await self._read("/get_world_size", call)
        return {answer.address: int(_data(answer).get("world_size", 1)) for answer in answers}

    async def _read(self, path: str, call: ControlCall) -> list[PodAnswer]:
        return await self._gather("GET", path, call, dict.fromkeys(self._backends.healthy()), limit=READ_SECONDS)

    async def _send(self, path: str, call: ControlCall, bodies: Mapping[str, Any]) -> Any:
        return (await self._gather("POST", path, call, bodies))[0].json()

    async def _gather(
        self, method: str, path: str, call: ControlCall, bodies: Mapping[str, Any], *, limit: float | None = None
    ) -> list[PodAnswer]:
        """Calls all pods at once; at least one answer, all of status 200.

        Raises:
            NoPodError: there is no pod.
            PodRefusedError: a pod answered with an error.
            PodFailedError: a connection broke and the pod may not miss the call, or no pod is left.
        """
        if not bodies:
            raise NoPodError(f"{path}: no rollout pod is ready")
        calls = (
            self._pods.request(method, address, path, body=body, query=call.query, headers=call.headers, limit=limit)
            for address, body in bodies.items()
        )
        results = await asyncio.gather(*calls, return_exceptions=True)
        answers: list[PodAnswer] = []
        lost: list[PodUnreachableError] = []
        for result in results:
            if isinstance(result, PodUnreachableError):
                lost.append(result)
                self._backends.suspect(result.address, result.reason)
            elif isinstance(result, BaseException):
                raise result
            elif result.status != 200:
                raise PodRefusedError(result.address, path, status=result.status, message=result.message)
            else:
                answers.append(result)
        if lost and not (answers and self._ledger.by_file):
            raise PodFailedError(f"{path}: {lost[0]}")
        return answers


def _data(answer: PodAnswer) -> Mapping[str, Any]:
    data = answer.json()
    return data if isinstance(data, dict) else {}


def _object(call: ControlCall, name: str) -> Mapping[str, Any]:
    value = call.body.get(name)
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{name}: expected an object", parameter=name)
    return value
