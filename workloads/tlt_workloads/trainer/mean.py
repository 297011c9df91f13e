"""The mean of a drafter's weights over its last steps, which is what is judged and published.

With a rate that stays, weights wander around what they have learnt, the further the smaller the batches are.  A rate
that falls would end that, but nobody knows when a window ends.  The mean of the weights on the way comes close to it at
any moment (averaging of iterates, Polyak and Juditsky 1992; for networks arXiv 1803.05407).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

MEMORY = 0.99  # of the mean, that a step leaves: about the last hundred steps count
_EAGER = 9  # of n steps at first about the last n / 9 count, so that it does not remember for long where it began


class WeightMean:
    """Follows the weights of one learner, in float32 and on their device.

    Args:
        parameters: by name; they are the mean until a step has been taken.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        self._parameters = parameters
        self._mean = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The mean, by the parameters' names."""
        return self._mean

    def note_step(self, number: int) -> None:
        """Takes the weights in as they are after this step, the first one being 1."""
        share = max(1 - MEMORY, _EAGER / (_EAGER + 1 + number))
        weights = [parameter.detach() for parameter in self._parameters.values()]
        torch._foreach_lerp_([*self._mean.values()], weights, share)

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Goes on from a mean that was kept; without one it is the weights as they are now."""
        for name, parameter in self._parameters.items():
            self._mean[name].copy_(tensors.get(name, parameter.detach()))

    def forget(self) -> None:
        """Lets go of all tensors."""
        self._mean = {}
