"""Norms and feed-forward layers against torch.nn and transformers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GemmaConfig, LlamaConfig
from transformers.models.gemma.modeling_gemma import GemmaMLP
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

import sublayers
from shape_tracer import check_shapes
from sublayers import (
    FeedForward,
    GatedFeedForward,
    LayerNorm,
    RMSNorm,
    layer_norm,
    rms_norm,
)

SHAPES = [(2, 3, 7), (5, 3), (33, 64), (2, 9, 3, 20)]


def _vectors(shape, *, seed, dtype=torch.float32):
    """Vectors far from mean 0 and variance 1, which want gradients."""
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(shape, generator=generator) + 1.5
    return x.to(dtype).requires_grad_()


def _gradients(out, inputs):
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    return torch.autograd.grad((out.double() * weight.double()).sum(), inputs, retain_graph=True)


def _assert_same(out, expected, inputs, expected_inputs, *, atol=1e-5):
    torch.testing.assert_close(out, expected, atol=atol, rtol=1e-5)
    ours = _gradients(out, inputs)
    theirs = _gradients(expected, expected_inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=4 * atol, rtol=1e-5)


def _scatter(module):
    """Weights away from their initial ones and zeros, which would hide that they are unused."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


# --- norms ------------------------------------------------------------------------------------


def test_norms_worked_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    torch.testing.assert_close(
        layer_norm(x, None, None, 0.0), torch.tensor([-1.5, -0.5, 0.5, 1.5]) / math.sqrt(1.25)
    )
    torch.testing.assert_close(rms_norm(x, None, 0.0), x / math.sqrt(7.5))
    assert layer_norm(x, None, None, 0.0).tolist() == pytest.approx(
        [-1.342, -0.447, 0.447, 1.342], abs=5e-4
    )
    assert rms_norm(x, None, 0.0).tolist() == pytest.approx([0.365, 0.730, 1.095, 1.461], abs=5e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [1e-5, 0.4])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_equals_pytorch(shape, eps, bias):
    d = shape[-1]
    ours = _scatter(LayerNorm(d, eps=eps, bias=bias))
    theirs = nn.LayerNorm(d, eps=eps, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    x = _vectors(shape, seed=1)
    expected = theirs(x)
    _assert_same(ours(x), expected, [x, *ours.parameters()], [x, *theirs.parameters()])
    written = layer_norm(x, ours.weight, ours.bias, eps)
    _assert_same(written, expected, [x, *ours.parameters()], [x, *theirs.parameters()])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [1e-6, 0.4])
def test_rms_norm_equals_pytorch_and_transformers(shape, eps):
    d = shape[-1]
    ours = _scatter(RMSNorm(d, eps=eps))
    theirs = nn.RMSNorm(d, eps=eps)
    theirs.load_state_dict(ours.state_dict())
    llama = LlamaRMSNorm(d, eps=eps)
    llama.load_state_dict(ours.state_dict())
    x = _vectors(shape, seed=2)
    expected = theirs(x)
    assert isinstance(ours(x), torch.Tensor)
    _assert_same(ours(x), expected, [x, ours.weight], [x, theirs.weight])
    _assert_same(rms_norm(x, ours.weight, eps), expected, [x, ours.weight], [x, theirs.weight])
    _assert_same(ours(x), llama(x), [x, ours.weight], [x, llama.weight])
    with torch.no_grad():  # the other path: no gradient is wanted
        torch.testing.assert_close(ours(x), expected, atol=1e-6, rtol=1e-5)


def test_rms_norm_gradient_by_differences():
    norm = _scatter(RMSNorm(6, eps=0.1)).double()
    x = _vectors((2, 3, 6), seed=3, dtype=torch.float64)

    def apply(y, weight):
        return torch.func.functional_call(norm, {"weight": weight}, (y,))

    assert torch.autograd.gradcheck(apply, (x, norm.weight))


def test_rms_norm_takes_any_layout_and_one_sided_gradients():
    norm = _scatter(RMSNorm(6, eps=0.1))
    x = _vectors((2, 6, 5), seed=4).transpose(1, 2)  # (2, 5, 6), not contiguous
    assert not x.is_contiguous()
    for inputs in ([x, norm.weight], [x], [norm.weight]):
        _assert_same(norm(x), rms_norm(x, norm.weight, 0.1), inputs, inputs)
    frozen = _scatter(RMSNorm(6, eps=0.1)).requires_grad_(False)
    _assert_same(frozen(x), rms_norm(x, frozen.weight, 0.1), [x], [x])
    data = x.detach()
    _assert_same(norm(data), rms_norm(data, norm.weight, 0.1), [norm.weight], [norm.weight])


def test_rms_norm_under_vmap_and_jacobians():
    """The course's causality check takes whole Jacobians, which may run the backward batched."""
    norm = _scatter(RMSNorm(4, eps=0.1))
    x = _vectors((3, 4), seed=5)
    expected = torch.autograd.functional.jacobian(lambda y: rms_norm(y, norm.weight, 0.1), x)
    for vectorize in (False, True):
        ours = torch.autograd.functional.jacobian(norm, x, vectorize=vectorize)
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_accumulate_in_fp32(dtype):
    """A mean of 8,192 large elements is lost in low precision; only the result may be rounded."""
    x = _vectors((3, 8192), seed=6, dtype=dtype)
    rounding = torch.finfo(dtype).eps / 2
    for module, written in (
        (RMSNorm(8192), lambda y: rms_norm(y, None, 1e-6)),
        (LayerNorm(8192), lambda y: layer_norm(y, None, None, 1e-5)),
    ):
        exact = written(x.double())
        for out in (written(x), module.to(dtype)(x)):
            assert out.dtype == dtype
            torch.testing.assert_close(out.double(), exact, atol=1e-4, rtol=1.1 * rounding)


def test_rms_norm_keeps_the_input_type_when_its_weight_is_fp32():
    norm = _scatter(RMSNorm(16))
    x = _vectors((2, 3, 16), seed=7, dtype=torch.bfloat16)
    out = norm(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, rms_norm(x, norm.weight, 1e-6), atol=0.02, rtol=0.01)
    out.sum().backward()
    assert norm.weight.grad is not None
    assert norm.weight.grad.dtype == torch.float32
    with torch.no_grad():
        assert norm(x).dtype == torch.bfloat16


def test_what_norms_do_not_see():
    """Layer norm ignores shift and scale of its input; RMS norm ignores the scale alone."""
    x = _vectors((4, 32), seed=8)
    layer, rms = LayerNorm(32, eps=0.0), RMSNorm(32, eps=0.0)
    torch.testing.assert_close(layer(2.5 * x + 7), layer(x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(rms(2.5 * x), rms(x), atol=1e-6, rtol=1e-5)
    assert (rms(x + 7) - rms(x)).abs().max() > 0.1
    torch.testing.assert_close(rms(x).square().mean(-1), torch.ones(4))


def test_second_derivatives_of_rms_norm_are_refused_not_wrong():
    norm = RMSNorm(4)
    x = _vectors((3, 4), seed=9)
    (slope,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
def test_bad_norms(norm):
    with pytest.raises(ValueError, match="d is 0; it must be at least 1"):
        norm(0)
    with pytest.raises(ValueError, match=r"eps is -1e-06; it must not be negative"):
        norm(4, eps=-1e-6)
    with pytest.raises(ValueError, match="eps is nan"):
        norm(4, eps=float("nan"))


def test_bad_vectors():
    x = _vectors((3, 4), seed=9)
    for one_number in (RMSNorm(1), LayerNorm(1)):
        with pytest.raises((ValueError, RuntimeError), match=r"must be 1|\[\*, 1\]"):
            one_number(x)
    with pytest.raises(ValueError, match=r"weight has shape \(3, 1\); it must be \(4,\)"):
        rms_norm(x, torch.ones(3, 1), 1e-5)
    with pytest.raises(ValueError, match=r"bias has shape \(1,\); it must be \(4,\)"):
        layer_norm(x, None, torch.ones(1), 1e-5)
    for written_out in (rms_norm, lambda x, weight, eps: layer_norm(x, weight, None, eps)):
        with pytest.raises(TypeError, match=r"x has dtype torch\.int64"):
            written_out(torch.arange(4), None, 1e-5)
        with pytest.raises(ValueError, match="eps is -1"):
            written_out(x, None, -1.0)


# --- feed-forward layers ----------------------------------------------------------------------

REFERENCE_ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: (
        0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "relu": lambda x: x.clamp(min=0),
    "relu_squared": lambda x: x.clamp(min=0) ** 2,
    "silu": lambda x: x / (1 + torch.exp(-x)),
}


@pytest.mark.parametrize("activation", REFERENCE_ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_feed_forward_is_its_formula(activation, bias):
    torch.manual_seed(10)
    module = FeedForward(7, 19, activation=activation, bias=bias)
    x = _vectors((2, 5, 7), seed=11)
    hidden = REFERENCE_ACTIVATIONS[activation](F.linear(x, module.up.weight, module.up.bias))
    expected = F.linear(hidden, module.down.weight, module.down.bias)
    inputs = [x, *module.parameters()]
    assert len(inputs) == (5 if bias else 3)
    _assert_same(module(x), expected, inputs, inputs)


@pytest.mark.parametrize("activation", REFERENCE_ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_gated_feed_forward_is_its_formula(activation, bias):
    torch.manual_seed(12)
    module = GatedFeedForward(7, 19, activation=activation, bias=bias)
    x = _vectors((2, 5, 7), seed=13)
    gate = REFERENCE_ACTIVATIONS[activation](F.linear(x, module.gate.weight, module.gate.bias))
    hidden = gate * F.linear(x, module.up.weight, module.up.bias)
    expected = F.linear(hidden, module.down.weight, module.down.bias)
    inputs = [x, *module.parameters()]
    assert len(inputs) == (7 if bias else 4)
    _assert_same(module(x), expected, inputs, inputs)


@pytest.mark.parametrize(
    ("activation", "mlp", "config"),
    [("silu", LlamaMLP, LlamaConfig), ("gelu_tanh", GemmaMLP, GemmaConfig)],
)
def test_gated_feed_forward_equals_transformers(activation, mlp, config):
    torch.manual_seed(14)
    theirs = mlp(config(hidden_size=24, intermediate_size=40, num_attention_heads=4))
    ours = GatedFeedForward(24, 40, activation=activation)
    names = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    state = theirs.state_dict()
    ours.load_state_dict({f"{a}.weight": state[f"{b}.weight"] for a, b in names.items()})
    x = _vectors((2, 9, 24), seed=15)
    pairs = [(getattr(ours, a).weight, getattr(theirs, b).weight) for a, b in names.items()]
    _assert_same(ours(x), theirs(x), [x, *(a for a, _ in pairs)], [x, *(b for _, b in pairs)])


def test_dropout_of_hidden_units():
    torch.manual_seed(16)
    module = FeedForward(4, 4000, activation="relu", dropout=0.25)
    x = torch.randn(1, 4)
    hidden = F.relu(module.up(x))
    with torch.no_grad():
        module.down.weight.fill_(1.0)
        module.down.bias.zero_()
    dropped = module(x.expand(300, 4))[:, 0]
    assert dropped.std() > 0
    mean = hidden.sum().item()
    error = (hidden.square().sum() * 0.25 / 0.75 / 300).sqrt().item()
    assert dropped.mean().item() == pytest.approx(mean, abs=4 * error)
    module.eval()
    torch.testing.assert_close(module(x)[0, 0], hidden.sum())


def test_shape_comments():
    with check_shapes(FeedForward, GatedFeedForward, sublayers._FastRMSNorm) as report:
        FeedForward(6, 11, activation="silu")(torch.randn(2, 3, 6))
        GatedFeedForward(6, 11)(torch.randn(2, 3, 6))
        RMSNorm(6)(torch.randn(2, 3, 6, requires_grad=True)).sum().backward()
    assert report.checked >= 4, report.unchecked


def test_names_in_the_representation():
    assert "activation=gelu_tanh" in repr(FeedForward(2, 3, activation="gelu_tanh"))
    assert "activation=silu" in repr(GatedFeedForward(2, 3))
    assert repr(RMSNorm(3)) == "RMSNorm(3, eps=1e-06)"
    assert repr(LayerNorm(3, bias=False)) == "LayerNorm(3, eps=1e-05, bias=False)"


@pytest.mark.parametrize("layer", [FeedForward, GatedFeedForward])
def test_bad_feed_forwards(layer):
    with pytest.raises(ValueError, match="d_model is 0; it must be at least 1"):
        layer(0, 4)
    with pytest.raises(ValueError, match="d_ff is -1; it must be at least 1"):
        layer(4, -1)
    with pytest.raises(ValueError, match=r"activation is 'swish'; it must be one of \('gelu',"):
        layer(4, 4, activation="swish")
    with pytest.raises(ValueError, match=r"dropout is 1\.0; it must be in \[0, 1\)"):
        FeedForward(4, 4, dropout=1.0)
