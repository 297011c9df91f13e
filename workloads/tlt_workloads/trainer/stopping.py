"""When to stop.  A signal only sets a flag; the work looks at the flag where it can leave with its state whole."""

from __future__ import annotations

import signal
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
