"""Waiting that can be left at once: nothing in here holds on to a device that is wanted back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

LOOK = 0.01  # s between looks at the wish to stop
Result = TypeVar("Result")


class Waiting:
    """How the training thread waits for others."""

    def __init__(self, check: Callable[[], None]) -> None:
        """Takes what raises when nothing should be waited for any more."""
        self.check = check

    def pause(self) -> None:
        """For a moment."""
        self.check()
        time.sleep(LOOK)

    def aside(self, work: Callable[[], Result]) -> Result:
        """Does in another thread what may block, and waits for it as long as nobody wants us to stop.

        Raises what the work does, or what `check` does; the work is left to itself then.
        """
        done, results, failures = threading.Event(), [], []

        def run() -> None:
            try:
                results.append(work())
            except Exception as error:  # noqa: BLE001 - raised below, in the thread that asked
                failures.append(error)
            done.set()

        threading.Thread(target=run, name="team", daemon=True).start()
        while not done.wait(LOOK):
            self.check()
        if failures:
            raise failures[0]
        return results[0]
