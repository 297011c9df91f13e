"""When to stop.

While there is something to keep, SIGTERM only sets a flag, and the work looks at the flag where it can leave with its
state whole.  While there is nothing to keep, SIGTERM ends the process as it does by default: at once, and in the middle
of whatever it reads or computes.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class StepAbandonedError(Exception):
    """A micro-step was left half-way because the device is wanted back; weights and optimiser are untouched."""


class StopFlag:
    """Set once by SIGTERM, read between and inside micro-steps."""

    def __init__(self) -> None:
        self.is_set = False

    def listen(self) -> None:
        """Lets SIGTERM set the flag in this process; interrupts of the terminal are the parent's business."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    @contextlib.contextmanager
    def nothing_to_lose(self) -> Iterator[None]:
        """Lets SIGTERM end the process meanwhile.

        Raises:
            StepAbandonedError: the flag is set already.
        """
        # A signal that came before this call has set the flag when it returns.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            self.abandon_step()
            yield
        finally:
            self.listen()

    def set(self) -> None:
        """Asks to stop."""
        self.is_set = True

    def abandon_step(self) -> None:
        """Leaves the micro-step when the flag is set.

        Raises:
            StepAbandonedError: the flag is set.
        """
        if self.is_set:
            raise StepAbandonedError

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.is_set = True
