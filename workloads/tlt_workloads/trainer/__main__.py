"""Entry point of a trainer pod: environment -> settings -> supervisor and status server."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

import aiohttp
from aiohttp import web

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
        token = read_token(settings)
    except SettingsError as error:
        logging.getLogger(__name__).error("%s", error)
        return 2
    asyncio.run(serve(settings, token=token))
    return 0


def read_token(settings: TrainerSettings) -> str:
    """The job's bearer token.

    Raises:
        SettingsError: the file is not there or empty.
    """
    try:
        token = settings.token_file.read_text().strip()
    except OSError as error:
        raise SettingsError(f"{settings.token_file}: the token cannot be read: {error.strerror}") from error
    if not token:
        raise SettingsError(f"{settings.token_file}: the token is empty")
    return token


async def serve(settings: TrainerSettings, *, token: str) -> None:
    """Shows the status from the first moment, supervises until asked to end."""
    board = StatusBoard(holder=settings.holder)
    runner = web.AppRunner(status_application(board, token=token), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=settings.port).start()
    try:
        async with aiohttp.ClientSession() as session:
            leases = LeaseClient(session, rollout_url=settings.rollout_url, holder=settings.holder, token=token)
            supervisor = Supervisor(settings, board=board, leases=leases, workshop=Workshop())
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, supervisor.shut_down)
            await supervisor.run()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    sys.exit(main())
