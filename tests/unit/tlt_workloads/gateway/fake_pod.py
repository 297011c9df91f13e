"""A rollout pod for unit tests: vLLM's routes and shapes, no engine, deaths on demand."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

from aiohttp import web
from aiohttp.test_utils import unused_port

PROMPT_ERROR = {"error": {"message": "prompt is too long", "type": "BadRequestError", "param": "prompt", "code": 400}}


class FakePod:
    """Echoes each prompt's tokens in reverse; `hold()` keeps answers back until `release()`."""

    def __init__(self, *, port: int | None = None, world_size: int = 1, model: str = "policy") -> None:
        self.port = port or unused_port()
        self.world_size = world_size
        self.model = model
        self.weight_version = "default"
        self.calls: list[tuple[str, Any]] = []
        self.completions: list[dict[str, Any]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.healthy = True
        self.refuse: dict[str, tuple[int, Any]] = {}  # path -> answer
        self.protected_by = ""  # the token that `/weight_info` asks for
        self.tokens_seen: list[str] = []
        self.reset_succeeds = True
        self.break_next = 0  # connections to break in mid-request
        self.abort_next = 0  # completions to end as an engine that shuts down does
        self._open = asyncio.Event()
        self._open.set()
        self._runner: web.AppRunner | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def called(self, path: str) -> list[Any]:
        return [body for name, body in self.calls if name == path]

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_route("*", "/{path:.*}", self._control)
        self._runner = web.AppRunner(app, shutdown_timeout=0.05)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        """Dies: open connections break, new ones are refused."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.completions.append({**body, "headers": dict(request.headers)})
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.break_next:
                self.break_next -= 1
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            await self._open.wait()
        finally:
            self.in_flight -= 1
        if "/v1/completions" in self.refuse:
            status, content = self.refuse["/v1/completions"]
            return web.json_response(content, status=status)
        if body.get("stream"):
            return await self._stream(request)
        return web.json_response(self._answer(body))

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for text in ("one", "two"):
            await response.write(f"data: {json.dumps({'choices': [{'text': text}]})}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        tokens = list(prompt) if isinstance(prompt, list) else [ord(letter) for letter in prompt]
        produced = tokens[::-1]
        aborted = self.abort_next > 0
        self.abort_next = max(0, self.abort_next - 1)
        return {
            "id": "cmpl-of-the-pod",
            "object": "text_completion",
            "created": 1_700_000_000,
            "model": body.get("model") or self.model,
            "choices": [
                {
                    "index": 0,
                    "text": f"seed {body.get('seed')}",
                    "logprobs": {
                        "text_offset": [0] * len(produced),
                        "tokens": [f"token_id:{token}" for token in produced],
                        "token_logprobs": [-0.5] * len(produced),
                        "top_logprobs": [{f"token_id:{token}": -0.5} for token in produced],
                    },
                    "finish_reason": "abort" if aborted else "stop",
                    "prompt_token_ids": tokens,
                    "token_ids": produced,
                }
            ],
            "usage": {
                "prompt_tokens": len(tokens),
                "completion_tokens": len(produced),
                "total_tokens": len(tokens) + len(produced),
                "prompt_tokens_details": None,
            },
            "metrics": {"time_to_first_token": 0.1},
        }

    async def _control(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        text = await request.text()
        body = json.loads(text) if text else None
        self.calls.append((path, body))
        if self.protected_by and path == "/weight_info":
            self.tokens_seen.append(request.headers.get("Authorization", ""))
            if self.tokens_seen[-1] != f"Bearer {self.protected_by}":
                return web.json_response({"detail": "the token is not this job's"}, status=401)
        if path in self.refuse:
            status, content = self.refuse[path]
            return web.json_response(content, status=status)
        if path == "/health":
            return web.Response(status=200 if self.healthy else 503)
        if path == "/finish_weight_update" and body and body.get("weight_version"):
            self.weight_version = body["weight_version"]
        answers: dict[str, Any] = {
            "/v1/models": {"object": "list", "data": [{"id": self.model, "max_model_len": 1024}]},
            "/server_info": {
                "vllm_config": {
                    "weight_transfer_config": {"backend": "tlt"},
                    "model_config": {"logprobs_mode": "processed_logprobs", "dtype": "float32"},
                }
            },
            "/get_world_size": {"world_size": self.world_size},
            "/weight_info": {"weight_version": self.weight_version},
            "/is_paused": {"is_paused": False},
            "/reset_prefix_cache": {"success": self.reset_succeeds},
        }
        return web.json_response(answers.get(path, {"message": f"{path} done"}))

    def tally(self) -> Counter[str]:
        """How often each control route was called."""
        return Counter(path for path, _ in self.calls)
