"""What is trained, as a team sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from tlt_workloads.trainer.progress import TrainingProgress


class StateReplacedError(Exception):
    """This replica was healed in the middle of a step; the gradients it had belong to weights that are gone."""


class TeamLostError(Exception):
    """Others may be training on without us, so that we must not; the window ends."""


class Trainee(Protocol):
    """What is trained, as a team sees it: at a step's boundary, whatever gradients are pending."""

    def standing(self) -> tuple[int, int]:
        """Optimiser steps and trained tokens."""
        ...

    def state(self) -> tuple[TrainingProgress, Mapping[str, torch.Tensor]]:
        """All that another replica needs to be the same."""
        ...

    def adopt(self, progress: TrainingProgress, tensors: Mapping[str, torch.Tensor]) -> None:
        """Becomes the same as another replica."""
        ...
