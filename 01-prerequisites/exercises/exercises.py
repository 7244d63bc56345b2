"""Exercises of topic 01, in order of difficulty. Grade yourself:

    pytest 01-prerequisites/exercises

Replace each `raise NotImplementedError` by your answer, and each `...` by a number. What you leave
untouched counts as not attempted. Hints stand at the end of the docstrings, the gentlest first;
read one, try again, then read the next. `solutions.py` explains why, not only what.

Letters: N examples, D width, V classes. All arrays are NumPy's, float64 unless a line says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# 1 · implement ------------------------------------------------------------------------------------


def log_mean_exp(x: Array) -> Array:
    """ln of the mean of e^x over the last axis, for numbers of any size.

    log_mean_exp([1000, 1000]) is 1000, and [-1000, -1000] gives -1000. A row of -inf gives -inf.

    Args: x (..., D). Returns: (...).

    Hints: (a) README, "Floating point": what may be subtracted from every x? (b) What must be
    added again? (c) -inf - (-inf) is NaN: subtract 0 where the largest is -inf.
    """
    raise NotImplementedError


# 2 · implement ------------------------------------------------------------------------------------


def undo_broadcast(gradient: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of an array of `shape` that was broadcast to the gradient's shape.

    Args: gradient, of a shape that `shape` broadcasts to. Returns: `shape`.

    Hints: (a) A number that was used in five places receives five messages. (b) Axes that were
    not there are summed away; axes of size 1 are summed and kept. (c) Shapes are aligned at the
    right.
    """
    raise NotImplementedError


# 3 · derive ---------------------------------------------------------------------------------------

# One neuron with a logistic output, p = σ(w·x + b), w = (1, -2), b = 0.5, x = (2, 1), and the loss
# -ln p, because the answer was "yes". On paper, to four digits:

NEURON_LOSS: float = ...  # type: ignore[assignment]
NEURON_DW: tuple[float, float] = ...  # type: ignore[assignment]  # dL/dw
NEURON_DB: float = ...  # type: ignore[assignment]  # dL/db

# A source emits four letters with probabilities 1/2, 1/4, 1/8, 1/8.
ENTROPY_BITS: float = ...  # type: ignore[assignment]
WASTE_BITS: float = ...  # type: ignore[assignment]  # bits a letter lost by a code for four equally
# likely letters: a KL divergence; of which two distributions, in which order?


# 4 · implement ------------------------------------------------------------------------------------


def softmax_backward(p: Array, gradient: Array) -> Array:
    """From dL/dp to dL/dz, where p = softmax(z) over the last axis; without the (D, D) Jacobian.

    Args: p (..., D), gradient (..., D). Returns: (..., D).

    Hints: (a) dp_i/dz_j = p_i ([i = j] - p_j). (b) Sum over i: two terms. (c) The second is one
    number for each row.
    """
    raise NotImplementedError


# 5 · debug ----------------------------------------------------------------------------------------


class Scalar:
    """A number that remembers: (source, local slope) for each number that it was made from."""

    def __init__(self, value: float, sources: Sequence[tuple[Scalar, float]] = ()) -> None:
        self.value, self.sources, self.grad = value, sources, 0.0

    def __add__(self, other: Scalar) -> Scalar:
        return Scalar(self.value + other.value, [(self, 1.0), (other, 1.0)])

    def __mul__(self, other: Scalar) -> Scalar:
        return Scalar(self.value * other.value, [(self, other.value), (other, self.value)])


def backward(output: Scalar) -> None:
    """Fill in `grad` of everything that the output was made from.

    It is right for trees and wrong as soon as a number is used twice. There are two bugs; mending
    one is not enough. Remove the first line.

    Hints: (a) Try y = x + x, then y = (x * x) * (x * x). (b) A number that is used twice is
    visited twice: when is its gradient complete? (c) Order all numbers so that each comes after
    all that were made from it, then visit each once.
    """
    raise NotImplementedError  # remove this line
    output.grad = 1.0
    waiting = [output]
    while waiting:
        number = waiting.pop()
        for source, slope in number.sources:
            source.grad = slope * number.grad
            waiting.append(source)


# 6 · debug ----------------------------------------------------------------------------------------


def adam_path(gradient: Callable[[Array], Array], start: Array, *, lr: float, steps: int) -> Array:
    """Adam's path (steps + 1, D) with betas (0.9, 0.999), eps 1e-8, from start (D,).

    It runs and it goes downhill. It has three bugs. Mend them and remove the first line.

    Hints: (a) What is the first step's length? It should be lr in every coordinate. (b) How many
    points must the path have, and which is the first? (c) Look at what the list holds when the
    loop has ended.
    """
    raise NotImplementedError  # remove this line
    theta = start.copy()
    mean, square = np.zeros_like(theta), np.zeros_like(theta)
    path = [theta]
    for t in range(1, steps + 1):
        g = gradient(theta)
        mean = 0.9 * mean + 0.1 * g
        square = 0.999 * square + 0.001 * g**2
        corrected = mean / (1 - 0.9**t)
        theta -= lr * corrected / (np.sqrt(square) + 1e-8)
        path.append(theta)
    return np.array(path)[1:]


# 7 · predict --------------------------------------------------------------------------------------

# Commit to a number before you run anything.
# f(x) = xᵀ H x / 2 with H = [[3, 1], [1, 3]]: below which learning rate does descent converge?
LARGEST_LR: float = ...  # type: ignore[assignment]
# Add 1.0 to a total kept in fp16, over and over, from 0. Where does it stop?
FP16_STOPS_AT: float = ...  # type: ignore[assignment]
# The gradient is 1 at every step, momentum 0.95, lr 0.1: how far does each step go, in the end?
MOMENTUM_STRIDE: float = ...  # type: ignore[assignment]
# A 20-layer ReLU network whose weights have variance 1 / fan_in, not 2 / fan_in: the root mean
# square of its last layer's output is that of the first times what? (To within a factor of 1.5.)
SHRINKAGE: float = ...  # type: ignore[assignment]  # over 19 further layers


# 8 · implement ------------------------------------------------------------------------------------


def mlp_gradients(
    W1: Array, b1: Array, W2: Array, b2: Array, x: Array, y: NDArray[np.int64]
) -> tuple[float, Array, Array, Array, Array]:
    """Loss and all four gradients of logits = tanh(x W1 + b1) W2 + b2 with mean cross-entropy.

    Args: W1 (D, F), b1 (F,), W2 (F, V), b2 (V,), x (N, D), y (N,). By hand: no autograd.
    Returns: loss, dW1, db1, dW2, db2.

    Hints: (a) README, "Every gradient", has all four. (b) Begin with (softmax - onehot) / N.
    (c) The shape of each gradient is its parameter's; there is one product that gives it.
    """
    raise NotImplementedError


# 9 · implement ------------------------------------------------------------------------------------


def layer_norm_backward(x: Array, gradient: Array, eps: float) -> Array:
    """dL/dx of y = (x - mean) / sqrt(var + eps) over the last axis, from dL/dy.

    Args: x (..., D), gradient (..., D). Returns: (..., D).

    Hints: (a) Mean and variance depend on every x: three paths lead back. (b) With n for the
    output and s for the root: dx = (g - mean(g) - n · mean(g n)) / s. (c) Derive it once.
    """
    raise NotImplementedError


# 10 · extend --------------------------------------------------------------------------------------


def directional_derivative(
    function: Callable[[list], object], x: Sequence[float], direction: Sequence[float]
) -> float:
    """d/dt f(x + t v) at t = 0, exactly, in *one* evaluation of f and without any graph.

    This is forward mode: every number carries its own derivative along, (a + a'ε) with ε² = 0.
    Write a class for such numbers with +, -, *, / (also with plain numbers on either side) and
    integer powers; call f with a list of them.

    Args: function, made of those operations alone; x, direction: (D,).

    Hints: (a) (a + a'ε)(b + b'ε) = ab + (a'b + ab')ε. (b) `__radd__`, `__rsub__`, … serve the
    numbers on the left. (c) One pass gives one direction; D of them would give the gradient. That
    is why training goes backwards.
    """
    raise NotImplementedError


# 11 · extend --------------------------------------------------------------------------------------


def digit_reader(seed: int) -> Callable[[Array], NDArray[np.int64]]:
    """Train a network on `load_digit_images(seed=seed)`'s training images; return what reads new
    ones: images (N, 64) -> classes (N,).

    The bar: 97 % of the test images, on average over three seeds, in under a minute, with
    gradients that you wrote (exercise 8) or that `autograd_engine` computes; not torch's, and
    without the test images.

    Hints: (a) One hidden layer of about a hundred is enough. (b) Adam at 2e-3 with batches of 64;
    a rate that falls to 0 helps. (c) Some twenty epochs.
    """
    raise NotImplementedError
