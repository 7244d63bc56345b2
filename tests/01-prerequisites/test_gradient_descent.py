"""The optimisers against torch.optim, and against what theory says of a quadratic bowl."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from expression_graphs import numeric_gradient
from gradient_descent import (
    SGD,
    Adam,
    Momentum,
    Nesterov,
    RMSProp,
    descend,
    quadratic_bowl,
    rosenbrock,
    saddle,
    steps_to_reach,
)

PAIRS = {
    "SGD": (
        lambda p: SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1),
    ),
    "momentum": (
        lambda p: Momentum(p, lr=0.05, momentum=0.8),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8),
    ),
    "Nesterov": (
        lambda p: Nesterov(p, lr=0.05, momentum=0.8),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, nesterov=True),
    ),
    "RMSProp": (
        lambda p: RMSProp(p, lr=0.01, decay=0.9, eps=1e-6),
        lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9, eps=1e-6),
    ),
    "Adam": (
        lambda p: Adam(p, lr=0.02, betas=(0.8, 0.95), eps=1e-6),
        lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.8, 0.95), eps=1e-6),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_steps_equal_torchs(name):
    """Two parameters, fifty steps of random gradients of very different sizes."""
    ours_of, theirs_of = PAIRS[name]
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(3, 4)), rng.normal(size=5)]
    tensors = [torch.tensor(a.copy(), requires_grad=True) for a in arrays]
    ours, theirs = ours_of(arrays), theirs_of(tensors)
    for _ in range(50):
        gradients = [rng.normal(size=a.shape) * 10.0 ** rng.integers(-3, 3) for a in arrays]
        ours.step(gradients)
        for tensor, gradient in zip(tensors, gradients, strict=True):
            tensor.grad = torch.tensor(gradient)
        theirs.step()
        for array, tensor in zip(arrays, tensors, strict=True):
            np.testing.assert_allclose(array, tensor.detach().numpy(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("condition", [2.0, 10.0, 100.0])
def test_descent_converges_exactly_below_two_over_the_largest_curvature(condition):
    surface = quadratic_bowl(condition)
    below = descend(lambda p: SGD(p, lr=1.99 / condition), surface, steps=4000)
    above = descend(lambda p: SGD(p, lr=2.01 / condition), surface, steps=4000)
    assert surface.value(below[-1]) < 1e-10
    assert not surface.value(above[-1]) < 1e10


def test_the_best_rate_shrinks_the_error_by_the_predicted_factor():
    """lr = 2 / (1 + κ) gives (κ - 1) / (κ + 1) a step in both directions."""
    condition = 9.0
    path = descend(lambda p: SGD(p, lr=2 / (1 + condition)), quadratic_bowl(condition), steps=20)
    np.testing.assert_allclose(np.abs(path[1:] / path[:-1]), 0.8, rtol=1e-9)


def test_momentum_turns_the_condition_number_into_its_root():
    """Polyak's rate (√κ - 1) / (√κ + 1), with his lr and momentum, after a long run."""
    condition = 100.0
    root = np.sqrt(condition)
    path = descend(
        lambda p: Momentum(p, lr=(2 / (1 + root)) ** 2, momentum=((root - 1) / (root + 1)) ** 2),
        quadratic_bowl(condition),
        steps=200,
    )
    error = np.linalg.norm(path, axis=1)
    rate = (error[150] / error[50]) ** (1 / 100)
    assert rate == pytest.approx((root - 1) / (root + 1), abs=0.02)


def test_adams_first_step_is_lr_whatever_the_gradient():
    """The README's worked numbers: the bias correction makes m̂ = g and ŝ = g²."""
    for size in (1e-3, 1.0, 1e3):
        point = np.array([1.0])
        Adam([point], lr=0.01).step([np.array([size])])
        assert point[0] == pytest.approx(0.99, abs=1e-6)


@pytest.mark.parametrize("surface", [quadratic_bowl(30.0), rosenbrock(), saddle()])
def test_gradients_of_the_surfaces(surface):
    rng = np.random.default_rng(1)
    for point in rng.normal(size=(5, 2)):
        expected = numeric_gradient(lambda p: float(surface.value(p)), point)
        np.testing.assert_allclose(surface.gradient(point), expected, atol=1e-5)
    np.testing.assert_allclose(surface.gradient(np.array(surface.minimum)), 0.0, atol=1e-12)


def test_steps_to_reach_counts_only_what_stays():
    surface = quadratic_bowl(1.0)
    path = np.array([[1.0, 0], [0, 0], [1, 0], [0, 0], [0.001, 0]])
    assert steps_to_reach(path, surface) == 3
    assert steps_to_reach(path[:3], surface) is None
    assert steps_to_reach(path[1:2], surface) == 0
    assert steps_to_reach(np.array([[0, 0], [np.nan, 0]]), surface) is None


P = [np.zeros(2)]
A_LIST: Any = [[0.0]]
BAD = {
    "lr of zero": (lambda: SGD(P, lr=0), ValueError, "lr must be positive"),
    "nothing to train": (lambda: SGD([], lr=1), ValueError, "at least one"),
    "integers": (lambda: SGD([np.zeros(2, int)], lr=1), TypeError, "floating-point"),
    "a list": (lambda: SGD(A_LIST, lr=1), TypeError, "floating-point"),
    "momentum of one": (lambda: Momentum(P, lr=1, momentum=1), ValueError, "momentum must lie"),
    "decay below zero": (lambda: RMSProp(P, lr=1, decay=-1), ValueError, "decay must lie"),
    "eps": (lambda: RMSProp(P, lr=1, eps=0), ValueError, "eps must be"),
    "betas": (lambda: Adam(P, betas=(0.9, 1.0)), ValueError, r"betas\[1\]"),
    "adam's eps": (lambda: Adam(P, eps=-1), ValueError, "eps must be"),
    "too few gradients": (lambda: SGD(P, lr=1).step([]), ValueError, "shapes"),
    "other shape": (lambda: SGD(P, lr=1).step([np.zeros(3)]), ValueError, "shapes"),
    "condition": (lambda: quadratic_bowl(0.5), ValueError, "condition"),
    "steps": (lambda: descend(lambda p: SGD(p, lr=1), saddle(), steps=-1), ValueError, "steps"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_the_stated_error(case):
    call, error, words = BAD[case]
    with pytest.raises(error, match=words):
        call()
