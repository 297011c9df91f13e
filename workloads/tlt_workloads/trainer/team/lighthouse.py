"""The lighthouse's program: trainers of one job tell it that they are there, and learn of each other.

It keeps nothing, asks nobody and may be restarted at any time.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from tlt_workloads.contract import LIGHTHOUSE_PORT
from tlt_workloads.trainer.team.extension import coordination

HEARTBEAT_LIMIT_MS = 1000  # without a heartbeat for so long a replica is not introduced any more
JOIN_LIMIT_MS = 1000  # the longest that a question waits for others to ask too
TICK_MS = 50


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bind", default=f"[::]:{LIGHTHOUSE_PORT}", help="address to listen at")
    parser.add_argument("--verbose", action="store_true", help="keep torchft's log, several lines for each question")
    chosen = parser.parse_args(arguments)
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # before there are threads, which inherit it
    if not chosen.verbose:
        _silence()
    server = coordination().LighthouseServer(
        bind=chosen.bind,
        min_replicas=1,
        join_timeout_ms=JOIN_LIMIT_MS,
        quorum_tick_ms=TICK_MS,
        heartbeat_timeout_ms=HEARTBEAT_LIMIT_MS,
    )
    print(f"lighthouse at {server.address()}", flush=True)  # noqa: T201 - the program's one line
    signal.sigwait(ends)
    return 0


def _silence() -> None:
    """torchft logs to the standard error from Rust, and has no switch for it."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stderr.fileno())
    os.close(nothing)


if __name__ == "__main__":
    sys.exit(main())
