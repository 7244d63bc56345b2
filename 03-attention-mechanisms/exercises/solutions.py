"""Solutions of topic 03's exercises, and why they are what they are."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from attention import MultiHeadAttention


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The softmax runs over keys, the last dimension of (T, S): each query spends one unit of
    attention. Over queries, each key would hand one unit out, and an output could be anything.
    """
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1)  # (T, S)
    return weights @ v


def causal_keep(T: int, S: int) -> Tensor:
    """Query t stands at place t + S - T. `torch.ones(T, S).tril()` without the offset is the
    famous bug: right in training, where T = S, and wrong with a cache.
    """
    places = torch.arange(S - T, S)
    return torch.arange(S) <= places[:, None]


# Var(q·k) is the sum over K of Var(q) Var(k); the factor divides by its root.
VARIANCE = 64 * 4.0 * 9.0
SCALE = 1 / math.sqrt(64 * 4.0 * 9.0)
# Queries and output are D × D; keys and values D × G·K, with K = 128.
PARAMETERS = 2 * 4096 * 4096 + 2 * 4096 * (8 * 128)
CACHE_BYTES = 2 * 8 * 128 * 8192 * 2
# The first 128 queries see 1 to 128 keys, all later ones 128.
WINDOW_PAIRS = 128 * 129 // 2 + (1024 - 128) * 128


def multi_head(
    x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor, num_heads: int
) -> Tensor:
    """Heads are one more batch dimension: everything after the split is exercise 1."""
    q, k, v = (split_heads(x @ w.mT, num_heads) for w in (w_q, w_k, w_v))  # (B, H, T, K)
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # (B, H, T, T)
    scores = scores.masked_fill(~causal_keep(x.shape[1], x.shape[1]), -math.inf)
    heads = scores.softmax(dim=-1) @ v  # (B, H, T, K)
    return heads.transpose(1, 2).flatten(2) @ w_o.mT


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """The columns are split first, which memory allows as it stands; then two dimensions are
    exchanged. Viewing straight as (B, H, T, K) cuts the row of numbers into H pieces, so that head
    0 gets the first T/H positions whole.
    """
    B, T, D = x.shape
    return x.view(B, T, num_heads, D // num_heads).transpose(1, 2)


def masked_weights(scores: Tensor, keep: Tensor) -> Tensor:
    """Multiplying afterwards leaves the hidden scores in the denominator: rows sum to less than 1,
    and by how much tells about the future. And -inf in a whole row is 0/0, whose gradient is NaN
    even if a `where` hides the value; a finite filling never makes one.
    """
    filled = scores.masked_fill(~keep, torch.finfo(scores.dtype).min)
    return filled.softmax(dim=-1).masked_fill(~keep, 0.0)


WEIGHT_OF_EQUALS = 1 / 8  # equal scores, equal weights
WEIGHT_AFTER_SHIFT = 0.7  # the factor e⁵ cancels
GRADIENT_AT_SCORE = 0.7 * (1 - 0.7 * 1)  # a (da - Σ a da)
CHANGE_AT_LAST = 0.0  # a sum over a set has no order
MEMORY_FACTOR = 4.0


def attention_gradients(
    q: Tensor, k: Tensor, v: Tensor, d_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Back through the mixture, the softmax and the scores, each step two products or none."""
    scale = 1 / math.sqrt(q.shape[-1])
    a = (scale * q @ k.mT).softmax(dim=-1)  # (T, S)
    d_v = a.mT @ d_out
    d_a = d_out @ v.mT  # (T, S)
    d_z = a * (d_a - (a * d_a).sum(dim=-1, keepdim=True))  # (T, S)
    return scale * d_z @ k, scale * d_z.mT @ q, d_v


def merge_parts(
    out_1: Tensor, log_sum_1: Tensor, out_2: Tensor, log_sum_2: Tensor
) -> tuple[Tensor, Tensor]:
    """Undo each division, add, divide by the joint sum; done in logarithms, so that no
    exponential is larger than one. Ring attention and split decoding are this function.
    """
    log_sum = torch.logaddexp(log_sum_1, log_sum_2)  # (T,)
    share_1, share_2 = (log_sum_1 - log_sum).exp(), (log_sum_2 - log_sum).exp()
    return share_1[:, None] * out_1 + share_2[:, None] * out_2, log_sum


def window_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """A query reaches at most one block back, so every block needs two blocks of keys: T · 2w
    scores in place of T². Half of them are hidden, which is the price of regular shapes.
    """
    B, H, T, K = q.shape
    blocks = T // window

    def with_previous(x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, (0, 0, window, 0))  # (B, H, T + w, K)
        cut = padded.view(B, H, blocks + 1, window, K)
        return torch.cat((cut[:, :, :-1], cut[:, :, 1:]), dim=3)  # (B, H, blocks, 2w, K)

    queries = q.reshape(B, H, blocks, window, K)
    scores = queries @ with_previous(k).mT / math.sqrt(K)  # (B, H, blocks, w, 2w)
    row = torch.arange(window)[:, None]
    column = torch.arange(2 * window)
    near = (column > row) & (column <= row + window)  # (w, 2w)
    real = (torch.arange(blocks)[:, None, None] > 0) | (column >= window)  # (blocks, 1, 2w)
    weights = scores.masked_fill(~(near & real), -math.inf).softmax(dim=-1)
    return (weights @ with_previous(v)).reshape(B, H, T, K)


def to_grouped(layer: MultiHeadAttention, num_kv_heads: int) -> MultiHeadAttention:
    """Consecutive heads share, so a group's rows lie together and the mean is over one dimension.
    Averaging beats taking the first head: every head of the group keeps some of its old key.
    """
    grouped = copy.deepcopy(layer)
    for name in ("k_proj", "v_proj"):
        old = getattr(layer, name)
        new = nn.Linear(
            old.in_features, num_kv_heads * layer.head_dim, bias=old.bias is not None
        ).to(old.weight)
        heads = old.weight.detach().view(num_kv_heads, -1, layer.head_dim, old.in_features)
        with torch.no_grad():
            new.weight.copy_(heads.mean(dim=1).flatten(0, 1))
            if old.bias is not None:
                new.bias.copy_(old.bias.view(num_kv_heads, -1, layer.head_dim).mean(1).flatten())
        setattr(grouped, name, new)
    grouped.num_kv_heads = num_kv_heads
    return grouped
