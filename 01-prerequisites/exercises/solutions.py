"""Solutions of topic 01's exercises, and why they are what they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from digits_data import load_digit_images, minibatches
from gradient_descent import Adam

Array = NDArray[np.float64]


def log_mean_exp(x: Array) -> Array:
    """Subtract the largest and add it again: the largest exponential is then e^0 = 1, so nothing
    overflows, and the sum is at least 1, so its logarithm is harmless.
    """
    largest = x.max(axis=-1, keepdims=True)
    largest = np.where(np.isfinite(largest), largest, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(x - largest).mean(axis=-1)) + largest[..., 0]


def undo_broadcast(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Broadcasting copies, and the transpose of copying is adding up."""
    new = gradient.ndim - len(shape)
    stretched = tuple(axis + new for axis, size in enumerate(shape) if size == 1)
    return gradient.sum(axis=(*range(new), *stretched), keepdims=True).reshape(shape)


# w·x + b = 2 - 2 + 0.5 = 0.5 and p = σ(0.5) = 0.6225. The loss's slope at the sum is p - 1, the
# two-class form of "predicted minus true"; times x for the weights, times 1 for the bias.
_P = 1 / (1 + math.exp(-0.5))
NEURON_LOSS = -math.log(_P)
NEURON_DW = (2 * (_P - 1), 1 * (_P - 1))
NEURON_DB = _P - 1

# 1/2 · 1 + 1/4 · 2 + 1/8 · 3 + 1/8 · 3; and KL(source ‖ uniform) = 2 bits - 1.75 bits: what is
# true stands first, the code that was built for another truth second.
ENTROPY_BITS = 1.75
WASTE_BITS = 0.25


def softmax_backward(p: Array, gradient: Array) -> Array:
    """Σ_i g_i p_i ([i = j] - p_j) = p_j (g_j - Σ_i g_i p_i): the Jacobian is a diagonal less an
    outer product, and both can be applied without being written down.
    """
    return p * (gradient - (gradient * p).sum(axis=-1, keepdims=True))


class Scalar:
    """As in exercises.py."""

    def __init__(self, value: float, sources: Sequence[tuple[Scalar, float]] = ()) -> None:
        self.value, self.sources, self.grad = value, sources, 0.0

    def __add__(self, other: Scalar) -> Scalar:
        return Scalar(self.value + other.value, [(self, 1.0), (other, 1.0)])

    def __mul__(self, other: Scalar) -> Scalar:
        return Scalar(self.value * other.value, [(self, other.value), (other, self.value)])


def backward(output: Scalar) -> None:
    """`=` forgot all messages but the last; `+=` alone is not enough, because a number that is
    passed on before all its messages arrived sends them twice. In this order each number is
    complete when its turn comes, and has one turn.
    """
    order: list[Scalar] = []
    seen: set[int] = set()

    def visit(number: Scalar) -> None:
        if id(number) not in seen:
            seen.add(id(number))
            for source, _ in number.sources:
                visit(source)
            order.append(number)

    visit(output)
    output.grad = 1.0
    for number in reversed(order):
        for source, slope in number.sources:
            source.grad += slope * number.grad


def adam_path(gradient: Callable[[Array], Array], start: Array, *, lr: float, steps: int) -> Array:
    """The square was not corrected: at first it is 1000 times too small, its root stands below the
    line, and the first step was √1000 = 32 times too long. The list held one array many times,
    changed in place, so the path was its end over and over. And the start was cut off.
    """
    theta = start.copy()
    mean, square = np.zeros_like(theta), np.zeros_like(theta)
    path = [theta.copy()]
    for t in range(1, steps + 1):
        g = gradient(theta)
        mean = 0.9 * mean + 0.1 * g
        square = 0.999 * square + 0.001 * g**2
        theta -= lr * (mean / (1 - 0.9**t)) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
        path.append(theta.copy())
    return np.array(path)


# H's eigenvalues are 4 (along (1, 1)) and 2: lr < 2 / 4.
LARGEST_LR = 0.5
# fp16 has 11 significant bits. After 2048 the spacing is 2, and 2049 is a tie that goes to even.
FP16_STOPS_AT = 2048.0
# v converges to 1 / (1 - 0.95) = 20.
MOMENTUM_STRIDE = 2.0
# ReLU keeps half of the mean square; with variance 1/fan_in nothing makes up for it: √(1/2)^19.
SHRINKAGE = 0.5 ** (19 / 2)


def mlp_gradients(
    W1: Array, b1: Array, W2: Array, b2: Array, x: Array, y: NDArray[np.int64]
) -> tuple[float, Array, Array, Array, Array]:
    """Each layer receives dL/d(its output), turns it into its parameters' gradients with what it
    read, and hands dL/d(its input) down.
    """
    h = np.tanh(x @ W1 + b1)  # (N, F)
    z = h @ W2 + b2  # (N, V)
    z = z - z.max(axis=1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    rows = np.arange(len(x))
    delta = np.exp(log_p)
    delta[rows, y] -= 1.0
    delta /= len(x)  # dL/dz, (N, V)
    below = delta @ W2.T * (1 - h**2)  # (N, F)
    return (
        float(-log_p[rows, y].mean()),
        x.T @ below,
        below.sum(axis=0),
        h.T @ delta,
        delta.sum(axis=0),
    )


def layer_norm_backward(x: Array, gradient: Array, eps: float) -> Array:
    """What the norm removes on the way forward (the mean, the length) cannot be steered, so its
    gradient is removed on the way back: the part along 1 and the part along the output.
    """
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    n = centred / scale
    mean = gradient.mean(axis=-1, keepdims=True)
    return (gradient - mean - n * (gradient * n).mean(axis=-1, keepdims=True)) / scale


class Dual:
    """a + a'ε with ε² = 0: a value and its derivative in one direction."""

    def __init__(self, value: float, slope: float = 0.0) -> None:
        self.value, self.slope = value, slope

    @staticmethod
    def of(x: Dual | float) -> Dual:
        return x if isinstance(x, Dual) else Dual(x)

    def __add__(self, other: Dual | float) -> Dual:
        b = Dual.of(other)
        return Dual(self.value + b.value, self.slope + b.slope)

    def __mul__(self, other: Dual | float) -> Dual:
        b = Dual.of(other)
        return Dual(self.value * b.value, self.slope * b.value + self.value * b.slope)

    def __truediv__(self, other: Dual | float) -> Dual:
        b = Dual.of(other)
        value = self.value / b.value
        return Dual(value, (self.slope - value * b.slope) / b.value)

    def __pow__(self, exponent: int) -> Dual:
        return Dual(self.value**exponent, exponent * self.value ** (exponent - 1) * self.slope)

    def __neg__(self) -> Dual:
        return self * -1.0

    def __sub__(self, other: Dual | float) -> Dual:
        return self + -Dual.of(other)

    def __rsub__(self, other: float) -> Dual:
        return Dual(other) - self

    def __rtruediv__(self, other: float) -> Dual:
        return Dual(other) / self

    __radd__ = __add__
    __rmul__ = __mul__


def directional_derivative(
    function: Callable[[list], object], x: Sequence[float], direction: Sequence[float]
) -> float:
    """The chain rule from the inputs on: no memory, but one pass for each direction. A network
    has one loss and millions of parameters, so the other order wins by a factor of millions.
    """
    inputs = [Dual(value, slope) for value, slope in zip(x, direction, strict=True)]
    return Dual.of(function(inputs)).slope  # type: ignore[arg-type]


def digit_reader(seed: int) -> Callable[[Array], NDArray[np.int64]]:
    """Exercise 8, repeated. The falling rate lets the noise of the batches average out."""
    digits = load_digit_images(seed=seed)
    rng = np.random.default_rng(seed)
    W1, b1 = rng.normal(size=(64, 100)) / 8.0, np.zeros(100)
    W2, b2 = rng.normal(size=(100, 10)) / 10.0, np.zeros(10)
    parameters, steps = [W1, b1, W2, b2], 800
    optimizer = Adam(parameters, lr=3e-3)
    batches = minibatches(digits.train_x, digits.train_y, batch_size=64, seed=seed)
    for number, (x, y) in zip(range(steps), batches, strict=False):
        optimizer.lr = 3e-3 * (1 - number / steps)
        optimizer.step(mlp_gradients(W1, b1, W2, b2, x, y)[1:])
    return lambda x: (np.tanh(x @ W1 + b1) @ W2 + b2).argmax(axis=1)
