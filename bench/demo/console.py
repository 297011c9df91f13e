"""What the user sees: every line with the time since the start, long work with elapsed and expected time."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

REMINDER_SECONDS = 30.0


class StageError(Exception):
    """A stage failed: what happened, what to do about it, and the evidence (the end of a log)."""

    def __init__(self, message: str, *, advice: str, evidence: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
        self.evidence = evidence

    @property
    def told(self) -> str:
        """All of it, for a person."""
        return f"{self.message}\n{self.evidence}\nWhat to do: {self.advice}"


class Console:
    """Prints lines from several threads, one at a time."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """One line, with minutes and seconds since the start."""
        with self._lock:
            print(f"[{clock(time.monotonic() - self.began):>6}] {text}", flush=True)

    @contextlib.contextmanager
    def stage(
        self, name: str, *, expected: float, from_nothing: float | None = None, log: Path | None = None
    ) -> Iterator[None]:
        """Shows a stage while it runs.

        Args:
            name: for the user.
            expected: seconds.
            from_nothing: seconds when nothing is there yet that later runs reuse.
            log: its last line says how far the stage is.
        """
        began = time.monotonic()
        over = threading.Event()

        def remind() -> None:
            while not over.wait(REMINDER_SECONDS):
                elapsed = time.monotonic() - began
                limit = from_nothing if from_nothing is not None and elapsed > expected else expected
                self.say(f"{name}: {clock(elapsed)} of about {clock(limit)}{last_line(log)}")

        first_time = f", {clock(from_nothing)} the first time" if from_nothing is not None else ""
        self.say(f"{name} (about {clock(expected)}{first_time})")
        reminder = threading.Thread(target=remind, daemon=True)
        reminder.start()
        try:
            yield
        except BaseException:
            self.say(f"{name}: FAILED after {clock(time.monotonic() - began)}")
            raise
        finally:
            over.set()
            reminder.join()
        self.say(f"{name}: done in {clock(time.monotonic() - began)}")


def last_line(log: Path | None) -> str:
    """The end of a log, ready to stand behind a colon; empty when there is none."""
    if log is None or not log.exists():
        return ""
    lines = log.read_text(errors="replace").split("\n")
    return next((f": {line.strip(' .')}" for line in reversed(lines) if line.strip()), "")


def clock(seconds: float) -> str:
    """Minutes and seconds.

    >>> clock(83.4)
    '1:23'
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def run_logged(
    command: Sequence[str], *, log: Path, folder: Path, advice: str, environment: Mapping[str, str] | None = None
) -> None:
    """Runs a command with its output in a log.

    Raises:
        StageError: it failed; the evidence is the log's end.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        answer = subprocess.run(
            list(command), cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env=dict(environment) if environment is not None else None, check=False,
        )  # fmt: skip
    if answer.returncode != 0:
        raise StageError(
            f"`{' '.join(command)}` ended with {answer.returncode}", advice=advice, evidence=tail(log.read_text())
        )


def tail(text: str, *, lines: int = 25) -> str:
    """The last lines of a text."""
    return "\n".join(text.splitlines()[-lines:])
