"""A worker that does not care to be asked."""

from __future__ import annotations

import signal
import time
from multiprocessing.connection import Connection

from tlt_workloads.trainer.window import WorkerReady


def ignore_termination(messages: Connection) -> None:
    """Says that it is ready and then ignores SIGTERM for good."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    messages.send(WorkerReady())
    while True:
        time.sleep(60)
