"""How long to wait before the next try, in every loop that speaks to the API server or to pods.

The cap on what may pass by itself is low, so that an operator is itself again seconds after an outage; the spread keeps
many jobs from trying in step (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tlt_operator.errors import FinalError, OverloadedError

LONGEST = 10.0  # seconds between two tries of what may pass by itself
LONGEST_FINAL = 60.0  # seconds between two tries of what needs a person or another object first
SPREAD = 0.2  # waits are this share longer or shorter, by chance


def wait_after(error: Exception | None, *, failures: int, first: float) -> float:
    """Seconds to wait after so many failures in a row: `first` doubled with each, never less than asked for."""
    longest = LONGEST_FINAL if isinstance(error, FinalError) else LONGEST
    wait = min(longest, first * 2.0 ** min(failures - 1, 10)) * random.uniform(1 - SPREAD, 1 + SPREAD)  # noqa: S311
    return max(wait, error.after) if isinstance(error, OverloadedError) else wait


@dataclass(kw_only=True)
class Backoff:
    """The waits of one loop; `first` is the shortest, in seconds."""

    first: float
    failures: int = 0

    def next(self, error: Exception | None = None) -> float:
        """Counts a failure and tells how long to wait."""
        self.failures += 1
        return wait_after(error, failures=self.failures, first=self.first)

    def reset(self) -> None:
        """The last try went well."""
        self.failures = 0
