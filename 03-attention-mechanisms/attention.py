"""Scaled dot-product attention, two interchangeable back ends, and multi-head attention.

Attention is a lookup that differentiates: every query asks every key how well they match, the
matches become weights that sum to one, and the answer is that mix of the values
(Vaswani et al. 2017, equation 1):

    attention(Q, K, V) = softmax(Q Kᵀ / √K) V

Everything that computes this, here or in a later topic (tiled, Triton, ring), is an `AttentionFn`
and is chosen by argument. `scaled_dot_product_attention` is written to be read;
`sdpa_attention` hands the same work to PyTorch's fused kernels and is what models use.

Letters: B batch, T queries, S keys, D model width, H heads, G key/value heads, K head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masks import _check_tensor, causal_mask


class AttentionFn(Protocol):
    """Anything that attends: the reference, PyTorch's kernels, the tiled and distributed ones.

    Args:
        q: queries (B, H, T, K), floating point.
        k: keys (B, G, S, K). G divides H; consecutive query heads share a key/value head.
        v: values (B, G, S, V); V is K nearly always.
        keep: bool, broadcastable to (B, H, T, S); True = may attend. None = all.
        bias: floating point, broadcastable to (B, H, T, S); added to the scaled scores.
        causal: each query sees only keys that are no later than itself. The *last* query is
            aligned with the *last* key, so that decoding with a cache is the same call.
        scale: what to multiply the dot products by; None = 1/√K.
        dropout_p: probability of zeroing each attention weight.

    Returns:
        (B, H, T, V) in q's dtype. A row that may attend nowhere is 0, with finite gradients.

    Raises ValueError for shapes that do not fit together or a probability outside [0, 1], TypeError
    for q, k or v that is no floating-point tensor, or a mask of another dtype.
    """

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        keep: Tensor | None = None,
        bias: Tensor | None = None,
        causal: bool = False,
        scale: float | None = None,
        dropout_p: float = 0.0,
    ) -> Tensor: ...


class LayerKVCache(Protocol):
    """One layer's keys and values so far. Topic 05's `KVCache.layer(i)` is the one to use."""

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the new keys and values (B, G, T, K); return all so far (B, G, S, K)."""
        ...


class GrowingKVCache:
    """The simplest `LayerKVCache`: it concatenates, copying everything at every step.

    Good for short sequences, and to check topic 05's, which allocates once, against.
    """

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def length(self) -> int:
        """How many positions are stored."""
        return 0 if self.keys is None else self.keys.shape[2]

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the new keys and values (B, G, T, K); return all so far (B, G, S, K)."""
        if self.keys is not None and self.values is not None:
            k = torch.cat((self.keys, k), dim=2)  # (B, G, S, K)
            v = torch.cat((self.values, v), dim=2)  # (B, G, S, K)
        self.keys, self.values = k, v
        return k, v

    def reorder(self, index: Tensor) -> None:
        """Make row i the old row index[i]: a beam search keeps some rows and copies others."""
        if self.keys is not None and self.values is not None:
            self.keys = self.keys.index_select(0, index)
            self.values = self.values.index_select(0, index)


class CrossKVCache:
    """One memory's keys and values for one layer, projected at the first call and then reused."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def reorder(self, index: Tensor) -> None:
        """Make row i the old row index[i]."""
        if self.keys is not None and self.values is not None:
            self.keys = self.keys.index_select(0, index)
            self.values = self.values.index_select(0, index)


def attention_weights(
    q: Tensor,
    k: Tensor,
    *,
    keep: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Return softmax(scale · q kᵀ + bias) over the keys that may be attended.

    Arguments and errors as in `AttentionFn`. Returns (B, H, T, S), computed in at least fp32 (fp64
    for fp64 inputs); rows sum to 1, or to 0 where no key is left.

    Example: with q = [1, 0] and keys [1, 0] and [0, 1], the scaled scores are 1/√2 and 0, and the
    weights 0.670 and 0.330.
    """
    _, H, T, K = _check_query_key(q, k)
    S = k.shape[2]
    _check_masks(keep, bias, (q.shape[0], H, T, S))
    precise = torch.promote_types(q.dtype, torch.float32)
    k = _repeat_kv_heads(k, H)  # (B, H, S, K)
    scores = q.to(precise) @ k.to(precise).transpose(-2, -1)  # (B, H, T, S)
    scores = scores * (1.0 / math.sqrt(K) if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    allowed = _allowed(keep, causal, T, S, q.device)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    return _softmax_or_zero(scores)


def scaled_dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    keep: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """The reference `AttentionFn`: the equation, line by line.

    It holds the (B, H, T, S) weights in memory, which the fused kernels do not.
    Arguments, result and errors as in `AttentionFn`; README, "Queries, keys, values".
    """
    _check_query_key(q, k)
    _check_value(k, v)
    weights = attention_weights(q, k, keep=keep, bias=bias, causal=causal, scale=scale)
    weights = F.dropout(weights, dropout_p)
    v = _repeat_kv_heads(v, q.shape[1])  # (B, H, S, V)
    return (weights @ v.to(weights.dtype)).to(q.dtype)  # (B, H, T, V)


def sdpa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    keep: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """The default `AttentionFn`: PyTorch's fused kernels, called the cheapest equal way.

    A mask costs memory and time, so none is built where none is needed: a single causal query
    sees every key, and for as many queries as keys the kernel has its own causal flag. (That flag
    aligns the *first* query with the first key, so with T ≠ S it would be wrong here.) One thing to
    know when you hunt a NaN: PyTorch 2.13's CPU kernel gives 0 for a row of nothing but NaN scores,
    where the reference gives NaN.
    Arguments, result and errors as in `AttentionFn`.
    """
    B, H, T, _ = _check_query_key(q, k)
    _check_value(k, v)
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"dropout_p is {dropout_p}; it must be in [0, 1]")
    _, G, S, _ = k.shape
    grouped = G != H
    if keep is None and bias is None:
        if not causal or T == 1:
            return F.scaled_dot_product_attention(
                q, k, v, dropout_p=dropout_p, scale=scale, enable_gqa=grouped
            )
        if T == S:
            return F.scaled_dot_product_attention(
                q, k, v, dropout_p=dropout_p, is_causal=True, scale=scale, enable_gqa=grouped
            )
    _check_masks(keep, bias, (B, H, T, S))
    mask = _allowed(keep, causal, T, S, q.device)
    empty = None
    if not q.is_cpu:
        # Of the GPU kernels, the masked ones take no groups, and not every one survives a row
        # without keys: such a row attends everywhere for the kernel, and becomes 0 afterwards.
        k, v = _repeat_kv_heads(k, H), _repeat_kv_heads(v, H)  # (B, H, S, K)
        grouped = False
        if mask is not None:
            empty = ~mask.any(dim=-1, keepdim=True)
            mask = mask | empty
    if bias is not None:
        bias = bias.to(q.dtype)
        mask = bias if mask is None else bias.masked_fill(~mask, -math.inf)
    if mask is not None and (mask.dim() < 2 or mask.shape[-1] != S):
        mask = mask.expand(*mask.shape[:-2], T, S)  # the kernels want both dimensions written out
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout_p, scale=scale, enable_gqa=grouped
    )
    return out if empty is None else out.masked_fill(empty, 0.0)


class MultiHeadAttention(nn.Module):
    """Several attentions side by side, each on its own learned projection of the input.

    One head computes one weighted mean a position; H heads of width K = D/H compute H different
    ones for the same cost (Vaswani et al. 2017, section 3.2.2). With `num_kv_heads` below
    `num_heads`, groups of consecutive query heads share keys and values (grouped-query attention,
    Ainslie et al. 2023; multi-query with 1, Shazeer 2019), which shrinks the KV cache.

    Args:
        d_model: width D of the input and of the output.
        num_heads: query heads H.
        num_kv_heads: key/value heads G, a divisor of H; None = H.
        head_dim: width K of a head; None = D/H.
        attend: the `AttentionFn` that does the work.
        qk_norm: normalise queries and keys over K before they are rotated (Dehghani et al. 2023;
            Qwen3). True = `nn.RMSNorm(K, eps=1e-6)`, or a function from K to a module.
        bias: whether the three input projections have one.
        out_bias: whether the output projection has one; None = as `bias`.
        dropout: probability of zeroing an attention weight in training.
        d_memory: width of `memory` in cross-attention; None = D.
        scale: what to multiply the dot products by; None = 1/√K (T5 takes 1 and lets its initial
            weights do the scaling).

    Raises ValueError for sizes below 1 or that do not divide, or a dropout outside [0, 1).
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        attend: AttentionFn = sdpa_attention,
        qk_norm: bool | Callable[[int], nn.Module] = False,
        bias: bool = True,
        out_bias: bool | None = None,
        dropout: float = 0.0,
        d_memory: int | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        d_memory = d_model if d_memory is None else d_memory
        for name, size in (
            ("d_model", d_model),
            ("num_heads", num_heads),
            ("num_kv_heads", num_kv_heads),
            ("d_memory", d_memory),
        ):
            if size < 1:
                raise ValueError(f"{name} is {size}; it must be at least 1")
        if head_dim is None:
            if d_model % num_heads:
                raise ValueError(
                    f"d_model {d_model} is not a multiple of num_heads {num_heads}; "
                    "give head_dim to choose the width of a head yourself"
                )
            head_dim = d_model // num_heads
        if head_dim < 1:
            raise ValueError(f"head_dim is {head_dim}; it must be at least 1")
        if num_heads % num_kv_heads:
            raise ValueError(
                f"num_heads {num_heads} is not a multiple of num_kv_heads {num_kv_heads}"
            )
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout is {dropout}; it must be in [0, 1)")
        self.d_model = d_model
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.attend = attend
        self.dropout = dropout
        self.scale = scale
        self.q_proj = nn.Linear(d_model, num_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(d_memory, num_kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(d_memory, num_kv_heads * head_dim, bias=bias)
        self.out_proj = nn.Linear(
            num_heads * head_dim, d_model, bias=bias if out_bias is None else out_bias
        )
        self.q_norm = _make_qk_norm(qk_norm, head_dim)
        self.k_norm = _make_qk_norm(qk_norm, head_dim)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        keep: Tensor | None = None,
        bias: Tensor | None = None,
        causal: bool = False,
        rotary: Callable[[Tensor], Tensor] | None = None,
        cache: LayerKVCache | CrossKVCache | None = None,
    ) -> Tensor:
        """Attend from x to itself, or to `memory`.

        Args:
            x: (B, T, D).
            memory: (B, S, d_memory) for cross-attention; None = self-attention, S = T (or all
                that the cache holds).
            keep, bias, causal: as in `AttentionFn`, over all S keys.
            rotary: rotates (B, H, T, K) to the positions of x's tokens (topic 04's
                `RoPE.at(positions)`); applied to queries and new keys. Self-attention only.
            cache: a `LayerKVCache` in self-attention, a `CrossKVCache` in cross-attention.

        Returns:
            (B, T, D).

        Raises ValueError for shapes that do not fit, or `rotary` with `memory`; TypeError for the
        other kind of cache.
        """
        B, T, _ = _check_input("x", x, self.q_proj)
        q = self.q_proj(x).view(B, T, self.num_heads, self.head_dim)  # (B, T, H, K)
        if self.q_norm is not None:
            q = self.q_norm(q)
        q = q.transpose(1, 2)  # (B, H, T, K)
        if memory is None:
            k, v = self._project_kv(x)  # (B, G, T, K)
            if rotary is not None:
                q, k = rotary(q), rotary(k)
            if cache is not None:
                if isinstance(cache, CrossKVCache):
                    raise TypeError("self-attention needs a LayerKVCache, not a CrossKVCache")
                k, v = cache.append(k, v)  # (B, G, S, K)
        else:
            if rotary is not None:
                raise ValueError("rotary positions belong to self-attention; memory was given")
            k, v = self._memory_kv(memory, cache)  # (B, G, S, K)
        attended = self.attend(
            q,
            k,
            v,
            keep=keep,
            bias=bias,
            causal=causal,
            scale=self.scale,
            dropout_p=self.dropout if self.training else 0.0,
        )  # (B, H, T, K)
        merged = attended.transpose(1, 2).reshape(B, T, self.num_heads * self.head_dim)
        return self.out_proj(merged)  # (B, T, D)

    def extra_repr(self) -> str:
        """Show the sizes that the projections do not."""
        return f"heads={self.num_heads}, kv_heads={self.num_kv_heads}, head_dim={self.head_dim}"

    def _project_kv(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Project (B, S, ·) to keys and values, both (B, G, S, K)."""
        B, S, _ = source.shape
        k = self.k_proj(source).view(B, S, self.num_kv_heads, self.head_dim)  # (B, S, G, K)
        v = self.v_proj(source).view(B, S, self.num_kv_heads, self.head_dim)  # (B, S, G, K)
        if self.k_norm is not None:
            k = self.k_norm(k)
        return k.transpose(1, 2), v.transpose(1, 2)  # (B, G, S, K)

    def _memory_kv(
        self, memory: Tensor, cache: LayerKVCache | CrossKVCache | None
    ) -> tuple[Tensor, Tensor]:
        """Return the memory's keys and values, from the cache where it holds them."""
        if cache is None:
            _check_input("memory", memory, self.k_proj)
            return self._project_kv(memory)
        if not isinstance(cache, CrossKVCache):
            raise TypeError(f"cross-attention needs a CrossKVCache, not {type(cache).__name__}")
        if cache.keys is None or cache.values is None:
            _check_input("memory", memory, self.k_proj)
            cache.keys, cache.values = self._project_kv(memory)
        elif cache.keys.shape[0] != memory.shape[0] or cache.keys.shape[2] != memory.shape[1]:
            raise ValueError(
                f"the cache holds keys of another memory: {tuple(cache.keys.shape)} against "
                f"memory {tuple(memory.shape)}"
            )
        return cache.keys, cache.values


def _softmax_or_zero(scores: Tensor) -> Tensor:
    """Softmax over the last dimension; a row of nothing but -inf gives 0, not NaN.

    The largest score is subtracted first, so the largest term of every row's sum is e⁰ = 1 and
    the sum at least 1. Clamping the sum at 1 therefore changes only the rows that have no term.
    """
    if scores.shape[-1] == 0:
        return scores
    largest = scores.detach().amax(dim=-1, keepdim=True)  # (B, H, T, 1)
    largest = largest.masked_fill(largest == -math.inf, 0.0)
    terms = torch.exp(scores - largest)  # (B, H, T, S)
    return terms / terms.sum(dim=-1, keepdim=True).clamp(min=1.0)


def _allowed(
    keep: Tensor | None, causal: bool, T: int, S: int, device: torch.device
) -> Tensor | None:
    """Join `keep` and the causal rule into one bool mask; None where everything is allowed."""
    if not causal or T == 1:
        return keep
    past = causal_mask(T, S, device=device)  # (T, S)
    return past if keep is None else keep & past


def _repeat_kv_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, G, S, K) -> (B, H, S, K): each key/value head serves H/G consecutive query heads."""
    repeats = num_heads // x.shape[1]
    return x if repeats == 1 else x.repeat_interleave(repeats, dim=1)


def _make_qk_norm(qk_norm: bool | Callable[[int], nn.Module], head_dim: int) -> nn.Module | None:
    """Return the norm of one side (queries or keys), or None."""
    if qk_norm is True:
        return nn.RMSNorm(head_dim, eps=1e-6)
    return qk_norm(head_dim) if callable(qk_norm) else None


def _check_input(name: str, x: Tensor, projection: nn.Module) -> torch.Size:
    """Return x's shape (B, T, width), or say what is wrong with it."""
    shape = x.shape
    width = getattr(projection, "in_features", shape[-1])
    if len(shape) != 3 or shape[2] != width:
        raise ValueError(f"{name} has shape {tuple(shape)}; it must be (batch, length, {width})")
    return shape


def _check_query_key(q: Tensor, k: Tensor) -> torch.Size:
    """Return q's shape, or say why q and k do not fit together."""
    _check_floating(q=q, k=k)
    q_shape, k_shape = q.shape, k.shape
    if len(q_shape) != 4 or len(k_shape) != 4:
        raise ValueError(
            f"q {tuple(q_shape)} and k {tuple(k_shape)} must be (batch, heads, length, head width)"
        )
    heads_fit = k_shape[1] > 0 and q_shape[1] % k_shape[1] == 0
    if q_shape[0] != k_shape[0] or q_shape[3] != k_shape[3] or not heads_fit:
        raise ValueError(
            f"q {tuple(q_shape)} and k {tuple(k_shape)} must have one batch size and head width, "
            "and k's heads must divide q's"
        )
    if not q_shape[3]:
        raise ValueError(f"q {tuple(q_shape)}: the head width must be at least 1")
    return q_shape


def _check_value(k: Tensor, v: Tensor) -> None:
    """Say why k and v do not fit together, if they do not."""
    _check_floating(v=v)
    if v.dim() != 4 or k.shape[:3] != v.shape[:3]:
        raise ValueError(
            f"k {tuple(k.shape)} and v {tuple(v.shape)} must agree in all but the head width"
        )


def _check_floating(**tensors: Tensor) -> None:
    """Refuse whole numbers: the mixture would be cut down to them without a word."""
    for name, x in tensors.items():
        _check_tensor(name, x)
        if not x.is_floating_point():
            raise TypeError(f"{name} has dtype {x.dtype}; it must be floating point")


def _check_masks(keep: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]) -> None:
    """Check types and that both broadcast to (B, H, T, S). Looks at no element: no sync."""
    for name, mask in (("keep", keep), ("bias", bias)):
        if mask is None:
            continue
        _check_tensor(name, mask)
        if mask is keep and mask.dtype != torch.bool:
            raise TypeError(f"keep has dtype {mask.dtype}; it must be bool, True = may attend")
        if mask is bias and not mask.is_floating_point():
            raise TypeError(f"bias has dtype {mask.dtype}; it must be floating point (see keep)")
        sizes = zip(reversed(mask.shape), reversed(shape), strict=False)
        if mask.dim() > 4 or any(have not in (1, want) for have, want in sizes):
            raise ValueError(
                f"{name} has shape {tuple(mask.shape)}, which does not broadcast to "
                f"(batch, heads, queries, keys) = {shape}"
            )
