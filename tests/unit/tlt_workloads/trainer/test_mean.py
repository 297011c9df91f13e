"""The mean of the weights: nearer to what is learnt than the weights themselves, and kept like all other state."""

from __future__ import annotations

import torch

from tlt_workloads.trainer.mean import MEMORY, WeightMean

TRUTH = torch.linspace(-1.0, 1.0, 500)


def weights(value: torch.Tensor) -> dict[str, torch.nn.Parameter]:
    return {"matrix": torch.nn.Parameter(value.clone())}


def set_to(parameters: dict[str, torch.nn.Parameter], value: torch.Tensor) -> None:
    with torch.no_grad():
        parameters["matrix"].copy_(value)


def test_before_any_step_it_is_the_weights() -> None:
    assert torch.equal(WeightMean(weights(TRUTH)).tensors["matrix"], TRUTH)


def test_it_is_much_nearer_to_what_the_weights_wander_around() -> None:
    torch.manual_seed(3)
    parameters = weights(TRUTH)
    mean = WeightMean(parameters)
    for step in range(1, 301):
        set_to(parameters, TRUTH + 0.1 * torch.randn(500))
        mean.note_step(step)
    assert (mean.tensors["matrix"] - TRUTH).norm() < 0.15 * (parameters["matrix"] - TRUTH).norm()


def test_it_soon_forgets_where_it_began() -> None:
    parameters = weights(torch.full((4,), 100.0))
    mean = WeightMean(parameters)
    set_to(parameters, torch.zeros(4))
    for step in range(1, 41):
        mean.note_step(step)
    assert 100.0 * MEMORY**40 > 60.0
    assert float(mean.tensors["matrix"].max()) < 1e-3


def test_what_was_kept_goes_on_as_if_nothing_had_happened() -> None:
    torch.manual_seed(5)
    course = [torch.randn(8) for _ in range(20)]
    parameters = weights(course[0])
    mean = WeightMean(parameters)
    for step, value in enumerate(course[1:11], start=1):
        set_to(parameters, value)
        mean.note_step(step)
    later = weights(course[10])
    resumed = WeightMean(later)
    resumed.restore({name: tensor.clone() for name, tensor in mean.tensors.items()})
    for step, value in enumerate(course[11:], start=11):
        for one, its in ((parameters, mean), (later, resumed)):
            set_to(one, value)
            its.note_step(step)
    assert torch.equal(mean.tensors["matrix"], resumed.tensors["matrix"])


def test_a_state_without_one_begins_at_its_weights() -> None:
    parameters = weights(torch.zeros(4))
    mean = WeightMean(parameters)
    set_to(parameters, torch.ones(4))
    mean.restore({})
    assert torch.equal(mean.tensors["matrix"], torch.ones(4))
