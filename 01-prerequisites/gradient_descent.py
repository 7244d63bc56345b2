"""Five ways to walk downhill, on NumPy arrays: the optimisers of the README, as short as formulas.

Each keeps a list of arrays and changes them *in place* when `step` is given their gradients; what
it remembers between steps (a velocity, a mean of squares) has the arrays' shapes. They are for
learning and for topic 01's networks. Topic 07 has those that train transformers.

`surfaces` are functions of two numbers on which the paths can be seen, `descend` walks on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


class SGD:
    """θ ← θ - lr · g: plain gradient descent (Cauchy 1847; on random batches, Robbins and Monro
    1951). On a quadratic bowl it converges exactly when lr < 2 / (largest curvature).

    parameters: floating-point arrays, changed in place. Raises ValueError unless lr is positive and
    finite, there is a parameter and all can be written to; TypeError for parameters that are no
    floating-point arrays.
    """

    def __init__(self, parameters: Sequence[NDArray[Any]], *, lr: float) -> None:
        if not 0 < lr < math.inf:
            raise ValueError(f"lr must be positive and finite, got {lr}")
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError("there must be at least one parameter")
        for parameter in self.parameters:
            if not isinstance(parameter, np.ndarray) or parameter.dtype.kind != "f":
                raise TypeError(f"parameters must be floating-point arrays, got {parameter!r}")
            if not parameter.flags.writeable:
                raise ValueError(f"parameters are changed in place, got a read-only {parameter!r}")
        self.lr = lr
        self.steps = 0

    def step(self, gradients: Sequence[NDArray[Any]]) -> None:
        """One update. Raises ValueError unless there is a gradient of each parameter's shape."""
        gradients = [np.asarray(gradient) for gradient in gradients]
        if [g.shape for g in gradients] != [p.shape for p in self.parameters]:
            raise ValueError(
                f"gradients must have shapes {[p.shape for p in self.parameters]}, "
                f"got {[g.shape for g in gradients]}"
            )
        self.steps += 1
        for index, (parameter, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
            parameter -= self.lr * self._direction(index, gradient)

    def _direction(self, index: int, gradient: NDArray[Any]) -> NDArray[Any]:
        """What is subtracted from a parameter, before the learning rate."""
        return gradient

    def _zeros(self) -> list[NDArray[Any]]:
        return [np.zeros_like(parameter) for parameter in self.parameters]


def _share(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}")
    return value


class Momentum(SGD):
    """v ← β v + g; θ ← θ - lr · v: a heavy ball (Polyak 1964). Directions that agree from step to
    step add up to 1 / (1 - β) times the gradient; those that alternate cancel.
    """

    def __init__(
        self, parameters: Sequence[NDArray[Any]], *, lr: float, momentum: float = 0.9
    ) -> None:
        super().__init__(parameters, lr=lr)
        self.momentum = _share("momentum", momentum)
        self.velocity = self._zeros()

    def _direction(self, index: int, gradient: NDArray[Any]) -> NDArray[Any]:
        self.velocity[index] = self.momentum * self.velocity[index] + gradient
        return self.velocity[index]


class Nesterov(Momentum):
    """Momentum that looks ahead: θ ← θ - lr · (g + β v), with v as in `Momentum`.

    Nesterov (1983) takes the gradient where the velocity is about to carry θ. Written in terms of
    the looked-ahead point it becomes this line (Sutskever et al. 2013, section 2), which needs the
    gradient only where θ is.
    """

    def _direction(self, index: int, gradient: NDArray[Any]) -> NDArray[Any]:
        return gradient + self.momentum * super()._direction(index, gradient)


class RMSProp(SGD):
    """s ← ρ s + (1 - ρ) g²; θ ← θ - lr · g / (√s + ε): each number gets its own step size (Hinton
    2012, lecture 6e). A parameter whose gradients are 100 times larger moves no faster for it.
    """

    def __init__(
        self,
        parameters: Sequence[NDArray[Any]],
        *,
        lr: float,
        decay: float = 0.99,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(parameters, lr=lr)
        self.decay, self.eps = _share("decay", decay), _positive_eps(eps)
        self.squares = self._zeros()

    def _direction(self, index: int, gradient: NDArray[Any]) -> NDArray[Any]:
        self.squares[index] = self.decay * self.squares[index] + (1 - self.decay) * gradient**2
        return gradient / (np.sqrt(self.squares[index]) + self.eps)


class Adam(SGD):
    """Momentum over RMSProp, with the bias of the start removed (Kingma and Ba 2015, algorithm 1).

    m ← β₁ m + (1 - β₁) g; s ← β₂ s + (1 - β₂) g²; θ ← θ - lr · m̂ / (√ŝ + ε), where
    m̂ = m / (1 - β₁ᵗ) and ŝ = s / (1 - β₂ᵗ). Both start at 0, so without the division they would
    be too small at first, and not equally so: README, "Why Adam divides by 1 - βᵗ".
    """

    def __init__(
        self,
        parameters: Sequence[NDArray[Any]],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(parameters, lr=lr)
        if len(betas) != 2:
            raise ValueError(f"betas must be two numbers, got {betas}")
        self.betas = (_share("betas[0]", betas[0]), _share("betas[1]", betas[1]))
        self.eps = _positive_eps(eps)
        self.means, self.squares = self._zeros(), self._zeros()

    def _direction(self, index: int, gradient: NDArray[Any]) -> NDArray[Any]:
        first, second = self.betas
        self.means[index] = first * self.means[index] + (1 - first) * gradient
        self.squares[index] = second * self.squares[index] + (1 - second) * gradient**2
        mean = self.means[index] / (1 - first**self.steps)
        square = self.squares[index] / (1 - second**self.steps)
        return mean / (np.sqrt(square) + self.eps)


def _positive_eps(eps: float) -> float:
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    return eps


# --- surfaces to walk on -------------------------------------------------------------------------

Point = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A function of two numbers.

    value: (..., 2) -> (...). gradient: (2,) -> (2,). start, minimum: (2,). extent: the rectangle
    worth drawing, (left, right, bottom, top).
    """

    name: str
    value: Callable[[Point], Any]
    gradient: Callable[[Point], Point]
    start: tuple[float, float]
    minimum: tuple[float, float]
    extent: tuple[float, float, float, float]


def quadratic_bowl(condition: float) -> Surface:
    """f(x, y) = (x² + κ y²) / 2: a ravine κ times as steep across as along.

    Its Hessian is diag(1, κ), so everything about descent on it is known: README, "How far one
    may step". Raises ValueError unless 1 <= κ < ∞.
    """
    if not 1 <= condition < math.inf:
        raise ValueError(f"condition must be at least 1 and finite, got {condition}")
    curvature = np.array([1.0, condition])
    return Surface(
        name=f"ravine, κ = {condition:g}",
        value=lambda p: 0.5 * (curvature * np.asarray(p) ** 2).sum(axis=-1),
        gradient=lambda p: curvature * p,
        start=(-4.0, 1.0),
        minimum=(0.0, 0.0),
        extent=(-4.5, 1.5, -1.5, 1.5),
    )


def rosenbrock() -> Surface:
    """f(x, y) = (1 - x)² + 100 (y - x²)²: a curved valley with a flat floor (Rosenbrock 1960)."""

    def gradient(p: Point) -> Point:
        x, y = p
        return np.array([-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)])

    return Surface(
        name="Rosenbrock's valley",
        value=lambda p: (1 - p[..., 0]) ** 2 + 100 * (p[..., 1] - p[..., 0] ** 2) ** 2,
        gradient=gradient,
        start=(-1.2, 1.0),
        minimum=(1.0, 1.0),
        extent=(-1.6, 1.6, -0.6, 1.8),
    )


def saddle() -> Surface:
    """f(x, y) = x² / 2 + y⁴ / 4 - y² / 2: a saddle at the origin, minima at (0, ±1).

    The start lies almost on the ridge, where the gradient points at the saddle.
    """
    return Surface(
        name="saddle",
        value=lambda p: 0.5 * p[..., 0] ** 2 + 0.25 * p[..., 1] ** 4 - 0.5 * p[..., 1] ** 2,
        gradient=lambda p: np.array([p[0], p[1] ** 3 - p[1]]),
        start=(-2.0, 1e-3),
        minimum=(0.0, 1.0),
        extent=(-2.3, 0.8, -0.4, 1.5),
    )


def descend(
    make_optimizer: Callable[[list[Point]], SGD], surface: Surface, *, steps: int
) -> NDArray[np.float64]:
    """Walk `steps` steps from the surface's start: the path (steps + 1, 2), the start included.

    make_optimizer: given the list with the one point, returns the optimiser that moves it. A walk
    that diverges ends in infinities, silently. Raises ValueError for negative steps.
    """
    if steps < 0:
        raise ValueError(f"steps must not be negative, got {steps}")
    point = np.array(surface.start)
    optimizer = make_optimizer([point])
    path = [point.copy()]
    with np.errstate(all="ignore"):
        for _ in range(steps):
            optimizer.step([surface.gradient(point)])
            path.append(point.copy())
    return np.array(path)


def steps_to_reach(path: NDArray[Any], surface: Surface, tolerance: float = 1e-2) -> int | None:
    """The first step from which the path stays within `tolerance` of the minimum; None if never.

    path: (steps + 1, 2).
    """
    with np.errstate(over="ignore", invalid="ignore"):  # of a walk that diverged
        distance = np.linalg.norm(path - np.array(surface.minimum), axis=-1)  # (steps + 1,)
    outside = np.flatnonzero(~(distance <= tolerance))
    first = int(outside[-1]) + 1 if outside.size else 0
    return first if first < len(path) else None
