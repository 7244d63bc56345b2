"""Sparse attention equals masked exact attention; kernels equal their definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attention import MultiHeadAttention, scaled_dot_product_attention
from efficient_attention import (
    BigBirdAttention,
    PerformerAttention,
    SlidingWindowAttention,
    linear_attention,
)
from masks import bigbird_mask, sliding_window_mask


def qkv(B: int, H: int, G: int, T: int, S: int, K: int = 8, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, H, T, K), (B, G, S, K), (B, G, S, K + 1))
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def assert_same(sparse: Any, mask: Tensor, inputs: list[Tensor], **options: Any) -> None:
    """Outputs and gradients are those of exact attention under the mask."""
    keep = options.pop("keep", None)
    exact_keep = mask if keep is None else mask & keep
    causal = options.pop("causal", False)
    out = sparse(*inputs, keep=keep, causal=causal, **options)
    exact = scaled_dot_product_attention(*inputs, keep=exact_keep, **options)
    torch.testing.assert_close(out, exact)
    weights = torch.randn(exact.shape, generator=torch.Generator().manual_seed(9)).double()
    mine = torch.autograd.grad((out * weights).sum(), inputs)
    theirs = torch.autograd.grad((exact * weights).sum(), inputs)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)


@given(
    st.integers(1, 40), st.integers(0, 12), st.integers(1, 45), st.booleans(), st.integers(0, 99)
)
def test_a_sliding_window_is_masked_attention(
    T: int, more: int, window: int, causal: bool, seed: int
) -> None:
    """Any lengths, T below S, windows wider than the text, two heads to a key head."""
    S = T + more
    mask = sliding_window_mask(T, window, S, causal=causal)
    inputs = qkv(2, 4, 2, T, S, K=3, seed=seed)
    assert_same(SlidingWindowAttention(window), mask, inputs, causal=causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("keep_shape", [(2, 1, 1, 29), (1, 4, 23, 29), (23, 1), (2, 1, 23, 29)])
def test_a_sliding_window_with_masks_and_biases(causal: bool, keep_shape: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    keep = torch.rand(keep_shape, generator=generator) < 0.7
    bias = torch.randn(1, 4, 23, 29, generator=generator, dtype=torch.float64)
    mask = sliding_window_mask(23, 5, 29, causal=causal)
    inputs = qkv(2, 4, 2, 23, 29)
    options = {"bias": bias, "scale": 0.7, "causal": causal}
    assert_same(SlidingWindowAttention(5), mask, inputs, keep=keep, **options)


@pytest.mark.parametrize("T", [1, 7, 16, 21, 64, 67])
@pytest.mark.parametrize("counts", [(1, 3, 1), (2, 1, 2), (0, 3, 0), (0, 1, 3)], ids=str)
def test_bigbird_is_masked_attention(T: int, counts: tuple[int, int, int]) -> None:
    numbers = dict(
        zip(("num_global_blocks", "num_window_blocks", "num_random_blocks"), counts, strict=True)
    )
    sparse = BigBirdAttention(block_size=4, seed=3, **numbers)
    blocks = -(-T // 4) * 4
    mask = bigbird_mask(
        blocks, block_size=4, generator=torch.Generator().manual_seed(3), **numbers
    )[:T, :T]
    keep = torch.rand(2, 1, 1, T, generator=torch.Generator().manual_seed(1)) < 0.7
    inputs = qkv(2, 4, 2, T, T)
    assert_same(sparse, mask, inputs)
    assert_same(sparse, mask, inputs, keep=keep, scale=0.3)
    full = torch.rand(1, 4, T, T, generator=torch.Generator().manual_seed(2)) < 0.7
    assert_same(sparse, mask, inputs, keep=full, bias=torch.randn(T, T).double())


def test_work_grows_with_the_length_and_not_with_its_square() -> None:
    """Counted, not timed: doubling T doubles the products (BigBird's global rows aside)."""

    def flops(attend: Any, T: int, **options: Any) -> int:
        inputs = [x.float() for x in qkv(1, 2, 2, T, T)]
        with FlopCounterMode(display=False) as counter:
            attend(*inputs, **options)
        return counter.get_total_flops()

    exact = scaled_dot_product_attention
    window = SlidingWindowAttention(16, attend=exact)
    bird = BigBirdAttention(block_size=16, num_global_blocks=0, attend=exact)
    assert flops(exact, 1024) == 4 * flops(exact, 512)
    for attend in (window, bird, linear_attention, PerformerAttention(16)):
        assert flops(attend, 1024) == 2 * flops(attend, 512)
        assert flops(attend, 1024) < flops(exact, 1024) / 4
    assert flops(window, 512, causal=True) < 0.7 * flops(window, 512)
    for attend in (linear_attention, PerformerAttention(16)):
        assert flops(attend, 1024, causal=True) == 2 * flops(attend, 512, causal=True)


# --- kernels -------------------------------------------------------------------------------------


def by_definition(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    weights = ((F.elu(q) + 1) @ (F.elu(k) + 1).transpose(-2, -1)).masked_fill(~mask, 0.0)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-30) @ v


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("T", [1, 7, 64, 65, 200])
def test_linear_attention_is_its_definition(T: int, causal: bool) -> None:
    q, k, v = (x.detach().float() for x in qkv(2, 4, 2, T, T))
    keep = torch.rand(2, 1, 1, T, generator=torch.Generator().manual_seed(1)) < 0.7
    keep[0, 0, 0, 0] = False  # so the first causal query has nothing to attend
    for mask in (None, keep):
        allowed = torch.ones(T, T, dtype=torch.bool)
        allowed = allowed.tril() if causal else allowed
        allowed = allowed if mask is None else allowed & mask
        wide = [x.repeat_interleave(2, dim=1) for x in (k, v)]
        expected = by_definition(q, wide[0], wide[1], allowed)
        out = linear_attention(q, k, v, causal=causal, keep=mask)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


def test_causal_linear_attention_is_a_recurrent_network() -> None:
    """Its state is a sum of outer products, K × V numbers however long the text."""
    q, k, v = (x.detach().float() for x in qkv(1, 2, 2, 70, 70))
    state, norm = torch.zeros(1, 2, 8, 9), torch.zeros(1, 2, 8)
    outputs = []
    for t in range(70):
        key, query = F.elu(k[:, :, t]) + 1, F.elu(q[:, :, t]) + 1
        state = state + key[..., None] * v[:, :, t, None, :]
        norm = norm + key
        numerator = (query[..., None] * state).sum(dim=2)
        outputs.append(numerator / (query * norm).sum(-1, keepdim=True))
    expected = torch.stack(outputs, dim=2)
    out = linear_attention(q, k, v, causal=True)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


def test_performers_features_estimate_the_exponential_without_bias() -> None:
    """Over many seeds the mean of φ(q)·φ(k) is exp(q·k): within five of its standard errors."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 6, generator=generator) * 0.6
    for orthogonal in (False, True):
        estimates = []
        for seed in range(400):
            w = PerformerAttention(6, seed=seed, orthogonal=orthogonal).projections(6)
            product = ((w @ q - q @ q / 2) + (w @ k - k @ k / 2)).exp()
            estimates.append(float(product.mean()))
        values = torch.tensor(estimates)
        error = float(values.std() / math.sqrt(len(values)))
        assert abs(float(values.mean()) - math.exp(float(q @ k))) < 5 * error


def test_performer_nears_softmax_with_more_features() -> None:
    q, k, v = (x.detach().float() for x in qkv(2, 2, 2, 50, 50))
    for causal in (False, True):
        exact = scaled_dot_product_attention(q, k, v, causal=causal, scale=0.1)
        errors = []
        for features in (8, 128, 2048):
            gaps = [
                float(
                    (
                        PerformerAttention(features, seed=seed)(q, k, v, causal=causal, scale=0.1)
                        - exact
                    )
                    .square()
                    .mean()
                )
                for seed in range(5)
            ]
            errors.append(sum(gaps) / 5)
        assert errors[0] > 3 * errors[1] > 9 * errors[2]
        assert errors[2] < 0.005 * float(exact.square().mean())


@pytest.mark.parametrize("orthogonal", [False, True])
def test_directions_are_even_and_the_estimate_has_no_floor(orthogonal: bool) -> None:
    """A QR factorisation as it comes prefers some signs, which no number of features repairs."""
    rows = PerformerAttention(80_000, orthogonal=orthogonal).projections(8)
    assert rows.mean(dim=0).abs().max() < 5 / math.sqrt(80_000)
    torch.testing.assert_close(rows.t() @ rows / 80_000, torch.eye(8), atol=0.03, rtol=0.0)


def test_orthogonal_features_vary_less() -> None:
    q, k, v = (x.detach().float() for x in qkv(2, 2, 2, 40, 40))
    exact = scaled_dot_product_attention(q, k, v)

    def error(orthogonal: bool) -> float:
        return sum(
            float(
                (PerformerAttention(8, seed=seed, orthogonal=orthogonal)(q, k, v) - exact)
                .square()
                .mean()
            )
            for seed in range(60)
        )

    assert error(True) < error(False)
    rows = PerformerAttention(8).projections(8)
    products = rows @ rows.t()
    assert (products - torch.diag(products.diagonal())).abs().max() < 1e-4


def test_performer_hides_padding_and_survives_large_scores() -> None:
    q, k, v = (x.detach().float() for x in qkv(2, 2, 2, 9, 9))
    attend = PerformerAttention(32)
    keep = torch.arange(9)[None, None, None] < torch.tensor([6, 9])[:, None, None, None]
    out = attend(q, k, v, keep=keep)
    torch.testing.assert_close(out[:1], attend(q[:1], k[:1, :, :6], v[:1, :, :6]))
    k[0, :, 6:] = 1e4  # what is hidden does not decide the scale of what is not
    torch.testing.assert_close(attend(q, k, v, keep=keep)[0], out[0])
    assert attend(30 * q, 30 * k, v).isfinite().all()
    nothing = attend(q, k, v, keep=torch.zeros(2, 1, 1, 9, dtype=torch.bool))
    assert torch.equal(nothing, torch.zeros_like(nothing))


@pytest.mark.parametrize("index", range(4))
def test_each_serves_multi_head_attention(index: int) -> None:
    attend: Any = (
        SlidingWindowAttention(3),
        BigBirdAttention(block_size=2),
        linear_attention,
        PerformerAttention(16),
    )[index]
    layer = MultiHeadAttention(12, 3, attend=attend)
    x = torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(0), requires_grad=True)
    keep = (torch.arange(9) < torch.tensor([[9], [5]]))[:, None, None]
    out = layer(x, keep=keep)
    assert out.shape == x.shape
    (gradient,) = torch.autograd.grad(out[1, :5].sum(), x)
    assert gradient.isfinite().all()
    assert float(gradient[1, 5:].abs().max()) < 1e-6, "padding was attended"


# --- bad input -----------------------------------------------------------------------------------


def test_what_cannot_be_had_is_refused() -> None:
    q, k, v = (x.detach().float() for x in qkv(1, 2, 2, 6, 6))
    bird = BigBirdAttention(block_size=2)
    kernels: tuple[Any, ...] = (linear_attention, PerformerAttention(4))
    with pytest.raises(ValueError, match="causal=True"):
        bird(q, k, v, causal=True)
    with pytest.raises(ValueError, match="4 queries, 6 keys"):
        bird(q[:, :, :4], k, v)
    for attend in kernels:
        with pytest.raises(ValueError, match="no bias, no dropout"):
            attend(q, k, v, bias=torch.zeros(6, 6))
        with pytest.raises(ValueError, match="no bias, no dropout"):
            attend(q, k, v, dropout_p=0.1)
        with pytest.raises(ValueError, match=r"keep has shape \(6, 6\)"):
            attend(q, k, v, keep=torch.ones(6, 6, dtype=torch.bool))
        with pytest.raises(ValueError, match="not 4 queries of 6 keys"):
            attend(q[:, :, :4], k, v, causal=True)
        torch.testing.assert_close(
            attend(q[:, :, 5:], k, v, causal=True), attend(q[:, :, 5:], k, v)
        )
    with pytest.raises(ValueError, match=r"scale is 0\.5"):
        linear_attention(q, k, v, scale=0.5)
    with pytest.raises(ValueError, match="scale is -1"):
        PerformerAttention(4)(q, k, v, scale=-1.0)
    with pytest.raises(ValueError, match="window is 0"):
        SlidingWindowAttention(0)
    with pytest.raises(ValueError, match="num_features is 0"):
        PerformerAttention(0)
    with pytest.raises(ValueError, match="num_window_blocks is 2"):
        BigBirdAttention(block_size=2, num_window_blocks=2)
    with pytest.raises(TypeError, match="keep has dtype"):
        SlidingWindowAttention(2)(q, k, v, keep=torch.ones(6, 6))
