"""Norms and feed-forward layers: what a block has besides attention.

`layer_norm` and `rms_norm` are the definitions, written out; `LayerNorm` and `RMSNorm` are the
modules, which give the same numbers through the fastest kernel there is. `FeedForward` is the
two-layer network of 2017 and `GatedFeedForward` the gated one of today's models.

Letters: D model width, F feed-forward width, N all leading positions together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["gelu", "gelu_tanh", "relu", "relu_squared", "silu"]


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Shift each vector to mean 0, scale it to variance 1, then apply weight and bias.

    Ba et al. 2016: y = (x - mean) / √(variance + eps) · weight + bias, the variance being the
    mean square deviation (divided by D, not D - 1). [1, 2, 3, 4] gives ±1.342 and ±0.447.

    Args:
        x: (..., D).
        weight: (D,), or None for all ones.
        bias: (D,), or None for all zeros.
        eps: keeps the root away from 0.

    Returns:
        (..., D) in x's dtype; computed in at least fp32.

    Raises:
        ValueError: a weight or bias that is not (D,), or a negative eps.
        TypeError: x is not floating point.
    """
    _check_vectors(x, eps, weight=weight, bias=bias)
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = precise - precise.mean(dim=-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + eps)
    if weight is not None:
        normed = normed * weight
    if bias is not None:
        normed = normed + bias
    return normed.to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Scale each vector to a root mean square of 1, then apply the weight.

    Zhang and Sennrich 2019: y = x / √(mean(x²) + eps) · weight. Layer norm without the centring:
    [1, 2, 3, 4] has root mean square √7.5 and gives [0.365, 0.730, 1.095, 1.461].

    Args:
        x: (..., D).
        weight: (D,), or None for all ones.
        eps: keeps the root away from 0.

    Returns:
        (..., D) in x's dtype; computed in at least fp32.

    Raises:
        ValueError: a weight that is not (D,), or a negative eps. TypeError: as `layer_norm`.
    """
    _check_vectors(x, eps, weight=weight)
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = precise * torch.rsqrt(precise.square().mean(dim=-1, keepdim=True) + eps)
    if weight is not None:
        normed = normed * weight
    return normed.to(x.dtype)


class LayerNorm(nn.Module):
    """`layer_norm` with a learned weight and, unless switched off, a learned bias.

    Raises:
        ValueError: d < 1 or a negative eps.
    """

    def __init__(self, d: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        _check_norm(d, eps)
        self.d = d
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d))
        self.bias = nn.Parameter(torch.zeros(d)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return F.layer_norm(x, (self.d,), self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Show the size."""
        return f"{self.d}, eps={self.eps}, bias={self.bias is not None}"


class RMSNorm(nn.Module):
    """`rms_norm` with a learned weight.

    Raises:
        ValueError: d < 1 or a negative eps.
    """

    def __init__(self, d: int, eps: float = 1e-6) -> None:
        super().__init__()
        _check_norm(d, eps)
        self.d = d
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D). Raises ValueError for another width."""
        weight = self.weight
        if x.shape[-1] != self.d:  # a weight of one number would otherwise serve any width
            raise ValueError(f"x has shape {tuple(x.shape)}; its last dimension must be {self.d}")
        if x.is_cpu and torch.is_grad_enabled():
            # PyTorch has a fused kernel on GPUs only; on CPUs its backward is many small steps.
            precise = torch.promote_types(x.dtype, torch.float32)
            normed, _ = _FastRMSNorm.apply(x.to(precise), weight.to(precise), self.eps)
            return normed.to(x.dtype)
        if weight.dtype != x.dtype:
            weight = weight.to(x.dtype)
        return F.rms_norm(x, (self.d,), weight, self.eps)

    def extra_repr(self) -> str:
        """Show the size."""
        return f"{self.d}, eps={self.eps}"


class _FastRMSNorm(torch.autograd.Function):
    """RMS norm whose backward is layer norm's fused kernel and one correction.

    With r = 1/√(mean(x²) + eps) and h = gradient · weight, the gradients are

        RMS norm:    dx = r · (h             - x̂ · mean(h · x̂)),  x̂ = x · r
        layer norm:  dx = r · (h - mean(h)   - x̂ · mean(h · x̂)),  x̂ = (x - mean) · r

    so layer norm's kernel, told that the mean is 0, is short of r · mean(h) only.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # (..., 1)
        inverse = torch.rsqrt(length.square().div_(x.shape[-1]).add_(eps))  # (..., 1)
        return (x * inverse).mul_(weight), inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, weight, output[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        gradient = gradients[0]
        d = x.shape[-1]
        dx, dweight, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, x, [d], torch.zeros_like(inverse), inverse, weight, None, [True, True, False]
        )
        mean_h = (gradient @ weight).unsqueeze(-1).div_(d)  # (..., 1)
        return dx.add_(mean_h.mul_(inverse)), dweight, None


class FeedForward(nn.Module):
    """Two layers with a nonlinearity between, applied to each position by itself.

    Vaswani et al. 2017, section 3.3: down(activation(up(x))), with F = 4D as a rule.
    "gelu_tanh" is GPT-2's approximation of GELU; "relu_squared" is from So et al. 2021.

    Args:
        d_model: width D. d_ff: width F.
        activation: one of `Activation`. bias: whether both layers have one.
        dropout: probability of zeroing a hidden unit in training.

    Raises:
        ValueError: a width below 1, an unknown activation, or a dropout outside [0, 1).
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        activation: Activation = "gelu",
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_widths(d_model, d_ff)
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout is {dropout}; it must be in [0, 1)")
        self.activation = activation
        self.activate = activation_function(activation)
        self.dropout = dropout
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        hidden = self.activate(self.up(x))  # (..., F)
        if self.dropout and self.training:
            hidden = F.dropout(hidden, self.dropout)
        return self.down(hidden)  # (..., D)

    def extra_repr(self) -> str:
        """Show the activation."""
        return f"activation={self.activation}"


class GatedFeedForward(nn.Module):
    """A feed-forward layer whose hidden units are gated: down(activation(gate(x)) · up(x)).

    Shazeer 2020. With "silu" this is SwiGLU (Llama, Qwen3), with "gelu_tanh" GeGLU (Gemma). Its
    three matrices hold as many parameters as two when F is cut to two thirds.

    Args:
        d_model: width D. d_ff: width F.
        activation: one of `Activation`, for the gate. bias: whether the three layers have one.

    Raises:
        ValueError: a width below 1, or an unknown activation.
    """

    def __init__(
        self, d_model: int, d_ff: int, *, activation: Activation = "silu", bias: bool = False
    ) -> None:
        super().__init__()
        _check_widths(d_model, d_ff)
        self.activation = activation
        self.activate = activation_function(activation)
        self.gate = nn.Linear(d_model, d_ff, bias=bias)
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.down(self.activate(self.gate(x)) * self.up(x))  # (..., D)

    def extra_repr(self) -> str:
        """Show the activation."""
        return f"activation={self.activation}"


def _gelu_tanh(x: Tensor) -> Tensor:
    """0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))) in one kernel."""
    return F.gelu(x, approximate="tanh")


def _relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)²."""
    return F.relu(x).square()


def activation_function(name: Activation) -> Callable[[Tensor], Tensor]:
    """Return the function of that name. Raises ValueError for an unknown one."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "gelu": F.gelu,
        "gelu_tanh": _gelu_tanh,
        "relu": F.relu,
        "relu_squared": _relu_squared,
        "silu": F.silu,
    }
    if name not in functions:
        raise ValueError(f"activation is {name!r}; it must be one of {get_args(Activation)}")
    return functions[name]


def _check_widths(d_model: int, d_ff: int) -> None:
    """Refuse widths below 1."""
    for name, width in (("d_model", d_model), ("d_ff", d_ff)):
        if width < 1:
            raise ValueError(f"{name} is {width}; it must be at least 1")


def _check_norm(d: int, eps: float) -> None:
    """Refuse a width below 1 and a negative eps (or NaN, which is neither)."""
    if d < 1:
        raise ValueError(f"d is {d}; it must be at least 1")
    if not eps >= 0:
        raise ValueError(f"eps is {eps}; it must not be negative")


def _check_vectors(x: Tensor, eps: float, **affine: Tensor | None) -> None:
    """Refuse what broadcasting and rounding would accept without a word."""
    if not x.is_floating_point():
        raise TypeError(f"x has dtype {x.dtype}; it must be floating point")
    if not x.dim():
        raise ValueError("x is a single number; it must be (..., D)")
    _check_norm(x.shape[-1], eps)
    for name, tensor in affine.items():
        if tensor is not None and tensor.shape != x.shape[-1:]:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; it must be ({x.shape[-1]},), x's width"
            )
