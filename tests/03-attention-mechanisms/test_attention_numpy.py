"""The NumPy attention and its hand-derived gradients, against PyTorch's in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attention_numpy
from attention import MultiHeadAttention, scaled_dot_product_attention
from attention_numpy import (
    NumpyMultiHeadAttention,
    numpy_attention,
    numpy_attention_backward,
    online_attention,
    softmax_backward,
)
from shape_tracer import check_shapes

# (H, G, T, S, K, V): as many queries as keys, fewer, more; grouped, multi-query; odd widths.
SIZES = [(3, 3, 7, 7, 5, 5), (6, 2, 5, 11, 8, 3), (4, 4, 11, 6, 9, 9), (4, 1, 1, 9, 16, 4)]
CLOSE: Any = {"rtol": 1e-10, "atol": 1e-10}


def random_inputs(sizes, seed=0, B=2):
    H, G, T, S, K, V = sizes
    generator = np.random.default_rng(seed)
    shapes = [(B, H, T, K), (B, G, S, K), (B, G, S, V), (B, H, T, V)]
    return [1.5 * generator.standard_normal(shape) for shape in shapes]


def leaves(*arrays):
    return [torch.from_numpy(array).requires_grad_() for array in arrays]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("bias_shape", [None, "full", "head", "key"])
@pytest.mark.parametrize("keep_kind", [None, "random", "padding"])
@pytest.mark.parametrize(("causal", "scale"), [(False, 0.37), (True, None)])
def test_output_and_gradients_equal_autograd(sizes, bias_shape, keep_kind, causal, scale):
    q, k, v, d_out = random_inputs(sizes)
    H, _, T, S, _, _ = sizes
    generator = np.random.default_rng(1)
    shapes = {"full": (2, H, T, S), "head": (H, 1, 1), "key": (1, 1, 1, S)}
    bias = generator.standard_normal(shapes[bias_shape]) if bias_shape else None
    keep = None
    if keep_kind == "random":
        keep = generator.random((2, 1, T, S)) < 0.6
        keep[0, 0, 0] = False  # a row that may attend nowhere
    if keep_kind == "padding":
        keep = (np.arange(S) < np.array([[S], [max(1, S - 3)]]))[:, None, None]

    out, trace = numpy_attention(q, k, v, keep=keep, bias=bias, causal=causal, scale=scale)
    gradients = numpy_attention_backward(trace, d_out)

    tensors = leaves(q, k, v, *([] if bias is None else [bias]))
    expected = scaled_dot_product_attention(
        *tensors[:3],
        keep=None if keep is None else torch.from_numpy(keep),
        bias=None if bias is None else tensors[3],
        causal=causal,
        scale=scale,
    )
    np.testing.assert_allclose(out, expected.detach().numpy(), **CLOSE)
    wanted = torch.autograd.grad(expected, tensors, torch.from_numpy(d_out))
    ours = [gradients.q, gradients.k, gradients.v]
    ours += [] if gradients.bias is None else [gradients.bias]
    for mine, theirs in zip(ours, wanted, strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs.numpy(), **CLOSE)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_layer_equals_pytorch_with_every_gradient(num_heads, num_kv_heads, cross, with_bias):
    torch.manual_seed(2)
    D, d_memory = 12, 7 if cross else 12
    theirs = MultiHeadAttention(
        D, num_heads, num_kv_heads=num_kv_heads, d_memory=d_memory, bias=with_bias
    ).double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    ours = NumpyMultiHeadAttention(state, num_heads, num_kv_heads=num_kv_heads)
    x = torch.randn(2, 5, D, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(2, 8, d_memory, dtype=torch.float64, requires_grad=True) if cross else None
    S = 8 if cross else 5
    bias = torch.randn(num_heads, 5, S, dtype=torch.float64, requires_grad=True)
    keep = torch.rand(2, 1, 5, S) < 0.8
    d_out = torch.randn(2, 5, D, dtype=torch.float64)

    expected = theirs(x, memory, keep=keep, bias=bias, causal=not cross)
    expected.backward(d_out)
    out = ours.forward(
        x.detach().numpy(),
        None if memory is None else memory.detach().numpy(),
        keep=keep.numpy(),
        bias=bias.detach().numpy(),
        causal=not cross,
    )
    d_x, d_memory_, d_bias = ours.backward(d_out.numpy())
    np.testing.assert_allclose(out, expected.detach().numpy(), **CLOSE)
    np.testing.assert_allclose(d_x, x.grad, **CLOSE)  # type: ignore
    np.testing.assert_allclose(d_bias, bias.grad, **CLOSE)  # type: ignore
    if memory is None:
        assert d_memory_ is None
    else:
        np.testing.assert_allclose(d_memory_, memory.grad, **CLOSE)  # type: ignore
    named = dict(theirs.named_parameters())
    assert ours.gradients.keys() == named.keys()
    for name, gradient in ours.gradients.items():
        np.testing.assert_allclose(gradient, named[name].grad, err_msg=name, **CLOSE)  # type: ignore


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 25), st.sampled_from([0.1, 1.0, 50.0]))
def test_blocks_of_any_size_give_full_attention(S, block_size, spread):
    generator = np.random.default_rng(S)
    q, k, v = (generator.standard_normal((2, 2, length, 4)) for length in (3, S, S))
    out, log_sum = online_attention(spread * q, k, v, block_size=block_size)
    expected, trace = numpy_attention(spread * q, k, v)
    np.testing.assert_allclose(out, expected, **CLOSE)
    scores = spread * q @ k.swapaxes(-2, -1) / 2.0
    recomputed = np.exp(scores - log_sum[..., None])
    np.testing.assert_allclose(recomputed, trace.weights, **CLOSE)


def test_softmax_backward_is_the_jacobian_and_sums_to_zero():
    generator = np.random.default_rng(3)
    weights = generator.dirichlet(np.ones(6))
    upstream = generator.standard_normal(6)
    jacobian = np.diag(weights) - np.outer(weights, weights)
    np.testing.assert_allclose(softmax_backward(weights, upstream), jacobian @ upstream, **CLOSE)
    assert softmax_backward(weights, upstream).sum() == pytest.approx(0.0, abs=1e-14)
    assert softmax_backward(np.array([0.5, 0.5]), np.array([1.0, 0.0])).tolist() == [0.25, -0.25]


def test_scores_far_apart_do_not_overflow():
    q, k, v, d_out = random_inputs(SIZES[0])
    out, trace = numpy_attention(1e4 * q, k, v)
    gradients = numpy_attention_backward(trace, d_out)
    assert np.isfinite(out).all()
    assert all(np.isfinite(g).all() for g in (gradients.q, gradients.k, gradients.v))


def test_bad_input_is_refused():
    q, k, v, d_out = random_inputs(SIZES[0])
    with pytest.raises(ValueError, match="each must be"):
        numpy_attention(q[0], k, v)
    with pytest.raises(ValueError, match="heads divide"):
        numpy_attention(q, k[:, :2], v[:, :2])
    with pytest.raises(ValueError, match="all but the width"):
        numpy_attention(q, k, v[:, :, :3])
    with pytest.raises(ValueError, match="does not broadcast"):
        numpy_attention(q, k, v, bias=np.zeros((4, 2, 3, 7, 7)))
    with pytest.raises(ValueError, match=r"keep .* does not broadcast"):
        numpy_attention(q, k, v, keep=np.ones((1, 2, 3, 7, 7), dtype=bool))
    with pytest.raises(ValueError, match="number of keys must be at least 1"):
        numpy_attention(q, k[:, :, :0], v[:, :, :0])
    with pytest.raises(TypeError, match="must be bool"):
        numpy_attention(q, k, v, keep=np.ones((7, 7)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="d_out has shape"):
        numpy_attention_backward(numpy_attention(q, k, v)[1], d_out[:, :, :2])
    with pytest.raises(ValueError, match="at least 1"):
        online_attention(q, k, v, block_size=0)
    state = {f"{n}_proj.weight": np.eye(12) for n in ("q", "k", "v", "out")}
    with pytest.raises(ValueError, match="must divide"):
        NumpyMultiHeadAttention(state, 5)
    with pytest.raises(ValueError, match="must divide"):
        NumpyMultiHeadAttention(state, 4, num_kv_heads=0)
    with pytest.raises(ValueError, match=r"k_proj\.weight has 12 rows; 2 heads of 3 need 6"):
        NumpyMultiHeadAttention(state, 4, num_kv_heads=2)
    with pytest.raises(ValueError, match="does not compute"):
        NumpyMultiHeadAttention({**state, "q_norm.weight": np.ones(3)}, 4)
    with pytest.raises(ValueError, match="lacks the weights of"):
        NumpyMultiHeadAttention({}, 4)
    with pytest.raises(ValueError, match="forward pass before"):
        NumpyMultiHeadAttention(state, 4).backward(np.zeros((1, 2, 12)))
    layer = NumpyMultiHeadAttention(state, 4)
    layer.forward(np.ones((1, 2, 12)))
    layer.backward(np.ones((1, 2, 12)))
    kept = dict(layer.gradients)
    with pytest.raises(ValueError, match=r"d_out has shape \(1, 1, 12\)"):
        layer.backward(np.ones((1, 1, 12)))
    assert layer.gradients == kept, "a refused call leaves the gradients of the last one"


def test_shape_comments():
    functions = (
        numpy_attention,
        numpy_attention_backward,
        online_attention,
        softmax_backward,
        NumpyMultiHeadAttention,
        attention_numpy._split,
        attention_numpy._merge,
        attention_numpy._sum_groups,
    )
    with check_shapes(*functions) as report:
        q, k, v, d_out = random_inputs((6, 2, 5, 11, 8, 3))
        numpy_attention_backward(numpy_attention(q, k, v, causal=True)[1], d_out)
        online_attention(q, k, v, block_size=4)
        layer = MultiHeadAttention(12, 6, num_kv_heads=2).double()
        state = {name: tensor.numpy() for name, tensor in layer.state_dict().items()}
        ours = NumpyMultiHeadAttention(state, 6, num_kv_heads=2)
        ours.backward(ours.forward(np.ones((3, 5, 12))))
    assert report.checked >= 20, report.unchecked
