"""Times of many kinds of steps on a machine whose pace changes: both are learnt, each from the other.

A machine that is shared or runs into its power limit makes all steps longer for a while.  Kinds that were timed while
it was fast would look better than the one in use.  So the logarithm of a time is taken as the sum of the machine's
pace, which wanders, and of what the kind takes, which hardly does, and a Kalman filter keeps both with their
covariance: steps of a kind that was timed often tell the pace, a new kind is measured at the pace that others tell, and
two kinds are compared by what was seen around the change from one to the other.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Generic, TypeVar

import numpy as np

Kind = TypeVar("Kind", bound=Hashable)

WANDER = 0.01  # of the pace from step to step, relative
AGEING = 7e-4  # the same of what a kind takes
UNKNOWN = 1.0  # of what a kind takes that was never timed
SHORTEST = 1e-6  # seconds
STALL = 3.0  # standard deviations beyond which a time counts no more


class PacedTimes(Generic[Kind]):
    """Step times (s) by kind at the usual pace, which is that of the first steps."""

    def __init__(self) -> None:
        self._places: dict[Kind, int] = {}
        self._mean = np.zeros(1)  # the pace, then kinds in order; all logarithms
        self._covariance = np.zeros((1, 1))

    def __contains__(self, kind: Kind) -> bool:
        return kind in self._places

    @property
    def pace(self) -> float:
        """How many times as long as usual a step takes just now, of whatever kind."""
        return math.exp(self._mean[0])

    def seconds(self, kind: Kind) -> float:
        """What a step of this kind takes at the usual pace.

        Raises:
            KeyError: it was never timed.
        """
        return math.exp(self._mean[self._places[kind]])

    def note(self, kind: Kind, seconds: float, *, noise: float) -> None:
        """A step.

        Args:
            kind: of the step.
            seconds: that it took.
            noise: standard deviation of such times at one pace, relative.
        """
        seen = math.log(max(seconds, SHORTEST))
        place = self._place(kind, seen)
        np.fill_diagonal(self._covariance, self._covariance.diagonal() + AGEING**2)
        self._covariance[0, 0] += WANDER**2 - AGEING**2
        spread = self._covariance[0] + self._covariance[place]
        deviation = math.sqrt(spread[0] + spread[place] + noise**2)
        surprise = seen - self._mean[0] - self._mean[place]
        gain = spread / deviation**2
        self._mean += gain * max(-STALL * deviation, min(STALL * deviation, surprise))
        self._covariance -= np.outer(gain, spread)

    def _place(self, kind: Kind, seen: float) -> int:
        if kind not in self._places:
            place = self._places[kind] = len(self._mean)
            self._mean = np.append(self._mean, seen - self._mean[0])
            self._covariance = np.pad(self._covariance, (0, 1))
            self._covariance[place, place] = UNKNOWN**2
        return self._places[kind]
