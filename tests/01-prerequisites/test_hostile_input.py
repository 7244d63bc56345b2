"""What a caller may get wrong in topic 01's modules: each mistake is named, and nothing is lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import numerics
from autograd_engine import Variable
from digits_data import load_digit_images
from floating_point import (
    FP16,
    FloatFormat,
    compensated_sum,
    running_sum,
    stable_roots,
    textbook_variance,
    two_pass_variance,
)
from gradient_descent import SGD, Adam, quadratic_bowl
from lab import interval
from linear_algebra import matmul_by_loops, power_iteration
from neural_network import EngineMLP, HandMLP, MLPConfig, TorchNetwork, accuracy

NETWORKS = (HandMLP, EngineMLP, TorchNetwork)
CONFIG = MLPConfig(sizes=(2, 3, 128))  # more classes than 100: index -100 would exist
X = np.ones((2, 2))

BAD = {
    "softmax of nothing": (lambda: numerics.softmax(np.zeros((2, 0))), ValueError, "no number"),
    "softmax of no tensor": (lambda: numerics.softmax(torch.zeros(2, 0)), ValueError, "no number"),
    "softmax of None": (lambda: numerics.softmax(None), TypeError, "real numbers"),  # type: ignore[type-var]
    "softmax of words": (lambda: numerics.softmax(np.array(["1"])), TypeError, "real numbers"),
    "complex": (lambda: numerics.softmax(np.array([1j])), TypeError, "real numbers"),
    "complex tensor": (lambda: numerics.softmax(torch.tensor([1j])), TypeError, "real numbers"),
    "entropy of NaN": (lambda: numerics.entropy(np.array([np.nan, 1.0])), ValueError, "sum to 1"),
    "loss of lists": (lambda: numerics.cross_entropy([[0.0]], [0]), TypeError, "both be arrays"),  # type: ignore[type-var]
    "mean of nothing": (lambda: Variable(np.zeros((0, 3))).mean(), ValueError, "no numbers"),
    "variance of nothing": (lambda: Variable(np.zeros((0, 3))).var(), ValueError, "no numbers"),
    "axis of a join": (lambda: Variable.concatenate([Variable([1.0])], 3), ValueError, "axis 3"),
    "join of scalars": (lambda: Variable.concatenate([Variable(1.0)]), ValueError, "axis 0"),
    "wide format": (
        lambda: FloatFormat(name="", exponent_bits=20, mantissa_bits=3), ValueError, "2 to 10",
    ),
    "integers": (lambda: two_pass_variance(np.array([1, 2])), TypeError, "floating-point array"),
    "a list": (lambda: textbook_variance([1.0, 2.0]), TypeError, "floating-point array"),  # type: ignore[arg-type]
    "roots too large": (lambda: stable_roots(1.0, 1e25, 1.0), ValueError, "within float32"),
    "no steps": (lambda: power_iteration(np.eye(2), steps=0), ValueError, "at least 1"),
    "no matrix": (lambda: power_iteration(np.zeros((0, 0))), ValueError, "symmetric"),
    "ragged": (lambda: matmul_by_loops([[1, 2], [3]], [[1], [2]]), ValueError, "one length"),
    "infinite lr": (lambda: SGD([np.zeros(2)], lr=np.inf), ValueError, "positive and finite"),
    "one beta": (lambda: Adam([np.zeros(2)], betas=(0.9,)), ValueError, "two numbers"),  # type: ignore[arg-type]
    "infinite ravine": (lambda: quadratic_bowl(np.inf), ValueError, "finite"),
    "no test image": (lambda: load_digit_images(test_share=1e-6), ValueError, "a side empty"),
    "no training": (lambda: load_digit_images(test_share=0.9999), ValueError, "a side empty"),
    "mask by None": (lambda: Variable([1.0]).masked_fill([True], None), TypeError, "float"),  # type: ignore[arg-type]
    "join of arrays": (lambda: Variable.concatenate([np.ones(2)]), TypeError, "takes Variables"),  # type: ignore[list-item]
    "half an axis": (lambda: Variable([1.0]).sum(axis=0.5), TypeError, "integer"),  # type: ignore[arg-type]
    "half a unit": (lambda: MLPConfig(sizes=(2, 2.5)), TypeError, "whole numbers"),  # type: ignore[arg-type]
    "a diverged seed": (lambda: interval([1.0, np.nan]), ValueError, "finite values"),
    "flat joint": (lambda: numerics.mutual_information([0.5, 0.5]), ValueError, r"\(X, Y\)"),  # type: ignore[type-var]
    "score of a column": (
        lambda: accuracy(HandMLP(CONFIG), X, np.zeros((2, 1))), ValueError, r"must be \(2,\)",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_named(case):
    call, error, words = BAD[case]
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(
    ("x", "targets", "error", "words"),
    [
        (X, np.array([-100, 1]), ValueError, r"classes in \[0, 128\)"),
        (X, np.array([128, 1]), ValueError, r"classes in \[0, 128\)"),
        (X, np.array([1]), ValueError, "one target for each of 2"),
        (X[:0], np.array([], dtype=int), ValueError, "at least one"),
        (X, np.array([1.0, 0.0]), TypeError, "array of integers"),
        (X, [1, 0], TypeError, "array of integers"),
        (X.tolist(), np.array([1, 0]), TypeError, "must be an array"),
    ],
)
def test_networks_refuse_what_they_cannot_learn_from(kind, x, targets, error, words):
    """-100 above all: the loss left it out, and the hand-written gradient took class -100."""
    with pytest.raises(error, match=words):
        kind(CONFIG).loss_and_gradients(x, targets)


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_take_any_real_and_integer_dtype(kind):
    loss, gradients = kind(CONFIG).loss_and_gradients(X, np.array([1, 0]))
    again, same = kind(CONFIG).loss_and_gradients(X.astype(np.float32), np.array([1, 0], np.int32))
    assert again == pytest.approx(loss)
    for a, b in zip(gradients, same, strict=True):
        np.testing.assert_allclose(a, b)


@pytest.mark.parametrize("matrix", [np.array([[0.0, 1.0], [1.0, 0.0]]), np.diag([1.0, -1.0])])
def test_power_iteration_says_when_nothing_wins(matrix):
    """λ and -λ: the vector swings for ever, and its quotient is no eigenvalue."""
    with pytest.raises(ValueError, match="no direction has won"):
        power_iteration(matrix)
    assert power_iteration(2 * np.eye(2))[0] == pytest.approx(2.0)  # equal and of one sign: fine


def test_a_compensated_sum_overflows_as_a_plain_one_does():
    assert compensated_sum([60_000.0] * 3, FP16) == running_sum([60_000.0] * 3, FP16) == np.inf


def test_a_read_only_parameter_is_refused_before_any_step():
    fixed = np.zeros(2)
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        SGD([np.zeros(2), fixed], lr=0.1)


def test_gradients_may_be_lists():
    p = np.zeros(2)
    SGD([p], lr=1.0).step([[1.0, 2.0]])  # type: ignore[list-item]
    assert p.tolist() == [-1.0, -2.0]


def test_a_loss_of_fp32_arrays_is_fp32():
    for reduction in ("mean", "sum", "none"):
        loss = numerics.cross_entropy(
            np.zeros((2, 3), np.float32), np.array([0, 2]), reduction=reduction
        )
        assert loss.dtype == np.float32, reduction


def test_axes_may_be_numpys_integers():
    assert Variable(np.ones((2, 3))).sum(axis=np.int64(1)).shape == (2,)  # type: ignore[arg-type]


def test_the_engine_keeps_fp32():
    x = Variable(np.array([[1.0, -2.0], [3.0, 0.5]], dtype=np.float32), requires_grad=True)
    for result in (
        x.maximum(x * 0.5), x.max(axis=0), x.gelu(), x.gelu("tanh"), x.softmax(), x.layer_norm(),
        x.mean(), x.var(), x.log_sum_exp(), x.sigmoid(), x.abs(), x.relu(), x**2, 1.0 / x,
        x @ x.T, x.embedding([0, 0]), x.cross_entropy([0, 1]), x.masked_fill([True, False], 1.0),
    ):  # fmt: skip
        x.zero_grad()
        result.sum().backward()
        assert x.grad is not None
        assert (result.dtype, x.grad.dtype) == (np.float32, np.float32), result
