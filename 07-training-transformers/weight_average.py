"""An average of the weights that a run has passed through, often better than the last of them.

The optimiser's steps are noisy and the weights circle around a good place; their average is nearer
to its middle (Polyak and Juditsky 1992). README: "Averaging weights".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn


class WeightAverage:
    """Exponential average of parameters, average += (1 - d) * (weight - average) after each step.

    d rises to `decay` as (1 + n) / (10 + n) over the first n updates, so that the random
    initial weights are soon forgotten (as in TensorFlow's `ExponentialMovingAverage`).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters: list[torch.Tensor] = list(parameters)
        self.decay, self.updates = decay, 0
        self.averages = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.averages, self.parameters, 1.0 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within this context the model's weights are the averages; no tensor is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for number, parameter in enumerate(self.parameters):
            self.averages[number], parameter.data = parameter.data, self.averages[number]

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "averages": list(self.averages)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for average, saved in zip(self.averages, state["averages"], strict=True):
            average.copy_(saved)
