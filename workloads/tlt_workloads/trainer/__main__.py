"""Entry point of a trainer pod: environment -> settings -> supervisor and status server."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

import aiohttp
from aiohttp import web

from tlt_workloads.tokens import TokenFile, TokenUnreadableError
from tlt_workloads.trainer.leases import LeaseClient
from tlt_workloads.trainer.settings import SettingsError, TrainerSettings, settings_from_environment
from tlt_workloads.trainer.status import StatusBoard, status_application
from tlt_workloads.trainer.supervisor import Supervisor
from tlt_workloads.trainer.workshop import Workshop


def main() -> int:
    """Runs until SIGTERM; 2 when the settings are wrong."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = settings_from_environment(os.environ)
        tokens = TokenFile(settings.token_file)
        tokens.tokens()  # a pod without one would be of no use, and its end says why
    except (SettingsError, TokenUnreadableError) as error:
        logging.getLogger(__name__).error("%s", error)
        return 2
    asyncio.run(serve(settings, tokens=tokens))
    return 0


async def serve(settings: TrainerSettings, *, tokens: TokenFile) -> None:
    """Shows the status from the first moment, supervises until asked to end."""
    board = StatusBoard(holder=settings.holder)
    runner = web.AppRunner(status_application(board, tokens=tokens), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=settings.port).start()
    try:
        async with aiohttp.ClientSession() as session:
            leases = LeaseClient(session, rollout_url=settings.rollout_url, holder=settings.holder, tokens=tokens)
            supervisor = Supervisor(settings, board=board, leases=leases, workshop=Workshop())
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, supervisor.shut_down)
            await supervisor.run()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    sys.exit(main())
