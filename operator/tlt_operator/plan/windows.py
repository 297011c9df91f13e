"""Idle windows: how long pods of this job stay lendable, and what that says about the window that is open now."""

from __future__ import annotations

import enum
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

KEPT = 64  # windows per phase that an expectation is made from
ENOUGH = 3  # fewer past windows than this say nothing


class WindowPhase(enum.StrEnum):
    """In which part of an RL step a window began."""

    TAIL = "Tail"  # other pods of the job still generated
    LEARNER = "Learner"  # nobody generated


@dataclass(frozen=True, kw_only=True)
class OpenWindow:
    """A window that has begun, on the clock of the snapshots."""

    started: float
    phase: WindowPhase


@dataclass(frozen=True, kw_only=True)
class WindowHistory:
    """Open windows by pod uid, and the lengths of the last closed ones in seconds."""

    open: Mapping[str, OpenWindow] = field(default_factory=dict)
    closed: Mapping[WindowPhase, tuple[float, ...]] = field(default_factory=dict)

    def expected_rest(self, uid: str, *, now: float) -> float | None:
        """Median rest of the past windows that lasted longer than this one has; None when too few are known.

        A window that has outlasted all others is like one without history: nothing is known about its rest.
        """
        window = self.open.get(uid)
        if window is None:
            return None
        lengths = self.closed.get(window.phase, ())
        if len(lengths) < ENOUGH:
            return None
        elapsed = now - window.started
        rests = [length - elapsed for length in lengths if length > elapsed]
        return statistics.median(rests) if rests else None


@dataclass(frozen=True, kw_only=True)
class ClosedWindow:
    """A window that ended with this observation."""

    uid: str
    phase: WindowPhase
    seconds: float


def advance(
    history: WindowHistory,
    lendable: Collection[str],
    *,
    phase: WindowPhase,
    now: float,
    lost: Collection[str] = (),
) -> tuple[WindowHistory, tuple[ClosedWindow, ...]]:
    """Opens a window for each pod (uid) that has become lendable, and closes those of pods that are so no more.

    Nobody saw how the windows of `lost` pods ended, so nothing is learned from them.
    """
    opened = {uid: history.open.get(uid) or OpenWindow(started=now, phase=phase) for uid in lendable}
    ended = tuple(
        ClosedWindow(uid=uid, phase=window.phase, seconds=now - window.started)
        for uid, window in history.open.items()
        if uid not in lendable and uid not in lost
    )
    closed = dict(history.closed)
    for window in ended:
        closed[window.phase] = (*closed.get(window.phase, ()), window.seconds)[-KEPT:]
    return WindowHistory(open=opened, closed=closed), ended
