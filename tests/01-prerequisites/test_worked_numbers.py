"""The numbers that topic 01's README works out on the page, computed again."""

from __future__ import annotations

import math

import numpy as np
import pytest

from digits_data import load_digit_images, xor_examples
from floating_point import FP16, round_to_format
from linear_algebra import row_major_strides
from neural_network import HandMLP, MLPConfig
from numerics import entropy, kl_divergence, nats_to_bits
from prerequisites_experiments import DEFAULT_FOUNDATIONS


def test_strides_and_eigenvalues():
    assert row_major_strides((2, 3)) == (3, 1)
    A = np.array([[3.0, 1.0], [1.0, 3.0]])
    np.testing.assert_allclose(A @ [1, 1], [4, 4])
    np.testing.assert_allclose(A @ [1, -1], [2, -2])


def test_the_coin():
    coin, fair = np.array([0.9, 0.1]), np.array([0.5, 0.5])
    assert entropy(coin) == pytest.approx(0.325, abs=5e-4)
    assert nats_to_bits(entropy(coin)) == pytest.approx(0.469, abs=5e-4)
    assert nats_to_bits(kl_divergence(coin, fair)) == pytest.approx(0.531, abs=5e-4)


def test_the_graph():
    u = 6 + math.sin(2)
    assert (u, u**2, 2 * u) == pytest.approx((6.909, 47.74, 13.819), abs=5e-3)
    assert 2 * 2 * u == pytest.approx(27.637, abs=5e-4)
    assert 2 * u * (3 + math.cos(2)) == pytest.approx(35.71, abs=5e-3)


def test_the_network():
    network = HandMLP(MLPConfig(sizes=(2, 2, 2)))
    network.parameters[0][:] = [[1, -1], [0.5, 0.25]]
    network.parameters[2][:] = [[0.5, -0.5], [1, 1]]
    x, y = np.array([[1.0, 2.0]]), np.array([1])
    _, h, logits = network.hidden_states(x)
    np.testing.assert_allclose(h, [[2, 0]])
    np.testing.assert_allclose(logits, [[1, -1]])
    loss, (dW1, db1, dW2, db2) = network.loss_and_gradients(x, y)
    assert loss == pytest.approx(2.127, abs=5e-4)
    np.testing.assert_allclose(db2, [0.881, -0.881], atol=5e-4)
    np.testing.assert_allclose(dW2, [[1.762, -1.762], [0, 0]], atol=5e-4)
    np.testing.assert_allclose(db1, [0.881, 0], atol=5e-4)
    np.testing.assert_allclose(dW1, [[0.881, 0], [1.762, 0]], atol=5e-4)
    for parameter, gradient in zip(network.parameters, (dW1, db1, dW2, db2), strict=True):
        parameter -= 0.1 * gradient
    assert network.loss_and_gradients(x, y)[0] == pytest.approx(1.155, abs=5e-4)


def test_rates():
    assert pytest.approx(0.98, abs=5e-4) == 99 / 101
    assert math.log(0.1) / math.log(99 / 101) == pytest.approx(115, abs=0.5)
    assert 0.1 / math.sqrt(0.001) == pytest.approx(3.16, abs=5e-3)


def test_momentum_on_a_bowl():
    """With the page's β and a rate at the edge, κ = 100 shrinks by 0.82 in every direction."""
    root_beta = 9 / 11
    assert root_beta == pytest.approx(0.82, abs=5e-3)
    assert math.log(0.1) / math.log(root_beta) == pytest.approx(11, abs=0.5)
    rate = (1 - root_beta) ** 2  # η λ_min at the lower edge; λ_max = 100 λ_min at the upper
    assert 100 * rate == pytest.approx((1 + root_beta) ** 2)
    for curvature in (rate, 3 * rate, 50 * rate, 100 * rate):
        roots = np.roots([1, -(1 + root_beta**2 - curvature), root_beta**2])
        np.testing.assert_allclose(np.abs(roots), root_beta, rtol=1e-6)


def test_two_neurons_that_solve_xor():
    x, y = xor_examples()
    score = np.maximum(x[:, 0] - x[:, 1], 0) + np.maximum(x[:, 1] - x[:, 0], 0)
    assert score.tolist() == (2.0 * y).tolist()


def test_what_fp16_loses():
    assert round_to_format(2.9e-8, FP16) == 0.0 < round_to_format(3.1e-8, FP16)
    assert FP16.largest == 65_504


def test_the_best_step_of_a_difference():
    assert pytest.approx(5e-6, rel=0.1) == (1e-16) ** (1 / 3)


def test_the_sizes_that_the_page_names():
    scale = DEFAULT_FOUNDATIONS
    assert (scale.comparison_seeds, scale.digit_steps) == (3, 1500)


def test_one_tenth_in_bf16():
    assert pytest.approx(76.8) == 0.6 * 128
    assert (1 + 77 / 128) / 16 == 0.10009765625


def test_overflow_and_spacing():
    with np.errstate(over="ignore"):
        assert np.isinf(np.exp(np.float32(89)))
    assert pytest.approx(0.0078, abs=5e-5) == 2.0**-7


def test_the_cost_table():
    products = [(64, 128), (128, 10)]
    forward = [2 * 64 * i * o for i, o in products]
    assert forward == [1_048_576, 163_840]
    assert forward[0] + forward[0] + 3 * forward[1] == 2_588_672
    assert (64 * 128 + 128) * 8 == 66_560
    assert (128 * 10 + 10) * 8 == 10_320
    assert MLPConfig(sizes=(64, 128, 10)).num_parameters == 9610
    assert pytest.approx(295, abs=0.5) == 989 / 3.35


def test_the_digits():
    split = load_digit_images()
    assert len(split.train_y) + len(split.test_y) == 1797
    assert 100 / len(split.test_y) == pytest.approx(0.3, abs=0.03)
