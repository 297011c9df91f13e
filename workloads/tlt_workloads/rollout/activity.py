"""When this pod is idle, and how long it was busy, idle and lent.

Pure: the clock is an argument.  In doubt a pod is not idle: one that is paused or takes new weights counts as busy.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ActivityClock:
    """Accounts for every second since `started_at`; call `pass_time` before reading, every change does so itself."""

    started_at: float
    idle_after: float = 0.5
    in_flight: int = 0  # requests between arrival and last byte
    paused: bool = False
    updating: bool = False
    lent: bool = False
    requests: int = 0
    failed: int = 0
    aborted: int = 0
    busy_seconds: float = 0.0
    idle_seconds: float = 0.0
    lent_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._at = self.started_at
        self._quiet_since: float | None = self.started_at

    @property
    def quiet(self) -> bool:
        """Nothing in flight, not paused, no weight update; true also before `idle_after` has passed."""
        return self.in_flight == 0 and not self.paused and not self.updating

    def idle_for(self, now: float) -> float:
        """Seconds since the pod fell quiet, 0 while it is not idle."""
        return now - self._quiet_since if self._quiet_since is not None and self.is_idle(now) else 0.0

    def is_idle(self, now: float) -> bool:
        """Quiet for at least `idle_after`."""
        # Compared against the same sum that `next_edge` hands out, so that a timer set for the edge sees it.
        return self._quiet_since is not None and now >= self._quiet_since + self.idle_after

    def next_edge(self, now: float) -> float | None:
        """When the pod becomes idle if nothing happens; None when it is idle already or busy."""
        if self._quiet_since is None or self.is_idle(now):
            return None
        return self._quiet_since + self.idle_after

    def arrive(self, now: float) -> None:
        """A generation request came in."""
        self.pass_time(now)
        self.in_flight += 1
        self.requests += 1
        self._note_quiet(now)

    def depart(self, now: float, *, failed: bool = False, aborted: bool = False) -> None:
        """A generation request got its last byte, failed, or its caller went away."""
        self.pass_time(now)
        self.in_flight -= 1
        self.failed += failed
        self.aborted += aborted
        self._note_quiet(now)

    def set_paused(self, paused: bool, *, now: float) -> None:
        """The engine was paused or resumed."""
        self.pass_time(now)
        self.paused = paused
        self._note_quiet(now)

    def set_updating(self, updating: bool, *, now: float) -> None:
        """A weight update began or ended."""
        self.pass_time(now)
        self.updating = updating
        self._note_quiet(now)

    def set_lent(self, lent: bool, *, now: float) -> None:
        """The GPU was lent or given back."""
        self.pass_time(now)
        self.lent = lent

    def pass_time(self, now: float) -> None:
        """Books the time since the last change."""
        passed = max(0.0, now - self._at)
        self._at = max(self._at, now)
        if not self.quiet:
            self.busy_seconds += passed
            return
        self.idle_seconds += passed
        if self.lent:
            self.lent_seconds += passed

    def _note_quiet(self, now: float) -> None:
        if not self.quiet:
            self._quiet_since = None
        elif self._quiet_since is None:
            self._quiet_since = now
