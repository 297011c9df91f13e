"""`/healthz` and `/readyz` for the kubelet, answered from the loop that does the work, so that a stuck loop shows."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web


class Probes:
    """`trouble` names what hangs (empty when healthy); `ready` says whether events arrive."""

    def __init__(self, *, trouble: Callable[[], str], ready: Callable[[], bool]) -> None:
        self._trouble = trouble
        self._ready = ready
        self._runner: web.AppRunner | None = None

    async def start(self, port: int) -> None:
        """Serves on all addresses of the pod."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, port=port).start()

    async def stop(self) -> None:
        """Serves no more."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        trouble = self._trouble()
        return web.Response(status=500 if trouble else 200, text=trouble or "ok")

    async def _readyz(self, _: web.Request) -> web.Response:
        ready = self._ready()
        return web.Response(status=200 if ready else 503, text="ok" if ready else "no events yet")
