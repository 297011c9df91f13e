"""A gateway on a real port in front of fake pods."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import unused_port

from tests.support.eventually import eventually_async
from tests.unit.tlt_workloads.gateway.fake_pod import FakePod
from tlt_workloads.contract import GATEWAY_ROUTE, GatewayState, decode
from tlt_workloads.gateway.server import Gateway
from tlt_workloads.gateway.settings import GatewaySettings

TOKEN = "a-token"


class RunningGateway:
    """A gateway under test and a client for it."""

    def __init__(self, *, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    async def post(self, path: str, body: Any = None, **query: str) -> tuple[int, Any]:
        async with self.session.post(self.url + path, json=body, params=query) as response:
            return response.status, await response.json(content_type=None)

    async def get(self, path: str, **query: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path, params=query) as response:
            return response.status, await response.json(content_type=None)

    async def state(self, **query: str) -> GatewayState:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with self.session.get(self.url + GATEWAY_ROUTE, params=query, headers=headers) as response:
            assert response.status == 200, await response.text()
            return decode(GatewayState, await response.json())

    async def serving(self, count: int) -> GatewayState:
        """Waits until `count` pods take work."""

        async def enough() -> GatewayState | None:
            state = await self.state()
            return state if sum(backend.healthy for backend in state.backends) == count else None

        return await eventually_async(enough, reason=f"{count} serving pods")


StartGateway = Callable[..., contextlib.AbstractAsyncContextManager[RunningGateway]]


@pytest.fixture
async def pods() -> AsyncIterator[list[FakePod]]:
    made = [FakePod(), FakePod()]
    for pod in made:
        await pod.start()
    yield made
    for pod in made:
        pod.release()
        await pod.stop()


@pytest.fixture
def start_gateway(tmp_path: Path, pods: list[FakePod]) -> StartGateway:
    """Starts a gateway in front of `pods`; options are those of GatewaySettings."""
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)

    @contextlib.asynccontextmanager
    async def start(**options: Any) -> AsyncIterator[RunningGateway]:
        port = unused_port()
        backend = options.pop("backend", ",".join(pod.address for pod in pods))
        settings = GatewaySettings(
            **{"backend": backend, "port": port, "token_file": token_file, "refresh": 0.05, **options}
        )
        runner = web.AppRunner(Gateway(settings).application(), handler_cancellation=True, shutdown_timeout=0.05)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        async with aiohttp.ClientSession() as session:
            try:
                yield RunningGateway(url=f"http://127.0.0.1:{port}", session=session)
            finally:
                await runner.cleanup()

    return start


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> AsyncIterator[RunningGateway]:
    async with start_gateway() as running:
        await running.serving(2)
        yield running
