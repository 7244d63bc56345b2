"""Attention against PyTorch's own, against its theorems, and against bad input."""

from __future__ import annotations

import math
from itertools import pairwise, product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

import attention
from attention import (
    CrossKVCache,
    GrowingKVCache,
    MultiHeadAttention,
    attention_weights,
    scaled_dot_product_attention,
    sdpa_attention,
)
from shape_tracer import check_shapes

BACK_ENDS = [scaled_dot_product_attention, sdpa_attention]
# (H, G, T, S, K): as many queries as keys, fewer, more, one; grouped and not; odd widths.
SIZES = [(3, 3, 7, 7, 5), (6, 2, 5, 11, 8), (4, 4, 11, 6, 9), (4, 1, 1, 9, 16), (6, 3, 13, 13, 4)]
MASKS = ["none", "keep", "padding", "bias", "keep and bias"]


def _tensors(H, G, T, S, K, *, seed, dtype=torch.float32, B=2):
    """q, k and v, which want gradients."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, H, T, K), (B, G, S, K), (B, G, S, K)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def _mask_arguments(kind, H, T, S, *, seed, B=2):
    """keep and bias of that kind; no row without a key unless causality takes them."""
    generator = torch.Generator().manual_seed(seed)
    keep = bias = None
    if "keep" in kind:
        keep = torch.rand(B, H, T, S, generator=generator) < 0.6
        keep[..., 0] = True
    if kind == "padding":
        lengths = torch.tensor([S, max(1, S - 3)])
        keep = (torch.arange(S) < lengths[:, None])[:, None, None]
    if "bias" in kind:
        bias = torch.randn(1, H, T, S, generator=generator).requires_grad_()
    return keep, bias


def _gradients(out, inputs, *, seed=9):
    """Gradients of a random projection of `out`, so that no element's gradient is special."""
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed))
    return torch.autograd.grad((out.double() * weight.double()).sum(), inputs)


def _expected(q, k, v, *, keep, bias, causal, scale):
    """The same by PyTorch's mathematical kernel in fp64, with every rule written into a mask."""
    H, T, S = q.shape[1], q.shape[2], k.shape[2]
    allowed = torch.ones(T, S, dtype=torch.bool)
    if causal:
        allowed = torch.arange(S) <= torch.arange(S - T, S)[:, None]
    if keep is not None:
        allowed = allowed & keep
    mask = torch.zeros(q.shape[0], H, T, S, dtype=torch.float64)
    mask = mask if bias is None else mask + bias
    mask = mask.masked_fill(~allowed, -math.inf)
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(
            q.double(), k.double(), v.double(), attn_mask=mask, scale=scale, enable_gqa=True
        )


@pytest.mark.parametrize("attend", BACK_ENDS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("causal", "scale"), [(False, 0.37), (True, None)])
def test_outputs_and_gradients_equal_pytorch(attend, sizes, mask, causal, scale):
    q, k, v = _tensors(*sizes, seed=1)
    H, _, T, S, _ = sizes
    keep, bias = _mask_arguments(mask, H, T, S, seed=2)
    inputs = [q, k, v] if bias is None else [q, k, v, bias]
    rules = {"keep": keep, "bias": bias, "causal": causal, "scale": scale}
    out = attend(q, k, v, **rules)
    expected = _expected(q, k, v, **rules)
    torch.testing.assert_close(out.double(), expected, atol=3e-6, rtol=1e-5)
    for ours, theirs in zip(_gradients(out, inputs), _gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attend", BACK_ENDS)
def test_causal_is_aligned_to_the_end_where_pytorch_aligns_to_the_start(attend):
    q, k, v = _tensors(2, 2, 4, 6, 8, seed=3)
    ours = attend(q, k, v, causal=True)
    last_only = attend(q[:, :, -1:], k, v, causal=True)
    torch.testing.assert_close(last_only, attend(q[:, :, -1:], k, v), atol=1e-6, rtol=0)
    torch.testing.assert_close(ours[:, :, -1:], last_only, atol=1e-6, rtol=0)
    theirs = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert (ours - theirs).abs().max() > 0.1
    same_length = F.scaled_dot_product_attention(q, k[:, :, 2:], v[:, :, 2:], is_causal=True)
    torch.testing.assert_close(
        attend(q, k[:, :, 2:], v[:, :, 2:], causal=True), same_length, atol=1e-6, rtol=0
    )


def test_weights_worked_by_hand():
    q = torch.tensor([[1.0, 0.0]])[None, None]
    k = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[None, None]
    weights = attention_weights(q, k)
    first = math.exp(1 / math.sqrt(2)) / (math.exp(1 / math.sqrt(2)) + 1)
    torch.testing.assert_close(weights[0, 0, 0], torch.tensor([first, 1 - first]))
    assert weights[0, 0, 0].tolist() == pytest.approx([0.670, 0.330], abs=5e-4)


def test_weights_are_a_distribution_that_gives_the_output():
    q, k, v = _tensors(6, 2, 5, 9, 8, seed=4)
    keep, bias = _mask_arguments("keep and bias", 6, 5, 9, seed=5)
    assert keep is not None
    weights = attention_weights(q, k, keep=keep, bias=bias, causal=True)
    assert weights.shape == (2, 6, 5, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 6, 5))
    assert (weights[~keep] == 0).all()
    mixed = weights @ v.repeat_interleave(3, dim=1)
    out = sdpa_attention(q, k, v, keep=keep, bias=bias, causal=True)
    torch.testing.assert_close(mixed, out, atol=2e-6, rtol=1e-5)


def test_scores_far_apart_do_not_overflow():
    q, k, v = _tensors(2, 2, 3, 5, 8, seed=6)
    for attend in BACK_ENDS:
        out = attend(q * 1e3, k * 1e3, v)
        assert torch.isfinite(out).all()
        assert all(torch.isfinite(g).all() for g in _gradients(out, [q, k, v]))


@pytest.mark.parametrize("attend", BACK_ENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["keep", "keep and bias", "causal", "bias of -inf"])
@pytest.mark.parametrize("G", [4, 2])
def test_a_row_with_nothing_to_attend_is_zero_with_finite_gradients(attend, dtype, how, G):
    T, S = (9, 6) if how == "causal" else (6, 9)
    q, k, v = _tensors(4, G, T, S, 8, seed=7, dtype=dtype)
    empty = torch.zeros(2, 1, T, 1, dtype=torch.bool)
    empty[0, :, 2] = empty[1, :, :2] = True
    rules = {}
    if "keep" in how:
        rules["keep"] = ~empty.expand(2, 1, T, S)
    if how == "keep and bias":
        rules["bias"] = torch.randn(4, T, S, dtype=dtype)
    if how == "bias of -inf":
        rules["bias"] = torch.zeros(2, 1, T, S, dtype=dtype).masked_fill(empty, -math.inf)
    if how == "causal":
        rules["causal"] = True
        empty = torch.zeros(2, 1, T, 1, dtype=torch.bool)
        empty[:, :, : T - S] = True
    out = attend(q, k, v, **rules)
    assert out.dtype == dtype
    empty = empty.expand_as(out)
    assert (out[empty] == 0).all()
    assert (out[~empty] != 0).any()
    dq, dk, dv = _gradients(out, [q, k, v])
    assert all(torch.isfinite(gradient).all() for gradient in (dq, dk, dv))
    assert (dq[empty] == 0).all()
    assert (dq[~empty] != 0).any()


@pytest.mark.parametrize("attend", BACK_ENDS)
def test_every_row_empty(attend):
    q, k, v = _tensors(2, 2, 3, 4, 8, seed=8)
    out = attend(q, k, v, keep=torch.zeros(2, 1, 1, 4, dtype=torch.bool))
    assert (out == 0).all()
    assert all((gradient == 0).all() for gradient in _gradients(out, [q, k, v]))


def test_no_keys_at_all():
    q, k, v = _tensors(2, 2, 3, 4, 8, seed=8)
    assert (scaled_dot_product_attention(q, k[:, :, :0], v[:, :, :0]) == 0).all()


@pytest.mark.parametrize(("B", "T"), [(0, 3), (2, 0), (0, 0)])
def test_nothing_in_nothing_out(B, T):
    module = MultiHeadAttention(12, 4, num_kv_heads=2)
    x = torch.randn(B, T, 12, requires_grad=True)
    out = module(x, causal=True)
    assert out.shape == (B, T, 12)
    out.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_reference_computes_low_precision_inputs_in_fp32(dtype):
    q, k, v = _tensors(3, 3, 17, 33, 64, seed=10, dtype=dtype)
    exact = scaled_dot_product_attention(q.double(), k.double(), v.double())
    ours = scaled_dot_product_attention(q, k, v)
    assert ours.dtype == dtype
    # Only the result is rounded: half a unit in the last place.
    rounding = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(ours.double(), exact, atol=1e-6, rtol=1.01 * rounding)
    assert attention_weights(q, k).dtype == torch.float32


@pytest.mark.parametrize("attend", BACK_ENDS)
def test_dropout_zeroes_weights_and_scales_the_rest(attend):
    S, p = 50, 0.3
    q = torch.zeros(4, 2, 40, S)
    k = torch.zeros(4, 2, S, S)
    v = torch.eye(S).expand(4, 2, S, S)  # the output is the weights themselves
    torch.manual_seed(11)
    weights = attend(q, k, v, dropout_p=p)
    kept = weights != 0
    torch.testing.assert_close(
        weights[kept], torch.full((int(kept.sum()),), 1 / (S * (1 - p))), atol=1e-7, rtol=1e-5
    )
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=0.02)  # σ = 0.0036


@pytest.mark.parametrize(
    "keep_shape", [(9,), (5, 9), (5, 1), (1, 5, 9), (2, 1, 1, 9), (2, 4, 5, 1), (1, 1, 1, 1)]
)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_masks_broadcast(keep_shape, causal, with_bias):
    q, k, v = _tensors(4, 2, 5, 9, 8, seed=12)
    keep = torch.rand(keep_shape, generator=torch.Generator().manual_seed(13)) < 0.7
    bias = torch.randn(4, 1, 1) if with_bias else None
    whole = sdpa_attention(q, k, v, keep=keep.expand(2, 4, 5, 9), bias=bias, causal=causal)
    for attend in BACK_ENDS:
        out = attend(q, k, v, keep=keep, bias=bias, causal=causal)
        torch.testing.assert_close(out, whole, atol=2e-6, rtol=1e-5)


class _Operations(TorchDispatchMode):
    """Record the operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("T", "S", "causal", "maskless"),
    [(1, 9, True, True), (9, 9, True, True), (4, 9, False, True), (4, 9, True, False)],
)
def test_no_mask_is_built_where_none_is_needed(T, S, causal, maskless):
    q, k, v = _tensors(4, 2, T, S, 8, seed=14)
    with torch.no_grad(), _Operations() as operations:
        sdpa_attention(q, k, v, causal=causal)
    assert ("ones" not in operations.names) == maskless
    if maskless:
        assert operations.names == ["_scaled_dot_product_flash_attention_for_cpu"]


def test_a_decoding_step_is_nothing_but_its_work():
    module = MultiHeadAttention(12, 4, num_kv_heads=2)
    x = torch.randn(2, 1, 12)
    with torch.no_grad(), _Operations() as operations:
        module(x, causal=True)
    work = [name for name in operations.names if name not in ("view", "_unsafe_view", "t")]
    assert work == [
        *["addmm", "transpose"],  # queries
        *["addmm", "addmm", "transpose", "transpose"],  # keys and values
        "_scaled_dot_product_flash_attention_for_cpu",
        *["transpose", "addmm"],
    ]


# --- multi-head attention ---------------------------------------------------------------------


def _torch_twin(ours, *, dropout=0.0):
    """nn.MultiheadAttention with the same weights."""
    twin = nn.MultiheadAttention(
        ours.d_model,
        ours.num_heads,
        dropout=dropout,
        bias=ours.q_proj.bias is not None,
        kdim=ours.k_proj.in_features,
        vdim=ours.v_proj.in_features,
        batch_first=True,
    )
    with torch.no_grad():
        weights = [ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight]
        if twin.in_proj_weight is not None:
            twin.in_proj_weight.copy_(torch.cat(weights))
        else:
            separate = (twin.q_proj_weight, twin.k_proj_weight, twin.v_proj_weight)
            for mine, theirs in zip(weights, separate, strict=True):
                theirs.copy_(mine)
        twin.out_proj.weight.copy_(ours.out_proj.weight)
        if ours.q_proj.bias is not None:
            biases = [ours.q_proj.bias, ours.k_proj.bias, ours.v_proj.bias]
            twin.in_proj_bias.copy_(torch.cat(biases))
            twin.out_proj.bias.copy_(ours.out_proj.bias)
    return twin


def _scatter_biases(module: nn.Module) -> None:
    """Biases start at zero in some layers, which would hide that they are forgotten."""
    generator = torch.Generator().manual_seed(99)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() == 1:
                offset = 1.0 if "norm" in name else 0.0
                parameter.copy_(offset + 0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cross", ["self", "same width", "other width"])
@pytest.mark.parametrize("mask", ["none", "causal", "padding", "both"])
@pytest.mark.parametrize("attend", BACK_ENDS)
def test_multi_head_equals_pytorch(bias, cross, mask, attend):
    torch.manual_seed(20)
    d_memory = 14 if cross == "other width" else 20
    ours = MultiHeadAttention(20, 4, bias=bias, d_memory=d_memory, attend=attend)
    _scatter_biases(ours)
    twin = _torch_twin(ours)
    x = torch.randn(3, 7, 20, requires_grad=True)
    memory = None if cross == "self" else torch.randn(3, 7, d_memory, requires_grad=True)
    lengths = torch.tensor([7, 4, 1])
    real = torch.arange(7) < lengths[:, None]  # (B, S)
    causal = mask in ("causal", "both")
    padded = mask in ("padding", "both")
    out = ours(x, memory, keep=real[:, None, None] if padded else None, causal=causal)
    read = x if memory is None else memory
    expected, average = twin(
        x,
        read,
        read,
        key_padding_mask=~real if padded else None,
        attn_mask=torch.ones(7, 7, dtype=torch.bool).triu(1) if causal else None,
    )
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=1e-5)
    inputs = [x] if memory is None else [x, memory]
    for mine, theirs in zip(_gradients(out, inputs), _gradients(expected, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    q = ours.q_proj(x).view(3, 7, 4, 5).transpose(1, 2)
    k = ours.k_proj(read).view(3, 7, 4, 5).transpose(1, 2)
    weights = attention_weights(q, k, keep=real[:, None, None] if padded else None, causal=causal)
    torch.testing.assert_close(weights.mean(dim=1), average, atol=1e-6, rtol=1e-5)


def test_parameter_gradients_equal_pytorch():
    torch.manual_seed(21)
    ours = MultiHeadAttention(20, 4)
    _scatter_biases(ours)
    twin = _torch_twin(ours)
    x = torch.randn(2, 9, 20)
    causal = torch.ones(9, 9, dtype=torch.bool).triu(1)
    mine = _gradients(ours(x, causal=True), list(ours.parameters()))
    named = dict(zip([name for name, _ in ours.named_parameters()], mine, strict=True))
    expected, _ = twin(x, x, x, attn_mask=causal)
    theirs = _gradients(
        expected,
        [twin.in_proj_weight, twin.in_proj_bias, twin.out_proj.weight, twin.out_proj.bias],
    )
    joined = [
        torch.cat([named[f"{letter}_proj.{kind}"] for letter in "qkv"])
        for kind in ("weight", "bias")
    ]
    joined += [named["out_proj.weight"], named["out_proj.bias"]]
    for one, other in zip(joined, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


def test_grouped_heads_equal_full_heads_with_repeated_weights():
    torch.manual_seed(22)
    grouped = MultiHeadAttention(24, 6, num_kv_heads=2, head_dim=5)
    full = MultiHeadAttention(24, 6, head_dim=5)
    state = grouped.state_dict()
    for letter in "kv":
        for kind in ("weight", "bias"):
            shared = state[f"{letter}_proj.{kind}"].unflatten(0, (2, 5))
            repeated = shared.repeat_interleave(3, dim=0)  # consecutive heads share
            state[f"{letter}_proj.{kind}"] = repeated.flatten(0, 1)
    full.load_state_dict(state)
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(grouped(x, causal=True), full(x, causal=True), atol=1e-6, rtol=0)


def test_sizes_of_the_projections():
    module = MultiHeadAttention(12, 6, num_kv_heads=2, head_dim=5, d_memory=7, out_bias=False)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes == {
        "q_proj.weight": (30, 12),
        "q_proj.bias": (30,),
        "k_proj.weight": (10, 7),
        "k_proj.bias": (10,),
        "v_proj.weight": (10, 7),
        "v_proj.bias": (10,),
        "out_proj.weight": (12, 30),
    }
    assert MultiHeadAttention(12, 6, bias=False).out_proj.bias is None
    assert MultiHeadAttention(12, 6, bias=False, out_bias=True).out_proj.bias is not None
    assert "kv_heads=2" in repr(module)


def test_self_attention_is_permutation_equivariant():
    torch.manual_seed(23)
    module = MultiHeadAttention(16, 4, num_kv_heads=2, qk_norm=True)
    x = torch.randn(2, 9, 16)
    order = torch.randperm(9)
    torch.testing.assert_close(module(x[:, order]), module(x)[:, order], atol=1e-6, rtol=1e-5)
    causal = module(x, causal=True)
    assert (module(x[:, order], causal=True) - causal[:, order]).abs().max() > 1e-2


def test_cross_attention_does_not_see_the_order_of_its_memory():
    torch.manual_seed(24)
    module = MultiHeadAttention(16, 4, d_memory=6)
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 8, 6)
    order = torch.randperm(8)
    torch.testing.assert_close(module(x, memory[:, order]), module(x, memory), atol=1e-6, rtol=0)


@pytest.mark.parametrize("attend", BACK_ENDS)
def test_no_gradient_from_the_future(attend):
    torch.manual_seed(25)
    module = MultiHeadAttention(8, 2, attend=attend, qk_norm=True)
    x = torch.randn(1, 6, 8)
    jacobian = torch.autograd.functional.jacobian(lambda y: module(y, causal=True), x)
    assert isinstance(jacobian, Tensor)
    reach = jacobian[0, :, :, 0].abs().amax(dim=(1, 3))  # (T, T): query by key
    future = torch.ones(6, 6, dtype=torch.bool).triu(1)
    assert (reach[future] == 0).all()
    assert (reach[~future] > 1e-4).all()


def _rotate(positions):
    """A stand-in for RoPE that turns pairs (x₀, x₁) by an angle of one radian a position."""
    angle = positions.float()[:, None]  # (T, 1)

    def rotate(x):
        a, b = x.chunk(2, dim=-1)  # (B, H, T, K/2)
        cos, sin = torch.cos(angle), torch.sin(angle)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)

    return rotate


def test_rotary_makes_only_distances_matter():
    torch.manual_seed(26)
    module = MultiHeadAttention(16, 4, num_kv_heads=2, qk_norm=True)
    x = torch.randn(2, 6, 16)
    here = module(x, causal=True, rotary=_rotate(torch.arange(6)))
    moved = module(x, causal=True, rotary=_rotate(torch.arange(100, 106)))
    torch.testing.assert_close(here, moved, atol=1e-4, rtol=1e-4)
    stretched = module(x, causal=True, rotary=_rotate(2 * torch.arange(6)))
    assert (here - stretched).abs().max() > 1e-2
    assert (here - module(x, causal=True)).abs().max() > 1e-2


@st.composite
def _chunkings(draw):
    """A length and where it is cut."""
    length = draw(st.integers(2, 12))
    cuts = draw(st.sets(st.integers(1, length - 1)))
    return [0, *sorted(cuts), length]


@torch.no_grad()
@settings(max_examples=40, deadline=None)
@given(_chunkings(), st.sampled_from([4, 2, 1]), st.booleans(), st.booleans())
def test_cached_equals_uncached_under_any_chunking(bounds, num_kv_heads, qk_norm, ragged):
    torch.manual_seed(27)
    module = MultiHeadAttention(16, 4, num_kv_heads=num_kv_heads, qk_norm=qk_norm)
    _scatter_biases(module)
    T = bounds[-1]
    x = torch.randn(2, T, 16)
    keep = None
    if ragged:  # the second row starts later, after padding on the left
        keep = torch.ones(2, 1, T, T, dtype=torch.bool)
        keep[1, :, :, : T // 2] = False
    whole = module(x, keep=keep, causal=True, rotary=_rotate(torch.arange(T)))
    cache = GrowingKVCache()
    pieces = [
        module(
            x[:, start:stop],
            keep=None if keep is None else keep[:, :, start:stop, :stop],
            causal=True,
            rotary=_rotate(torch.arange(start, stop)),
            cache=cache,
        )
        for start, stop in pairwise(bounds)
    ]
    assert cache.length == T
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=2e-6, rtol=1e-5)


def test_growing_cache_reorders_its_rows():
    torch.manual_seed(28)
    module = MultiHeadAttention(16, 4)
    x = torch.randn(3, 5, 16)
    cache = GrowingKVCache()
    cache.reorder(torch.tensor([0]))  # nothing to reorder yet
    module(x[:, :4], causal=True, cache=cache)
    index = torch.tensor([2, 0, 0, 1])
    cache.reorder(index)
    step = module(x[index, 4:], causal=True, cache=cache)
    expected = module(x, causal=True)[index, 4:]
    torch.testing.assert_close(step, expected, atol=1e-6, rtol=1e-5)


def test_cross_cache_projects_the_memory_once():
    torch.manual_seed(29)
    module = MultiHeadAttention(16, 4, num_kv_heads=2, d_memory=6, qk_norm=True)
    calls = []
    module.k_proj.register_forward_hook(lambda *_: calls.append("k"))
    module.v_proj.register_forward_hook(lambda *_: calls.append("v"))
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 8, 6)
    keep = torch.rand(2, 1, 1, 8) < 0.7
    whole = module(x, memory, keep=keep)
    calls.clear()
    cache = CrossKVCache()
    cache.reorder(torch.tensor([0]))  # nothing to reorder yet
    steps = [module(x[:, t : t + 1], memory, keep=keep, cache=cache) for t in range(5)]
    assert calls == ["k", "v"]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-6, rtol=1e-5)
    index = torch.tensor([1, 1, 0])
    cache.reorder(index)
    again = module(x[index], memory[index], keep=keep[index], cache=cache)
    torch.testing.assert_close(again, whole[index], atol=1e-6, rtol=1e-5)


def test_qk_norm_comes_before_the_rotation_and_after_the_split():
    torch.manual_seed(30)
    module = MultiHeadAttention(16, 4, num_kv_heads=2, qk_norm=True)
    _scatter_biases(module)
    assert isinstance(module.q_norm, nn.RMSNorm)
    assert module.q_norm.eps == 1e-6
    assert module.q_norm.normalized_shape == (4,)
    rotate = _rotate(torch.arange(7))
    x = torch.randn(2, 7, 16)

    assert module.q_norm is not None
    assert module.k_norm is not None

    def heads(projection, count):
        return projection(x).unflatten(-1, (count, 4)).transpose(1, 2)

    q = rotate(module.q_norm(heads(module.q_proj, 4)))
    k = rotate(module.k_norm(heads(module.k_proj, 2)))
    mixed = scaled_dot_product_attention(q, k, heads(module.v_proj, 2), causal=True)
    expected = module.out_proj(mixed.transpose(1, 2).flatten(2))
    out = module(x, causal=True, rotary=rotate)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)


def test_qk_norm_takes_a_factory():
    made = []

    def factory(width):
        made.append(width)
        return nn.LayerNorm(width)

    module = MultiHeadAttention(16, 4, num_kv_heads=2, head_dim=6, qk_norm=factory)
    assert made == [6, 6]
    assert isinstance(module.q_norm, nn.LayerNorm)
    assert module.q_norm is not module.k_norm
    assert MultiHeadAttention(16, 4).q_norm is None


def test_dropout_only_in_training():
    torch.manual_seed(31)
    module = MultiHeadAttention(16, 4, dropout=0.5)
    x = torch.randn(2, 9, 16)
    assert (module(x) - module(x)).abs().max() > 1e-3
    module.eval()
    twin = _torch_twin(module, dropout=0.5).eval()
    torch.testing.assert_close(module(x), twin(x, x, x)[0], atol=2e-6, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # nn.RMSNorm's
def test_autocast_and_low_precision():
    torch.manual_seed(32)
    module = MultiHeadAttention(32, 4, num_kv_heads=2, qk_norm=True)
    x = torch.randn(2, 9, 32)
    exact = module(x, causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module(x, causal=True, cache=GrowingKVCache())
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), exact, atol=0.02, rtol=0.05)
    low = module.to(torch.bfloat16)(x.bfloat16(), causal=True)
    torch.testing.assert_close(low.float(), exact, atol=0.02, rtol=0.05)


def test_a_fully_masked_sequence_trains():
    torch.manual_seed(33)
    module = MultiHeadAttention(16, 4)
    x = torch.randn(2, 5, 16)
    keep = torch.tensor([True, False])[:, None, None, None].expand(2, 1, 1, 5)
    out = module(x, keep=keep)
    torch.testing.assert_close(out[1], module.out_proj.bias.expand(5, 16))
    out.square().sum().backward()
    slopes = [parameter.grad for parameter in module.parameters()]
    assert all(slope is not None and torch.isfinite(slope).all() for slope in slopes)


def test_shape_comments():
    torch.manual_seed(34)
    module = MultiHeadAttention(30, 6, num_kv_heads=2, qk_norm=True)
    keep = torch.rand(2, 1, 7, 11) < 0.8
    cache = GrowingKVCache()
    named = [getattr(attention, name) for name in ("sdpa_attention", "attention_weights")]
    named += [scaled_dot_product_attention, MultiHeadAttention, GrowingKVCache]
    named += [attention._softmax_or_zero, attention._allowed]
    with check_shapes(*named) as report:
        module(torch.randn(2, 4, 30), causal=True, cache=cache)
        module(torch.randn(2, 7, 30), causal=True, cache=cache, keep=keep)
        module(torch.randn(2, 7, 30), torch.randn(2, 11, 30), keep=keep)
        q, k, v = _tensors(6, 2, 7, 11, 5, seed=35)
        scaled_dot_product_attention(q, k, v, keep=keep, causal=True)
    assert report.checked >= 12, report.unchecked


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize("attend", BACK_ENDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": (2, 4, 5)}, "must be"),
        ({"k": (2, 3, 9, 8)}, "divide"),
        ({"k": (2, 0, 9, 8), "v": (2, 0, 9, 8)}, "divide"),
        ({"k": (3, 2, 9, 8)}, "one batch size"),
        ({"k": (2, 2, 9, 7)}, "head width"),
        ({"q": (2, 4, 5, 0), "k": (2, 2, 9, 0)}, "head width must be at least 1"),
        ({"v": (2, 2, 8, 8)}, "agree"),
        ({"v": (2, 2, 9)}, "agree"),
        ({"keep": (4, 9)}, "keep has shape"),
        ({"keep": (1, 2, 4, 5, 9)}, "keep has shape"),
        ({"bias": (3, 5, 9)}, "bias has shape"),
    ],
)
def test_shapes_that_do_not_fit(attend, change, message):
    shapes = {"q": (2, 4, 5, 8), "k": (2, 2, 9, 8), "v": (2, 2, 9, 8), **change}
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    if "keep" in tensors:
        tensors["keep"] = tensors["keep"].bool()
    with pytest.raises(ValueError, match=message):
        attend(**tensors)


@pytest.mark.parametrize("attend", BACK_ENDS)
def test_masks_of_the_wrong_type(attend):
    q, k, v = _tensors(2, 2, 3, 4, 8, seed=36)
    with pytest.raises(TypeError, match=r"keep has dtype torch\.float32; it must be bool"):
        attend(q, k, v, keep=torch.ones(3, 4))
    with pytest.raises(TypeError, match=r"bias has dtype torch\.bool"):
        attend(q, k, v, bias=torch.ones(3, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"q has dtype torch\.int64; it must be floating point"):
        attend(q.long(), k.long(), v.long())
    with pytest.raises(TypeError, match=r"v has dtype torch\.int64"):
        attend(q, k, v.long())
    with pytest.raises(TypeError, match="q is a NoneType"):
        attend(None, k, v)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="v is a ndarray"):
        attend(q, k, v.detach().numpy())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="keep is a list"):
        attend(q, k, v, keep=[[True]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"1\.5"):
        attend(q, k, v, dropout_p=1.5)
    with pytest.raises(ValueError, match=r"-0\.5"):
        attend(q, k, v, dropout_p=-0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_model": 10, "num_heads": 4}, "d_model 10 is not a multiple of num_heads 4"),
        ({"d_model": 8, "num_heads": 4, "num_kv_heads": 3}, "num_kv_heads 3"),
        ({"d_model": 8, "num_heads": 0}, "num_heads is 0"),
        ({"d_model": 0, "num_heads": 1}, "d_model is 0"),
        ({"d_model": 8, "num_heads": 4, "num_kv_heads": 0}, "num_kv_heads is 0"),
        ({"d_model": 8, "num_heads": 4, "head_dim": 0}, "head_dim is 0"),
        ({"d_model": 8, "num_heads": 4, "d_memory": -1}, "d_memory is -1"),
        ({"d_model": 8, "num_heads": 4, "dropout": 1.0}, r"dropout is 1\.0"),
        ({"d_model": 8, "num_heads": 4, "dropout": -0.1}, r"dropout is -0\.1"),
    ],
)
def test_sizes_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(**arguments)


def test_wrong_calls():
    module = MultiHeadAttention(8, 2, d_memory=6)
    x, memory = torch.randn(2, 3, 8), torch.randn(2, 5, 6)
    with pytest.raises(ValueError, match=r"x has shape \(3, 8\); it must be \(batch, length, 8\)"):
        module(x[0])
    with pytest.raises(ValueError, match=r"x has shape \(2, 3, 7\)"):
        module(x[..., :7], memory)
    with pytest.raises(ValueError, match=r"memory has shape \(2, 5, 5\)"):
        module(x, memory[..., :5])
    with pytest.raises(ValueError, match="rotary positions belong to self-attention"):
        module(x, memory, rotary=_rotate(torch.arange(3)))
    with pytest.raises(TypeError, match="needs a CrossKVCache, not GrowingKVCache"):
        module(x, memory, cache=GrowingKVCache())
    with pytest.raises(TypeError, match="needs a LayerKVCache, not a CrossKVCache"):
        MultiHeadAttention(8, 2)(x, cache=CrossKVCache())
    cache = CrossKVCache()
    module(x, memory, cache=cache)
    with pytest.raises(ValueError, match="keys of another memory"):
        module(x, memory[:, :4], cache=cache)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", [*MASKS, "empty rows"])
def test_gpu_kernels_agree_with_the_reference(dtype, mask):
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    for causal, sizes in product([False, True], SIZES):
        H, _, T, S, _ = sizes
        inputs = [x.detach().to("cuda", dtype).requires_grad_() for x in _tensors(*sizes, seed=37)]
        keep, bias = _mask_arguments(mask, H, T, S, seed=38)
        if mask == "empty rows":
            keep = (torch.arange(T) % 2 == 0)[:, None].expand(T, S)
        keep = None if keep is None else keep.cuda()
        bias = None if bias is None else bias.detach().to("cuda", dtype)
        outs = [attend(*inputs, keep=keep, bias=bias, causal=causal) for attend in BACK_ENDS]
        torch.testing.assert_close(outs[1], outs[0], atol=tolerance, rtol=tolerance)
        slopes = [torch.autograd.grad(out.float().square().sum(), inputs) for out in outs]
        for ours, reference in zip(slopes[1], slopes[0], strict=True):
            torch.testing.assert_close(ours, reference, atol=2 * tolerance, rtol=2 * tolerance)


@pytest.mark.parametrize("factor", [None, 1.0, 0.2])
def test_the_scale_of_the_scores_is_the_callers_choice(factor):
    """A factor on the scores is a factor on the queries."""
    torch.manual_seed(0)
    layer = MultiHeadAttention(12, 3, scale=factor)
    plain = MultiHeadAttention(12, 3)
    plain.load_state_dict(layer.state_dict())
    with torch.no_grad():
        for parameter in plain.q_proj.parameters():
            parameter.mul_(1.0 if factor is None else factor * math.sqrt(4))
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(layer(x, causal=True), plain(x, causal=True))
