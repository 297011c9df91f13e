"""Starts the gateway: environment -> settings -> server."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

from aiohttp import web

from tlt_workloads.gateway.server import Gateway
from tlt_workloads.gateway.settings import GatewaySettings, SettingsError, read_settings

SHUTDOWN_SECONDS = 5.0


async def serve(settings: GatewaySettings) -> None:
    """Serves until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # A client that has gone must not leave its completions running on the pods.
    runner = web.AppRunner(
        Gateway(settings).application(), handler_cancellation=True, shutdown_timeout=SHUTDOWN_SECONDS, access_log=None
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, port=settings.port).start()
        logging.info("serving %s on port %d", settings.backend, settings.port)
        await stop.wait()
    finally:
        await runner.cleanup()


def main() -> None:
    """Entry point; exits with 2 when the environment does not make sense."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = read_settings(os.environ)
    except SettingsError as failure:
        sys.exit(f"gateway: {failure}")
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
