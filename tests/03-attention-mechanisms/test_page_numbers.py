"""The numbers that topic 03's README works out on the page, computed again."""

from __future__ import annotations

import math

import numpy as np
import pytest

from attention_costs import attention_flops, projection_flops, weights_bytes
from attention_numpy import numpy_attention, numpy_attention_backward

Q = np.array([2.0, 2, 0, 0])[None, None, None]
KEYS = np.array([[1.0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 1, 0]])[None, None]
VALUES = np.array([[10.0], [20], [30]])[None, None]


def near(numbers, tolerance=6e-4):
    return pytest.approx(numbers, abs=tolerance)


def test_the_lookup_worked_by_hand():
    out, trace = numpy_attention(Q, KEYS, VALUES)
    assert math.exp(2) + math.exp(1) + 1 == near(11.107)
    assert trace.weights[0, 0, 0] == near([0.665, 0.245, 0.090])
    assert out.item() == near(14.248)
    assert (trace.weights[0, 0, 0] * VALUES[0, 0, :, 0]) == near([6.652, 4.895, 2.701])
    unscaled = numpy_attention(Q, KEYS, VALUES, scale=1.0)[1].weights[0, 0, 0]
    assert unscaled == near([0.867, 0.117, 0.016])


def test_its_gradients():
    out, trace = numpy_attention(Q, KEYS, VALUES, bias=np.zeros((1, 1, 1, 3)))
    gradients = numpy_attention_backward(trace, np.ones_like(out))
    assert gradients.bias is not None
    assert gradients.bias[0, 0, 0] == near([-2.826, 1.408, 1.418])
    assert gradients.bias.sum() == near(0.0, 1e-12)
    assert gradients.q[0, 0, 0] == near([-0.709, -1.413, 0.709, 0.704])
    assert gradients.k[0, 0, 0] == near([-2.826, -2.826, 0, 0])
    assert gradients.v[0, 0, :, 0] == near(trace.weights[0, 0, 0])


def test_the_online_softmax_by_hand():
    total, mixed = 1.0, 30.0
    total, mixed = total * math.exp(-1) + 1, mixed * math.exp(-1) + 20
    assert (total, mixed) == (near(1.368), near(31.036))
    total, mixed = total * math.exp(-1) + 1, mixed * math.exp(-1) + 10
    assert (total, mixed) == (near(1.503), near(21.418))
    assert mixed / total == near(14.248)


def test_the_mean_in_the_softmaxs_gradient_is_the_output_times_its_gradient():
    generator = np.random.default_rng(0)
    q, k, v, d_out = (generator.standard_normal((1, 2, 5, 4)) for _ in range(4))
    out, trace = numpy_attention(q, k, v)
    d_weights = d_out @ v.swapaxes(-2, -1)
    np.testing.assert_allclose(
        (trace.weights * d_weights).sum(-1), (d_out * out).sum(-1), atol=1e-12
    )


def test_table_of_shapes_and_the_crossing():
    B, T, D, H, K = 1, 1024, 768, 12, 64
    assert T * D == 786_432
    assert weights_bytes(B, H, T, T) == 12_582_912 * 4 == 48 * 2**20
    assert 4 * D * D == 2_359_296
    assert projection_flops(B, T, D) == 8 * B * T * D**2
    assert attention_flops(B, H, T, T, K) == 4 * B * T * T * D
    assert attention_flops(B, H, 2 * D, 2 * D, K) == projection_flops(B, 2 * D, D)
    assert 2 * math.log(64) == near(8.3, 0.05)
    assert 64 * 65 // 2 == 2080
    assert 8 * 64 - 28 == 484
