"""One drafter being trained: micro-steps, the optimiser, and the state that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from speculators.models.eagle3 import Eagle3DraftModel

from tlt_workloads.trainer.data import TrainingBatch
from tlt_workloads.trainer.draft_pass import DraftPass
from tlt_workloads.trainer.mean import WeightMean
from tlt_workloads.trainer.model import Objective, draft_loss, own_parameters, trainable_tensors
from tlt_workloads.trainer.packing import PackedBatch

_MOMENTS = ("exp_avg", "exp_avg_sq")
_MEAN = "mean."
_VOCABULARY = ("d2t", "t2d")

# Makes gradients that are sums over our own positions into sums over everybody's, and tells how many these are.
Gather = Callable[[Sequence[torch.nn.Parameter], Sequence[TrainingBatch]], int]


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """AdamW over float32 weights; the rate rises over `warmup_steps` and then stays, for nobody knows the end."""

    learning_rate: float
    warmup_steps: int = 10
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    gradient_norm: float = 1.0
    step_tokens: int = 100  # trained positions of one optimiser step, at least


class Learner:
    """A drafter and its optimiser.

    Gradients of micro-steps add up, each weighted by the positions it trained, until a step's worth of them is there.
    """

    def __init__(
        self,
        model: Eagle3DraftModel,
        *,
        objective: Objective,
        settings: OptimiserSettings,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Args:
        model: to train.
        objective: what to minimise.
        settings: of the optimiser.
        check: called inside micro-steps beside the hooks of `on_every_operation`; raises to leave one.
        """
        self.model = model
        self.objective = objective
        self.steps = 0
        self._first_step = 0  # steps before are of other weights
        self._settings = settings
        self._parameters = trainable_tensors(model)
        self._mean = WeightMean(self._parameters)
        self._optimiser = torch.optim.AdamW(
            self._parameters.values(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._pass = (
            DraftPass(
                model,
                draft_length=objective.draft_length,
                loss=objective.loss,
                step_decay=objective.step_decay,
                check=check,
            )
            if model.device.type == "cpu"
            else None
        )
        self._batches: list[TrainingBatch] = []
        self._positions = 0

    @property
    def is_between_steps(self) -> bool:
        """Whether no gradient waits to be applied."""
        return not self._batches

    def micro_step(self, batch: TrainingBatch) -> float:
        """Adds a batch's gradient and returns its mean loss.

        Raises:
            StepAbandonedError: asked to stop half-way; the gradients since the last step are dropped.
        """
        positions = batch.packed.trained_tokens
        try:
            loss = self._loss(batch.packed)
            (loss * positions).backward()  # type: ignore[no-untyped-call]
        except BaseException:
            self._drop_gradients()
            raise
        self._batches.append(batch)
        self._positions += positions
        return float(loss.detach())

    def step_if_due(self, gather: Gather | None = None) -> list[TrainingBatch]:
        """Applies the gradients when enough positions are in them; returns the batches that now count as trained.

        Args:
            gather: brings other replicas' gradients into ours; what it raises leaves everything as it was.
        """
        if self._positions < self._settings.step_tokens:
            return []
        positions = self._positions if gather is None else gather([*self._parameters.values()], self._batches)
        gradients = [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) / positions
        torch._foreach_mul_(gradients, min(1.0, self._settings.gradient_norm / (norm + 1e-6)) / positions)
        self.steps += 1
        for group in self._optimiser.param_groups:
            group["lr"] = self._settings.learning_rate * min(
                1.0, (self.steps - self._first_step) / self._settings.warmup_steps
            )
        self._optimiser.step()
        self._mean.note_step(self.steps - self._first_step)
        applied = self._batches
        self._drop_gradients()
        return applied

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that a checkpoint must hold: weights, their mean, moments, vocabulary."""
        state = {f"model.{name}": parameter.detach() for name, parameter in own_parameters(self.model).items()}
        state |= {f"{_MEAN}{name}": tensor for name, tensor in self._mean.tensors.items()}
        for name, parameter in self._parameters.items():
            for moment in _MOMENTS:
                if moment in self._optimiser.state[parameter]:
                    state[f"{moment}.{name}"] = self._optimiser.state[parameter][moment]
        return state | {f"model.{name}": tensor for name, tensor in self._vocabulary().items()}

    def mean_tensors(self) -> dict[str, torch.Tensor]:
        """The drafter with the mean of its weights, by the names in a drafter file; good until the next step."""
        own = {name: parameter.detach() for name, parameter in own_parameters(self.model).items()}
        return own | dict(self._mean.tensors) | self._vocabulary()

    def optimiser_state(self) -> dict[str, Any]:
        """The optimiser's state as torch writes it."""
        state: dict[str, Any] = self._optimiser.state_dict()
        return state

    def restore(self, tensors: Mapping[str, torch.Tensor], *, steps: int, first_step: int = 0) -> None:
        """Puts optimiser and mean where the checkpoint left them; they are of the steps after `first_step`."""
        self.steps, self._first_step = steps, first_step
        for name, parameter in self._parameters.items():
            if f"exp_avg.{name}" in tensors:
                self._optimiser.state[parameter] = {
                    "step": torch.tensor(float(steps - first_step), device=parameter.device),
                    **{moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in _MOMENTS},
                }
        means = {name[len(_MEAN) :]: tensor for name, tensor in tensors.items() if name.startswith(_MEAN)}
        self._mean.restore(means)

    def forget(self) -> None:
        """Lets go of all tensors; the learner is of no use afterwards."""
        self._pass = None
        self._mean.forget()
        self._optimiser.state.clear()
        for parameter in self.model.parameters():
            parameter.grad = None
            parameter.data = torch.empty(0, dtype=parameter.dtype)
        for _, buffer in self.model.named_buffers():
            buffer.data = torch.empty(0, dtype=buffer.dtype)

    def _vocabulary(self) -> dict[str, torch.Tensor]:
        return {name: getattr(self.model, name) for name in _VOCABULARY if name in self.model._buffers}

    def _loss(self, batch: PackedBatch) -> torch.Tensor:
        if self._pass is not None:
            return self._pass(batch)
        device = self.model.device
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):  # as speculators' own trainer
            return draft_loss(self.model, batch.to(device), self.objective)

    def _drop_gradients(self) -> None:
        self._optimiser.zero_grad(set_to_none=True)
        self._batches, self._positions = [], 0
