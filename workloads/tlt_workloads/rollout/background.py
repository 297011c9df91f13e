"""Threads of the engine's process whose work can wait for the engine's own."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable

LOW_PRIORITY = 10  # nice value: a tenth of a core against one busy thread


def background_thread(work: Callable[[], None], *, name: str) -> threading.Thread:
    """A daemon thread, not yet started, that gives way to the others where cores are short.

    A decode step on a CPU uses all cores, and takes half as long again while a drafter is read and hashed beside it.
    Threads that `work` starts inherit the priority.

    Args:
        work: what it does.
        name: of the thread.
    """

    def run() -> None:
        if sys.platform == "linux":  # elsewhere priorities belong to whole processes
            with contextlib.suppress(OSError):  # a sandbox may forbid it; then it is a thread like the others
                own = threading.get_native_id()
                # A server that was started at a lower priority yet keeps it.
                os.setpriority(os.PRIO_PROCESS, own, max(LOW_PRIORITY, os.getpriority(os.PRIO_PROCESS, own)))
        work()

    return threading.Thread(target=run, name=name, daemon=True)
