"""Attention for less than T² work: look at fewer pairs, or never form the pairs at all.

Two ideas, each an `AttentionFn` that a model takes in place of the exact one:

* *Sparse*: compute only some of the scores. `SlidingWindowAttention` (Beltagy et al. 2020) and
  `BigBirdAttention` (Zaheer et al. 2020) equal exact attention under a mask, number for number;
  what they save is the work on pairs that the mask hides. T·W scores in place of T².
* *Kernels*: replace exp(q·k) by φ(q)·φ(k) and regroup (φ(Q) φ(K)ᵀ) V as φ(Q) (φ(K)ᵀ V), which
  holds no T×T matrix. `linear_attention` (Katharopoulos et al. 2020) picks a simple φ and is
  another function than softmax; `PerformerAttention` (Choromanski et al. 2021) draws φ at random
  so that it is softmax's in expectation.

README, "Efficient attention". Letters: B batch, T queries, S keys, H heads, G key/value heads,
K head width, V value width, W window, R features, n blocks, c tokens in a block.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from attention import (
    AttentionFn,
    _check_masks,
    _check_query_key,
    _check_value,
    _repeat_kv_heads,
)
from masks import bigbird_mask
from matmul_attention import fast_attention


class SlidingWindowAttention:
    """Each query attends to the `window` nearest keys, itself among them, and computes no others.

    Equal to exact attention under `masks.sliding_window_mask(T, window, S, causal=causal)`. The
    queries are cut into blocks of c = W; a block's keys are the W - 1 before it, its own, and
    without `causal` the W - 1 after it. So about 2W (or 3W) scores a query, of which half (or two
    thirds) are wanted: T·2W·K multiplications where exact attention does T²·K.

    Args:
        window: W, at least 1. attend: what computes a block; any `AttentionFn`.

    Raises:
        ValueError: a window below 1.
    """

    def __init__(self, window: int, *, attend: AttentionFn = fast_attention) -> None:
        if window < 1:
            raise ValueError(f"window is {window}; it must be at least 1")
        self.window = window
        self.attend = attend

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
    ) -> Tensor:
        """Arguments, result and errors as in `AttentionFn`."""
        B, H, T, _ = _check_query_key(q, k)
        _check_value(k, v)
        S, reach = k.shape[2], self.window - 1
        _check_masks(keep, bias, (B, H, T, S))
        block = min(self.window, T) if T else 1
        n = -(-T // block)
        ahead = 0 if causal else reach
        # Where each block's queries stand, and the keys around them; some lie outside [0, S).
        device = q.device
        queries = torch.arange(n * block, device=device).view(n, block)  # (n, c)
        near = torch.arange(-reach, block + ahead, device=device)  # (L,)
        keys = queries[:, :1] + (S - T) + near  # (n, L)
        distance = queries[:, :, None] + (S - T) - keys[:, None, :]  # (n, c, L)
        wanted = (distance <= reach) & (distance >= -ahead)
        wanted = wanted & (keys >= 0)[:, None, :] & (keys < S)[:, None, :]  # (n, c, L)
        return _attend_blocks(
            q,
            k,
            v,
            keys.clamp(0, max(S - 1, 0)),
            wanted,
            keep=keep,
            bias=bias,
            scale=scale,
            dropout_p=dropout_p,
            attend=self.attend,
        )


class BigBirdAttention:
    """Global, window and random blocks: an encoder's attention over long texts.

    Equal to exact attention under `masks.bigbird_mask` with the same numbers and
    `torch.Generator().manual_seed(seed)`. The first blocks attend everywhere, at the price of
    their length times T; every other block gathers its few blocks of keys and attends to those.

    Args:
        block_size: tokens in a block.
        num_global_blocks, num_window_blocks, num_random_blocks: see `masks.bigbird_mask`.
        seed: decides the random blocks, which depend on nothing else but the length.
        attend: what computes a block; any `AttentionFn`.

    Raises:
        ValueError: as `masks.bigbird_mask`.
    """

    def __init__(
        self,
        *,
        block_size: int,
        num_global_blocks: int = 1,
        num_window_blocks: int = 3,
        num_random_blocks: int = 1,
        seed: int = 0,
        attend: AttentionFn = fast_attention,
    ) -> None:
        self.block_size = block_size
        self.counts = {
            "num_global_blocks": num_global_blocks,
            "num_window_blocks": num_window_blocks,
            "num_random_blocks": num_random_blocks,
        }
        self.seed = seed
        self.attend = attend
        self._layouts: dict[int, Tensor] = {}
        self.layout(1)

    def layout(self, blocks: int) -> Tensor:
        """Return which blocks see which: bool (n, n), on the CPU."""
        if blocks not in self._layouts:
            generator = torch.Generator().manual_seed(self.seed)
            size = self.block_size
            mask = bigbird_mask(blocks * size, block_size=size, generator=generator, **self.counts)
            self._layouts[blocks] = mask[::size, ::size].clone()
        return self._layouts[blocks]

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
    ) -> Tensor:
        """Arguments and result as in `AttentionFn`, for as many queries as keys.

        Raises:
            ValueError: `causal`, other lengths, or what does not fit.
        """
        B, H, T, _ = _check_query_key(q, k)
        _check_value(k, v)
        if causal or k.shape[2] != T:
            raise ValueError(
                f"BigBird is for encoders: {T} queries, {k.shape[2]} keys and causal={causal}"
            )
        _check_masks(keep, bias, (B, H, T, T))
        size = self.block_size
        n = -(-T // size)
        rows = min(self.counts["num_global_blocks"], n)  # which attend everywhere
        options = {"scale": scale, "dropout_p": dropout_p}
        parts = []
        split = min(rows * size, T)
        if rows:
            parts.append(
                self.attend(
                    q[:, :, :split],
                    k,
                    v,
                    keep=_rows_of(keep, slice(None, split)),
                    bias=_rows_of(bias, slice(None, split)),
                    **options,
                )
            )
        if rows < n:
            layout = self.layout(n)[rows:]  # (n - rows, n)
            most = int(layout.sum(dim=1).max())
            # A row's blocks first, in order; a row with fewer than `most` is filled up and masked.
            chosen = layout.int().argsort(dim=1, descending=True, stable=True)[:, :most]
            real = layout.gather(1, chosen).to(q.device)  # (n - rows, most)
            inside = torch.arange(size, device=q.device)
            keys = (chosen.to(q.device)[:, :, None] * size + inside).flatten(1)  # (n - rows, L)
            wanted = real.repeat_interleave(size, dim=1) & (keys < T)  # (n - rows, L)
            parts.append(
                _attend_blocks(
                    q[:, :, split:],
                    k,
                    v,
                    keys.clamp(max=T - 1),
                    wanted[:, None, :].expand(-1, size, -1),
                    keep=_rows_of(keep, slice(split, None)),
                    bias=_rows_of(bias, slice(split, None)),
                    attend=self.attend,
                    **options,
                )
            )
        return torch.cat(parts, dim=2) if parts else torch.empty_like(q)


def linear_attention(
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
    """Weights in proportion to φ(q)·φ(k) with φ(x) = elu(x) + 1, in T·K·V work.

    Katharopoulos et al. 2020. The causal form is a recurrent network: its state Σ φ(k)ᵀv is K×V
    numbers whatever the length. Shapes as in `AttentionFn`.

    Raises:
        ValueError: a `keep` that tells queries apart, `causal` with T ≠ S (a single query
            excepted), or a bias, scale or dropout, for which no weights exist to apply them to.
    """
    if scale is not None:
        raise ValueError(f"scale is {scale}; linear attention has no softmax to sharpen")
    _check_kernel_arguments("linear attention", q, k, v, keep, bias, causal, dropout_p)
    return _kernel_attention(F.elu(q.float()) + 1, F.elu(k.float()) + 1, v, keep, causal)


class PerformerAttention:
    """Softmax attention estimated with random features, in T·R·V work (FAVOR+).

    Choromanski et al. 2021, lemma 1: for w from N(0, I), the mean of exp(w·q - |q|²/2) times
    exp(w·k - |k|²/2) is exp(q·k). With R draws it is an unbiased estimate of each weight before
    normalisation, and always positive. Orthogonal draws vary less. The error grows with exp of
    the scores: sharp attention is what it estimates badly.

    Args:
        num_features: R. K·ln K or so for a fair estimate.
        seed: decides the features, which are drawn once for each head width.
        orthogonal: draw them in orthogonal groups of K.

    Raises:
        ValueError: fewer than one feature.
    """

    def __init__(self, num_features: int, *, seed: int = 0, orthogonal: bool = True) -> None:
        if num_features < 1:
            raise ValueError(f"num_features is {num_features}; it must be at least 1")
        self.num_features = num_features
        self.seed = seed
        self.orthogonal = orthogonal
        self._drawn: dict[int, Tensor] = {}

    def projections(self, head_dim: int) -> Tensor:
        """Return the features' directions w, (R, K) fp32 on the CPU."""
        if head_dim not in self._drawn:
            generator = torch.Generator().manual_seed(self.seed)
            rows = torch.randn(self.num_features, head_dim, generator=generator)
            if self.orthogonal:
                # Directions of a random rotation; lengths as independent normal vectors have.
                groups = -(-self.num_features // head_dim)
                square = torch.randn(groups, head_dim, head_dim, generator=generator)
                rotation, upper = torch.linalg.qr(square)
                # Householder's method fixes some signs; those of R's diagonal make it uniform.
                rotation = rotation * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
                directions = rotation.flatten(0, 1)[: self.num_features]
                rows = directions * rows.norm(dim=1, keepdim=True)
            self._drawn[head_dim] = rows
        return self._drawn[head_dim]

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
    ) -> Tensor:
        """Shapes as in `AttentionFn`; errors as in `linear_attention`, but a scale is welcome.

        Raises:
            ValueError: a negative scale, besides.
        """
        _check_kernel_arguments("Performer attention", q, k, v, keep, bias, causal, dropout_p)
        scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
        if scale < 0:
            raise ValueError(f"scale is {scale}; it must not be negative")
        w = self.projections(q.shape[-1]).to(q.device)  # (R, K)
        q, k = q.float() * math.sqrt(scale), k.float() * math.sqrt(scale)
        # A factor on a query's features cancels in its quotient, and so does one on all keys'.
        log_q = q @ w.t()  # (B, H, T, R)
        log_q = log_q - log_q.detach().amax(dim=-1, keepdim=True)
        log_k = k @ w.t() - k.square().sum(dim=-1, keepdim=True) / 2  # (B, G, S, R)
        hidden = log_k if keep is None else log_k.masked_fill(~_over_keys(keep), -math.inf)
        largest = hidden.detach().amax(dim=(-2, -1), keepdim=True)  # (B, G, 1, 1)
        log_k = hidden - largest.masked_fill(largest == -math.inf, 0.0)
        return _kernel_attention(log_q.exp(), log_k.exp(), v, keep, causal)


def _attend_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    wanted: Tensor,
    *,
    keep: Tensor | None,
    bias: Tensor | None,
    scale: float | None,
    dropout_p: float,
    attend: AttentionFn,
) -> Tensor:
    """Attend from each block of c queries to its own L keys.

    Args:
        q: (B, H, T, K), cut into n blocks of c, the last one possibly not full.
        k, v: (B, G, S, ·).
        keys: which keys each block reads, int64 (n, L).
        wanted: bool (n, c, L), which of them each query may attend.
        keep, bias: over all (B, H, T, S), as in `AttentionFn`.
    """
    B, H, T, K = q.shape
    n, c, L = wanted.shape
    if not T:
        return v.new_zeros(B, H, 0, v.shape[-1], dtype=q.dtype)

    def gathered(x: Tensor) -> Tensor:
        """(B, G, S, ·) -> (B·n, G, L, ·)."""
        picked = x[:, :, keys]  # (B, G, n, L, ·)
        return picked.transpose(1, 2).reshape(B * n, x.shape[1], L, x.shape[-1])

    def windowed(mask: Tensor) -> Tensor:
        """Anything over (B, H, T, S) -> (B·n, H or 1, c, L)."""
        mask = mask.expand(B, mask.shape[1] if mask.dim() == 4 else 1, *mask.shape[-2:])
        rows = torch.arange(n * c, device=q.device).clamp(max=T - 1).view(n, c, 1)
        rows = rows if mask.shape[2] > 1 else torch.zeros_like(rows[:, :1])
        columns = keys[:, None, :] if mask.shape[3] > 1 else torch.zeros_like(keys[:, None, :])
        picked = mask[:, :, rows, columns]  # (B, H or 1, n, c or 1, L)
        return picked.transpose(1, 2).flatten(0, 1)

    blocks = F.pad(q, (0, 0, 0, n * c - T)).view(B, H, n, c, K)
    blocks = blocks.transpose(1, 2).reshape(B * n, H, c, K)
    allowed = wanted.repeat(B, 1, 1).unsqueeze(1)  # (B·n, 1, c, L)
    if keep is not None:
        allowed = allowed & windowed(_four(keep))
    out = attend(
        blocks,
        gathered(k),
        gathered(v),
        keep=allowed,
        bias=None if bias is None else windowed(_four(bias)),
        scale=scale,
        dropout_p=dropout_p,
    )  # (B·n, H, c, V)
    out = out.view(B, n, H, c, -1).transpose(1, 2).flatten(2, 3)  # (B, H, n·c, V)
    return out[:, :, :T]


def _kernel_attention(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, causal: bool, chunk: int = 64
) -> Tensor:
    """Weights in proportion to q·k, for features that are not negative.

    Causally in chunks: within one by its c×c scores, and from all before it by the running sum
    Σ kᵀ[v, 1] (R × (V+1)), whose last column is the denominator's.

    Args:
        q: (B, H, T, R). k: (B, G, S, R). v: (B, G, S, V).
    """
    dtype = v.dtype
    if keep is not None:
        k = k * _over_keys(keep).to(k.dtype)
    H, T = q.shape[1], q.shape[2]
    ones = v.new_ones(*v.shape[:-1], 1)
    values = _repeat_kv_heads(torch.cat((v, ones), dim=-1).to(k.dtype), H)  # (B, H, S, V+1)
    k = _repeat_kv_heads(k, H)  # (B, H, S, R)
    if not causal or T == 1:
        sums = q @ (k.transpose(-2, -1) @ values)  # (B, H, T, V+1)
    else:
        short = -T % chunk
        q, k, values = (
            F.pad(x, (0, 0, 0, short)).unflatten(2, (-1, chunk)) for x in (q, k, values)
        )  # (B, H, n, c, ·)
        states = (k.transpose(-2, -1) @ values).cumsum(dim=2)  # (B, H, n, R, V+1)
        before = F.pad(states, (0, 0, 0, 0, 1, 0))[:, :, :-1]  # those of the chunks before
        within = (q @ k.transpose(-2, -1)).tril() @ values  # (B, H, n, c, V+1)
        sums = (q @ before + within).flatten(2, 3)[:, :, :T]  # (B, H, T, V+1)
    total = sums[..., -1:]
    # Nothing to attend: 0, as every AttentionFn says.
    return (sums[..., :-1] / total.masked_fill(total == 0, 1.0)).to(dtype)


def _check_kernel_arguments(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor | None,
    bias: Tensor | None,
    causal: bool,
    dropout_p: float,
) -> None:
    """Refuse what cannot be had without the T×S weights."""
    B, H, T, _ = _check_query_key(q, k)
    _check_value(k, v)
    S = k.shape[2]
    _check_masks(keep, bias, (B, H, T, S))
    if bias is not None or dropout_p:
        raise ValueError(f"{name} never forms the weights: no bias, no dropout on them")
    if keep is not None and (_four(keep).shape[1] > 1 or _four(keep).shape[2] > 1):
        raise ValueError(
            f"keep has shape {tuple(keep.shape)}; {name} can hide keys from all queries alike: "
            "(batch, 1, 1, keys)"
        )
    if causal and T not in (1, S):
        raise ValueError(f"{name} is causal for T = S or T = 1 only, not {T} queries of {S} keys")


def _four(mask: Tensor) -> Tensor:
    """Give a mask that broadcasts its four dimensions."""
    return mask.reshape((1,) * (4 - mask.dim()) + mask.shape)


def _over_keys(keep: Tensor) -> Tensor:
    """(B, 1, 1, S) or less -> (B or 1, 1, S, 1): one flag a key."""
    return _four(keep).transpose(-2, -1)


def _rows_of(mask: Tensor | None, rows: slice) -> Tensor | None:
    """Cut a mask to some of the queries, where it tells them apart."""
    if mask is None or _four(mask).shape[2] == 1:
        return mask
    return _four(mask)[:, :, rows]
