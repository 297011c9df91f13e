"""A real lighthouse in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

from tests.support.eventually import eventually
from tests.support.programs import ROOT


class Lighthouse:
    """Keeps its port when it is killed and started again."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is, running or not."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Returns once it answers."""
        path = os.pathsep.join([str(ROOT), str(ROOT / "workloads")])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tlt_workloads.trainer.team.lighthouse", "--bind", f"127.0.0.1:{self._port}"],
            env={**os.environ, "PYTHONPATH": path},
        )
        eventually(self._answers, deadline=20.0, reason="a lighthouse that answers")

    def kill(self) -> None:
        """Without any warning."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1.0):
            return True
        return False


@contextlib.contextmanager
def lighthouse() -> Iterator[Lighthouse]:
    """A running one."""
    one = Lighthouse()
    one.start()
    try:
        yield one
    finally:
        one.kill()
