"""Attention in NumPy: forward, and the backward pass that the README derives, by hand.

The twin of `attention`, without autograd, so that nothing of the gradient is hidden:
`numpy_attention` returns its result and what the way back needs, `numpy_attention_backward` goes
back, `NumpyMultiHeadAttention` does the same for the whole layer with its projections, and
`online_attention` reads the keys block by block and never holds a row of weights. All of it
computes in float64 and equals PyTorch's to 1e-10, gradients too. README, "The backward pass".

Letters: B batch, T queries, S keys, D model width, H heads, G key/value heads, K head width,
R = H/G query heads to a key/value head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class AttentionTrace:
    """What the backward pass needs of the forward pass.

    q (B, H, T, K), k (B, G, S, K), v (B, G, S, V), weights (B, H, T, S), the factor on the
    scores, and the bias's shape (None without one).
    """

    q: Floats
    k: Floats
    v: Floats
    weights: Floats
    scale: float
    bias_shape: tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True)
class AttentionGradients:
    """Gradients in the shapes of what they belong to; `bias` is None where there was none."""

    q: Floats
    k: Floats
    v: Floats
    bias: Floats | None


def numpy_attention(
    q: Floats,
    k: Floats,
    v: Floats,
    *,
    keep: Bools | None = None,
    bias: Floats | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Floats, AttentionTrace]:
    """softmax(scale · q kᵀ + bias) v, as `attention.AttentionFn` defines it.

    q (B, H, T, K), k (B, G, S, K), v (B, G, S, V) with G a divisor of H; `keep` (True = may
    attend) and `bias` broadcast to (B, H, T, S); `causal` aligns the last query with the last
    key; `scale` None is 1/√K. A row that may attend nowhere gives 0.

    Returns the output (B, H, T, V) and the trace for `numpy_attention_backward`.

    Raises ValueError for shapes that do not fit, TypeError for a `keep` that is not bool.

    Example: q = [1, 0], keys [1, 0] and [0, 1], values [10] and [20] give 0.670 · 10 + 0.330 · 20
    = 13.30.
    """
    q, k, v = (np.asarray(x, dtype=np.float64) for x in (q, k, v))
    _check(q, k, v)
    H, T, K = q.shape[1:]
    S = k.shape[2]
    scale = 1.0 / math.sqrt(K) if scale is None else scale
    _check_masks(keep, bias, (*q.shape[:3], S))
    scores = scale * (q @ _repeat(k, H).swapaxes(-2, -1))  # (B, H, T, S)
    if bias is not None:
        scores = scores + np.asarray(bias, dtype=np.float64)
    allowed = np.ones((T, S), dtype=bool)
    if causal:
        allowed = np.tril(allowed, S - T)  # (T, S)
    if keep is not None:
        allowed = allowed & keep
    scores = np.where(allowed, scores, -np.inf)  # (B, H, T, S)
    largest = scores.max(axis=-1, keepdims=True)  # (B, H, T, 1)
    terms = np.exp(scores - np.where(np.isfinite(largest), largest, 0.0))  # (B, H, T, S)
    # The largest term is e⁰ = 1, so only a row without any key has a sum below 1.
    weights = terms / np.maximum(terms.sum(axis=-1, keepdims=True), 1.0)  # (B, H, T, S)
    trace = AttentionTrace(
        q=q,
        k=k,
        v=v,
        weights=weights,
        scale=scale,
        bias_shape=None if bias is None else np.shape(bias),
    )
    return weights @ _repeat(v, H), trace


def numpy_attention_backward(trace: AttentionTrace, d_out: Floats) -> AttentionGradients:
    """The gradients of a loss whose gradient at the output is `d_out` (B, H, T, V).

    With A the weights, Z the scores and ∂ for a gradient:

        ∂V = Aᵀ ∂O     ∂A = ∂O Vᵀ     ∂Z = A ⊙ (∂A - rowsum(A ⊙ ∂A))
        ∂Q = scale · ∂Z K     ∂K = scale · ∂Zᵀ Q     ∂bias = ∂Z, summed where it was broadcast

    A weight of 0 passes nothing on, so masks need no line here. Query heads that share a
    key/value head each have a say in its gradient: they are summed.

    Raises ValueError if `d_out` has not the output's shape.
    """
    q, k, v, weights = trace.q, trace.k, trace.v, trace.weights
    H, G = q.shape[1], k.shape[1]
    expected = (*q.shape[:3], v.shape[3])
    if d_out.shape != expected:
        raise ValueError(f"d_out has shape {d_out.shape}; the output has {expected}")
    d_v = weights.swapaxes(-2, -1) @ d_out  # (B, H, S, V)
    d_weights = d_out @ _repeat(v, H).swapaxes(-2, -1)  # (B, H, T, S)
    d_scores = softmax_backward(weights, d_weights)  # (B, H, T, S)
    d_q = trace.scale * (d_scores @ _repeat(k, H))  # (B, H, T, K)
    d_k = trace.scale * (d_scores.swapaxes(-2, -1) @ q)  # (B, H, S, K)
    bias_shape = trace.bias_shape
    return AttentionGradients(
        q=d_q,
        k=_sum_groups(d_k, G),
        v=_sum_groups(d_v, G),
        bias=None if bias_shape is None else _sum_to(d_scores, bias_shape),
    )


def softmax_backward(weights: Floats, d_weights: Floats) -> Floats:
    """The gradient at the scores, from that at their softmax, both (..., S).

    The Jacobian of one row is diag(a) - a aᵀ; multiplied out, each score's gradient is its weight
    times how far its own gradient lies above the row's weighted mean. Rows sum to 0.

    Example: weights [0.5, 0.5] and gradients [1, 0] give [0.25, -0.25].
    """
    mean = (weights * d_weights).sum(axis=-1, keepdims=True)  # (..., 1)
    return weights * (d_weights - mean)  # (..., S)


def online_attention(q: Floats, k: Floats, v: Floats, *, block_size: int) -> tuple[Floats, Floats]:
    """Attention that reads keys and values in blocks and holds T · block_size scores at a time.

    For each query it keeps three things: the largest score so far m, the sum ℓ of exp(score - m),
    and the sum u of exp(score - m) · value. A block with a larger maximum multiplies both sums by
    exp(old m - new m). The end is u/ℓ, exactly softmax's (Milakov and Gimelshein 2018; Rabe and
    Staats 2021; the core of FlashAttention, Dao et al. 2022).

    q (B, H, T, K), k (B, H, S, K), v (B, H, S, V). Returns the output (B, H, T, V) and
    m + ln ℓ = log Σ exp(score), (B, H, T), from which a backward pass can recompute any weight.

    Raises ValueError for a block below 1, or shapes that do not fit.
    """
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; it must be at least 1")
    q, k, v = (np.asarray(x, dtype=np.float64) for x in (q, k, v))
    _check(q, k, v)
    B, H, T, K = q.shape
    k, v = _repeat(k, H), _repeat(v, H)
    largest = np.full((B, H, T, 1), -np.inf)
    total = np.zeros((B, H, T, 1))
    mixed = np.zeros((B, H, T, v.shape[3]))  # (B, H, T, V)
    for start in range(0, k.shape[2], block_size):
        block = slice(start, start + block_size)
        scores = q @ k[:, :, block].swapaxes(-2, -1) / math.sqrt(K)  # (B, H, T, s)
        higher = np.maximum(largest, scores.max(axis=-1, keepdims=True))  # (B, H, T, 1)
        shrink = np.exp(largest - higher)  # (B, H, T, 1)
        terms = np.exp(scores - higher)  # (B, H, T, s)
        total = total * shrink + terms.sum(axis=-1, keepdims=True)  # (B, H, T, 1)
        mixed = mixed * shrink + terms @ v[:, :, block]  # (B, H, T, V)
        largest = higher
    return mixed / total, (largest + np.log(total))[..., 0]


class NumpyMultiHeadAttention:
    """`attention.MultiHeadAttention` with its backward pass written out.

    Args:
        state: the PyTorch layer's `state_dict()` as arrays: `q_proj.weight` (H·K, D), and so on;
            biases may be missing.
        num_heads, num_kv_heads: H and G; None = H.

    `forward` remembers what `backward` needs; `backward` fills `gradients`, whose names are those
    of `state`.

    Raises:
        ValueError: heads that do not divide or do not fit the projections, a weight that is
            missing, or one that this layer has no use for (`q_norm.weight`, say).
    """

    def __init__(
        self, state: Mapping[str, np.ndarray], num_heads: int, *, num_kv_heads: int | None = None
    ) -> None:
        self.state = {name: np.asarray(x, dtype=np.float64) for name, x in state.items()}
        missing = [n for n in ("q", "k", "v", "out") if f"{n}_proj.weight" not in self.state]
        if missing:
            raise ValueError(f"the state lacks the weights of {missing}")
        known = {f"{n}_proj.{kind}" for n in ("q", "k", "v", "out") for kind in ("weight", "bias")}
        unknown = sorted(set(self.state) - known)
        if unknown:
            raise ValueError(f"the state holds {unknown}, which this layer does not compute")
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        width = self.state["q_proj.weight"].shape[0]
        heads_fit = min(num_heads, self.num_kv_heads) >= 1 and num_heads % self.num_kv_heads == 0
        if not heads_fit or width % num_heads:
            raise ValueError(
                f"num_heads {num_heads} must divide the width {width}, "
                f"and num_kv_heads {self.num_kv_heads} must divide num_heads"
            )
        kv_width = width // num_heads * self.num_kv_heads
        for name in ("k_proj.weight", "v_proj.weight"):
            if self.state[name].shape[0] != kv_width:
                raise ValueError(
                    f"{name} has {self.state[name].shape[0]} rows; {self.num_kv_heads} heads of "
                    f"{width // num_heads} need {kv_width}"
                )
        self.gradients: dict[str, Floats] = {}
        self._seen: tuple[Floats, Floats, bool, AttentionTrace, Floats] | None = None

    def forward(
        self,
        x: Floats,
        memory: Floats | None = None,
        *,
        keep: Bools | None = None,
        bias: Floats | None = None,
        causal: bool = False,
    ) -> Floats:
        """x (B, T, D) attends to itself, or to `memory` (B, S, d_memory). Returns (B, T, D)."""
        source = x if memory is None else memory
        q = _split(self._linear("q_proj", x), self.num_heads)  # (B, H, T, K)
        k = _split(self._linear("k_proj", source), self.num_kv_heads)  # (B, G, S, K)
        v = _split(self._linear("v_proj", source), self.num_kv_heads)  # (B, G, S, K)
        attended, trace = numpy_attention(q, k, v, keep=keep, bias=bias, causal=causal)
        merged = _merge(attended)  # (B, T, H*K)
        self._seen = (x, source, memory is None, trace, merged)
        return self._linear("out_proj", merged)

    def backward(self, d_out: Floats) -> tuple[Floats, Floats | None, Floats | None]:
        """From the gradient at the output (B, T, D) to those at x, memory and bias.

        In self-attention x fed all three projections, so its gradient is the sum of three; the
        second result is then None.

        Raises ValueError before the first `forward`, or if `d_out` has not its output's shape.
        """
        if self._seen is None:
            raise ValueError("backward needs a forward pass before it")
        x, source, is_self, trace, merged = self._seen
        expected = (*merged.shape[:2], len(self.state["out_proj.weight"]))
        if np.shape(d_out) != expected:
            raise ValueError(f"d_out has shape {np.shape(d_out)}; the output has {expected}")
        self.gradients = {}
        d_merged = self._linear_backward("out_proj", merged, d_out)  # (B, T, H*K)
        d = numpy_attention_backward(trace, _split(d_merged, self.num_heads))
        d_x = self._linear_backward("q_proj", x, _merge(d.q))  # (B, T, D)
        d_source = self._linear_backward("k_proj", source, _merge(d.k))
        d_source = d_source + self._linear_backward("v_proj", source, _merge(d.v))
        if is_self:
            return d_x + d_source, None, d.bias
        return d_x, d_source, d.bias

    def _linear(self, name: str, x: Floats) -> Floats:
        """x Wᵀ + b."""
        y = np.asarray(x, dtype=np.float64) @ self.state[f"{name}.weight"].T
        bias = self.state.get(f"{name}.bias")
        return y if bias is None else y + bias

    def _linear_backward(self, name: str, x: Floats, d_y: Floats) -> Floats:
        """Store ∂W = ∂yᵀ x and ∂b = Σ ∂y over all positions; return ∂x = ∂y W."""
        flat_x = np.asarray(x, dtype=np.float64).reshape(-1, x.shape[-1])  # (N, I)
        flat_d = d_y.reshape(-1, d_y.shape[-1])  # (N, O)
        self.gradients[f"{name}.weight"] = flat_d.T @ flat_x  # (O, I)
        if f"{name}.bias" in self.state:
            self.gradients[f"{name}.bias"] = flat_d.sum(axis=0)  # (O,)
        return d_y @ self.state[f"{name}.weight"]


def _split(x: Floats, heads: int) -> Floats:
    """(B, T, H·K) -> (B, H, T, K)."""
    B, T, width = x.shape
    return x.reshape(B, T, heads, width // heads).swapaxes(1, 2)  # (B, H, T, K)


def _merge(x: Floats) -> Floats:
    """(B, H, T, K) -> (B, T, H·K)."""
    B, H, T, K = x.shape
    return x.swapaxes(1, 2).reshape(B, T, H * K)  # (B, T, H*K)


def _repeat(x: Floats, num_heads: int) -> Floats:
    """(B, G, S, K) -> (B, H, S, K): consecutive query heads share a key/value head."""
    return np.repeat(x, num_heads // x.shape[1], axis=1)


def _sum_groups(x: Floats, groups: int) -> Floats:
    """(B, H, S, K) -> (B, G, S, K): the way back of `_repeat`."""
    B, H, S, K = x.shape
    return x.reshape(B, groups, H // groups, S, K).sum(axis=2)  # (B, G, S, K)


def _sum_to(x: Floats, shape: tuple[int, ...]) -> Floats:
    """Sum over the dimensions along which `shape` was broadcast to x's."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    stretched = tuple(i for i, size in enumerate(shape) if size == 1 and x.shape[i] != 1)
    return x.sum(axis=stretched, keepdims=True) if stretched else x


def _check(q: Floats, k: Floats, v: Floats) -> None:
    """Say why q, k and v do not fit together, if they do not."""
    shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(f"{shapes}: each must be (batch, heads, length, head width)")
    heads_fit = k.shape[1] > 0 and q.shape[1] % k.shape[1] == 0
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or not heads_fit:
        raise ValueError(
            f"{shapes}: q and k need one batch size and width, and k's heads divide q's"
        )
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(f"{shapes}: k and v must agree in all but the width")
    if not q.shape[3] or not k.shape[2]:
        raise ValueError(f"{shapes}: the head width and the number of keys must be at least 1")


def _check_masks(keep: Bools | None, bias: Floats | None, shape: tuple[int, ...]) -> None:
    """Check the mask's type, and that mask and bias broadcast to (B, H, T, S)."""
    if keep is not None and np.asarray(keep).dtype != np.bool_:
        dtype = np.asarray(keep).dtype
        raise TypeError(f"keep has dtype {dtype}; it must be bool, True = may attend")
    for name, mask in (("keep", keep), ("bias", bias)):
        if mask is None:
            continue
        have = np.shape(mask)
        sizes = zip(reversed(have), reversed(shape), strict=False)
        if len(have) > 4 or any(size not in (1, want) for size, want in sizes):
            raise ValueError(f"{name} {have} does not broadcast to {shape}")
