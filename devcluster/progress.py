"""What the user sees while something takes long: name, elapsed and expected time."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

SECONDS_BETWEEN_LINES = 15.0
"""How often running work is named again; a terminal is not needed, so that logs of automated runs read the same."""


def say(line: str) -> None:
    """Print one line of progress on standard error, so that standard output carries results only."""
    print(line, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Minutes and seconds.

    >>> clock(83.4)
    '1:23'
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Progress:
    """Names the jobs that run, every few seconds, until it is left. Jobs may run in several threads."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    @contextmanager
    def job(self, name: str, *, expected_seconds: float) -> Iterator[None]:
        """Show `name` as running while the block runs."""
        began = time.monotonic()
        with self._lock:
            self._running[name] = (began, expected_seconds)
        say(f"  {name}: started, about {clock(expected_seconds)}")
        try:
            yield
        except BaseException:
            say(f"  {name}: FAILED after {clock(time.monotonic() - began)}")
            raise
        else:
            say(f"  {name}: done in {clock(time.monotonic() - began)}")
        finally:
            with self._lock:
                del self._running[name]

    def _repeat(self) -> None:
        while not self._stopped.wait(SECONDS_BETWEEN_LINES):
            now = time.monotonic()
            with self._lock:
                running = [
                    f"{name} {clock(now - began)} of about {clock(expected)}"
                    for name, (began, expected) in self._running.items()
                ]
            if running:
                say(f"  ... {', '.join(running)}")
