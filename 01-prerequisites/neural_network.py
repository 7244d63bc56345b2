"""One multilayer perceptron, three times: by hand, on our engine, and in PyTorch.

All three hold the same weights, compute the same logits and, from them, the same loss. They differ
in where the gradients come from: `HandMLP` has every one written out as the README derives it,
`EngineMLP` asks `autograd_engine`, `TorchMLP` asks PyTorch. Given the same batches and optimiser
they stay equal, step after step.

    layer ℓ:  a_ℓ = h_{ℓ-1} W_ℓ + b_ℓ,   h_ℓ = φ(a_ℓ),   logits = a_L   (no φ after the last)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import numerics
from autograd_engine import Variable
from gradient_descent import SGD

Initialisation = Literal["he", "xavier", "zeros", "tiny", "huge"]
Nonlinearity = Literal["relu", "tanh"]
Gradients = list[NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """Sizes of the layers, from inputs to classes, and how they begin.

    initialisation: the variance of a weight is 2 / fan_in for "he" (He et al. 2015, equation 10),
    2 / (fan_in + fan_out) for "xavier" (Glorot and Bengio 2010, equation 12), 0 for "zeros", and
    for "tiny" and "huge" that of "he" over or times 16, which is how it fails. Biases are 0.

    Raises ValueError for fewer than two sizes, a size below 1, or an unknown name.
    """

    sizes: tuple[int, ...]
    nonlinearity: Nonlinearity = "relu"
    initialisation: Initialisation = "he"

    def __post_init__(self) -> None:
        if not all(isinstance(size, int) for size in self.sizes):
            raise TypeError(f"sizes must be whole numbers, got {self.sizes}")
        if len(self.sizes) < 2 or min(self.sizes) < 1:
            raise ValueError(f"sizes must be two or more positive numbers, got {self.sizes}")
        if self.nonlinearity not in ("relu", "tanh"):
            raise ValueError(f"nonlinearity must be relu or tanh, got {self.nonlinearity!r}")
        if self.initialisation not in ("he", "xavier", "zeros", "tiny", "huge"):
            raise ValueError(f"unknown initialisation {self.initialisation!r}")

    @property
    def num_parameters(self) -> int:
        """Σ (fan_in + 1) · fan_out: a weight for each pair and a bias for each output."""
        pairs = zip(self.sizes[:-1], self.sizes[1:], strict=True)
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairs)


def initial_parameters(config: MLPConfig, seed: int) -> list[NDArray[np.float64]]:
    """[W_1, b_1, W_2, b_2, …]: W_ℓ (fan_in, fan_out), b_ℓ (fan_out,), float64."""
    rng = np.random.default_rng(seed)
    parameters = []
    for fan_in, fan_out in zip(config.sizes[:-1], config.sizes[1:], strict=True):
        variance = {
            "he": 2 / fan_in,
            "xavier": 2 / (fan_in + fan_out),
            "zeros": 0.0,
            "tiny": 2 / fan_in / 16,
            "huge": 2 / fan_in * 16,
        }[config.initialisation]
        parameters.append(math.sqrt(variance) * rng.normal(size=(fan_in, fan_out)))
        parameters.append(np.zeros(fan_out))
    return parameters


class Network(Protocol):
    """What the three have in common.

    parameters: arrays in the order of `initial_parameters`, which an optimiser changes in place.
    """

    parameters: list[NDArray[np.float64]]

    def logits(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """x (N, sizes[0]) -> (N, sizes[-1])."""
        ...

    def loss_and_gradients(self, x: NDArray[Any], targets: NDArray[Any]) -> tuple[float, Gradients]:
        """The batch's mean cross-entropy in nats, and its gradient for each parameter.

        x (N, sizes[0]), targets (N,) integers.
        """
        ...


def _check_inputs(x: NDArray[Any], config: MLPConfig) -> None:
    if not isinstance(x, np.ndarray):
        raise TypeError(f"x must be an array, got {type(x).__name__}")
    if x.ndim != 2 or x.shape[1] != config.sizes[0]:
        raise ValueError(f"x must be (N, {config.sizes[0]}), got shape {x.shape}")


def _check_batch(x: NDArray[Any], targets: NDArray[Any], config: MLPConfig) -> None:
    _check_inputs(x, config)
    if not isinstance(targets, np.ndarray) or targets.dtype.kind not in "iu":
        raise TypeError(f"targets must be an array of integers, got {targets!r}")
    if targets.shape != (len(x),) or not len(x):
        raise ValueError(f"one target for each of {len(x)} examples, at least one: {targets.shape}")
    # Every place counts here: -100, which `numerics.cross_entropy` leaves out, is refused as well.
    V = config.sizes[-1]
    if targets.min() < 0 or targets.max() >= V:
        raise ValueError(f"targets must be classes in [0, {V}), got {targets}")


class HandMLP:
    """Forward and backward in NumPy, every gradient written out (README, "Every gradient").

    Raises, as the other two do, ValueError for inputs that do not have the first layer's width,
    for a loss of no examples and for targets that are not one class each; TypeError for x that is
    no array and targets that are no array of integers.
    """

    def __init__(self, config: MLPConfig, *, seed: int = 0) -> None:
        self.config = config
        self.parameters = initial_parameters(config, seed)

    def hidden_states(self, x: NDArray[Any]) -> list[NDArray[np.float64]]:
        """[h_0 = x, h_1, …, h_{L-1}, logits], each (N, its layer's size)."""
        _check_inputs(x, self.config)
        states = [x]
        last = len(self.parameters) - 2
        for layer in range(0, len(self.parameters), 2):
            W, b = self.parameters[layer : layer + 2]
            a = states[-1] @ W + b  # (N, fan_out)
            states.append(a if layer == last else self._bend(a))
        return states

    def logits(self, x: NDArray[Any]) -> NDArray[np.float64]:
        return self.hidden_states(x)[-1]

    def loss_and_gradients(self, x: NDArray[Any], targets: NDArray[Any]) -> tuple[float, Gradients]:
        _check_batch(x, targets, self.config)
        states = self.hidden_states(x)
        loss = float(numerics.cross_entropy(states[-1], targets))
        # From the loss back to the first layer; delta is dL/da of the layer at hand.
        delta = numerics.softmax(states[-1])  # (N, V)
        delta[np.arange(len(x)), targets] -= 1.0
        delta /= len(x)
        gradients: Gradients = []
        for layer in range(len(self.parameters) - 2, -1, -2):
            W, h = self.parameters[layer], states[layer // 2]  # h is what the layer read
            gradients[:0] = [h.T @ delta, delta.sum(axis=0)]  # dW (in, out), db (out,)
            if layer:
                delta = (delta @ W.T) * self._slope(h)  # (N, in): through W, then through φ
        return loss, gradients

    def _bend(self, a: NDArray[Any]) -> NDArray[Any]:
        return np.maximum(a, 0.0) if self.config.nonlinearity == "relu" else np.tanh(a)

    def _slope(self, h: NDArray[Any]) -> NDArray[Any]:
        """φ'(a), from h = φ(a): both nonlinearities allow it, so `a` need not be kept."""
        return (h > 0.0) * 1.0 if self.config.nonlinearity == "relu" else 1.0 - h**2


class EngineMLP:
    """The same network on `autograd_engine`: the forward pass alone is written down."""

    def __init__(self, config: MLPConfig, *, seed: int = 0) -> None:
        self.config = config
        self.variables = [Variable(p, requires_grad=True) for p in initial_parameters(config, seed)]

    @property
    def parameters(self) -> list[NDArray[np.float64]]:
        return [variable.data for variable in self.variables]

    def forward(self, x: NDArray[Any]) -> Variable:
        """x (N, sizes[0]) -> logits (N, sizes[-1])."""
        _check_inputs(x, self.config)
        h = Variable(x)
        last = len(self.variables) - 2
        for layer in range(0, len(self.variables), 2):
            W, b = self.variables[layer : layer + 2]
            h = h @ W + b
            if layer != last:
                h = h.relu() if self.config.nonlinearity == "relu" else h.tanh()
        return h

    def logits(self, x: NDArray[Any]) -> NDArray[np.float64]:
        return self.forward(x).data

    def loss_and_gradients(self, x: NDArray[Any], targets: NDArray[Any]) -> tuple[float, Gradients]:
        _check_batch(x, targets, self.config)
        for variable in self.variables:
            variable.zero_grad()
        loss = self.forward(x).cross_entropy(targets)
        loss.backward()
        return loss.item(), [v.grad if v.grad is not None else v.data * 0 for v in self.variables]


class TorchMLP(torch.nn.Module):
    """The same network in PyTorch, in float64. Its weights are views of `arrays`, so that an
    optimiser for NumPy arrays can train it; `torch.optim` can as well.
    """

    def __init__(self, config: MLPConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        arrays = initial_parameters(config, seed)
        self.weights = torch.nn.ParameterList(torch.from_numpy(array) for array in arrays)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, sizes[0]) -> logits (N, sizes[-1])."""
        last = len(self.weights) - 2
        for layer in range(0, len(self.weights), 2):
            x = x @ self.weights[layer] + self.weights[layer + 1]
            if layer != last:
                x = F.relu(x) if self.config.nonlinearity == "relu" else torch.tanh(x)
        return x


class TorchNetwork:
    """A `TorchMLP` behind the interface of the other two: arrays in, arrays out."""

    def __init__(self, config: MLPConfig, *, seed: int = 0) -> None:
        self.config = config
        self.module = TorchMLP(config, seed=seed)

    @property
    def parameters(self) -> list[NDArray[np.float64]]:
        return [weight.detach().numpy() for weight in self.module.weights]  # the same memory

    def logits(self, x: NDArray[Any]) -> NDArray[np.float64]:
        _check_inputs(x, self.config)
        with torch.no_grad():
            return self.module(torch.from_numpy(x.astype(np.float64, copy=False))).numpy()

    def loss_and_gradients(self, x: NDArray[Any], targets: NDArray[Any]) -> tuple[float, Gradients]:
        _check_batch(x, targets, self.config)
        self.module.zero_grad()
        logits = self.module(torch.from_numpy(x.astype(np.float64, copy=False)))
        loss = F.cross_entropy(logits, torch.from_numpy(targets.astype(np.int64, copy=False)))
        loss.backward()
        return loss.item(), [
            np.zeros(tuple(w.shape)) if w.grad is None else w.grad.numpy()
            for w in self.module.weights
        ]


def gradient_step(
    network: Network, optimizer: SGD
) -> Callable[[tuple[NDArray[Any], NDArray[Any]]], dict[str, float]]:
    """The step that `train_loop.fit` repeats: loss, gradients, update. A batch is (x, targets)."""

    def step(batch: tuple[NDArray[Any], NDArray[Any]]) -> dict[str, float]:
        loss, gradients = network.loss_and_gradients(*batch)
        optimizer.step(gradients)
        return {"loss": loss}

    return step


def accuracy(network: Network, x: NDArray[Any], targets: NDArray[Any]) -> float:
    """The share of examples whose largest logit is the target's, 0 to 1.

    x (N, sizes[0]), targets (N,). Raises ValueError for no examples or targets of another shape.
    """
    if not len(x):
        raise ValueError("accuracy of no examples is undefined")
    if np.shape(targets) != (len(x),):
        raise ValueError(f"targets must be ({len(x)},), got shape {np.shape(targets)}")
    return float((network.logits(x).argmax(axis=1) == targets).mean())


def signal_by_depth(
    config: MLPConfig, x: NDArray[Any], *, seed: int = 0
) -> tuple[Sequence[float], Sequence[float]]:
    """Root mean square of each layer's output in a fresh network, and of the loss's gradient with
    respect to each weight matrix: two lists of len(sizes) - 1 numbers, first layer first.
    """
    network = HandMLP(config, seed=seed)
    targets = np.arange(len(x)) % config.sizes[-1]
    outputs = [float(np.sqrt((h**2).mean())) for h in network.hidden_states(x)[1:]]
    _, gradients = network.loss_and_gradients(x, targets)
    return outputs, [float(np.sqrt((g**2).mean())) for g in gradients[::2]]
