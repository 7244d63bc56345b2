"""Attention as two products gives the reference's numbers, and is chosen where it should be."""

from __future__ import annotations

import pytest
import torch

from attention import scaled_dot_product_attention
from matmul_attention import fast_attention, matmul_attention


def tensors(H: int, G: int, T: int, S: int, K: int, *, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, H, T, K), (2, G, S, K), (2, G, S, K + 1)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("sizes", [(3, 3, 7, 7, 5), (6, 2, 5, 11, 8), (4, 1, 9, 4, 3)])
@pytest.mark.parametrize("kind", ["none", "keep", "no key", "bias", "bias of -inf"])
@pytest.mark.parametrize("causal", [False, True])
def test_outputs_and_gradients_equal_the_reference(
    sizes: tuple[int, ...], kind: str, causal: bool
) -> None:
    H, _, T, S, _ = sizes
    inputs = tensors(*sizes)
    keep = bias = None
    if kind in ("keep", "no key"):
        keep = torch.rand(2, H, T, S, generator=torch.Generator().manual_seed(1)) < 0.6
        keep[:, :, 0] = kind == "keep"
    if "bias" in kind:
        bias = torch.randn(H, T, S, generator=torch.Generator().manual_seed(2))
        bias[:, 0] = -torch.inf if "inf" in kind else bias[:, 0]
    found = []
    for attend in (matmul_attention, scaled_dot_product_attention):
        out = attend(*inputs, keep=keep, bias=bias, causal=causal, scale=0.3)
        found.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("attend", [matmul_attention, scaled_dot_product_attention])
def test_a_nan_in_the_bias_shows(attend) -> None:
    """NaN is not -inf: a pair that it falls on is broken, not forbidden."""
    q, k, v = (x.detach() for x in tensors(2, 2, 4, 5, 3))
    bias = torch.zeros(4, 5)
    bias[1, 2] = torch.nan
    broken = attend(q, k, v, bias=bias).isnan().all(dim=-1)  # (B, H, T)
    assert broken[:, :, 1].all()
    assert broken.sum() == 2 * 2


def names_of_operations(dtype: torch.dtype, S: int, *, grad: bool = True) -> str:
    q, k, v = (torch.randn(1, 2, S, 4).to(dtype).requires_grad_(grad) for _ in range(3))
    out = fast_attention(q, k, v, causal=True)
    return "none" if out.grad_fn is None else type(out.grad_fn).__name__


def test_the_choice_follows_length_dtype_and_setting() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert "ScaledDotProduct" in names_of_operations(torch.float32, 16)
        assert "ScaledDotProduct" not in names_of_operations(torch.bfloat16, 16)
        assert "ScaledDotProduct" in names_of_operations(torch.bfloat16, 1025)
        torch.set_float32_matmul_precision("medium")
        assert "ScaledDotProduct" not in names_of_operations(torch.float32, 16)
        assert "ScaledDotProduct" in names_of_operations(torch.float32, 513)
        assert "ScaledDotProduct" in names_of_operations(torch.float64, 16)
    finally:
        torch.set_float32_matmul_precision(before)
