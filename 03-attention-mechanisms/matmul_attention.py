"""Attention as two matrix products, and the choice between that and the fused kernels.

PyTorch's fused kernels never hold the T×S weights: they compute them tile by tile and, in the
backward pass, once more. That wins where memory is the limit. Where the weights of a head fit
into a processor's cache it loses, since the matrix library multiplies faster than the kernel's
tiles do. Training on short sequences on a CPU is that case, above all in bf16.

`fast_attention` chooses by measured lengths; the course's models use it. README, "Back ends".
Letters as in `attention`, and R = H/G query heads to a key/value head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from attention import (
    _allowed,
    _check_masks,
    _check_query_key,
    _check_value,
    sdpa_attention,
)


def matmul_attention(
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
    """An `AttentionFn`: scores, softmax, mix, each for all heads at once, in the inputs' dtype.

    Query heads that share a key/value head become more queries of one head, so grouped keys are
    never repeated. B·H·T·S weights are held until the backward pass.
    Arguments, result and errors as in `AttentionFn`.
    """
    B, H, T, K = _check_query_key(q, k)
    _check_value(k, v)
    _, G, S, V = v.shape
    _check_masks(keep, bias, (B, H, T, S))
    allowed = _allowed(keep, causal, T, S, q.device)
    # A causal query sees at least the first key; only these can leave a row nothing to attend.
    empty_rows = keep is not None or bias is not None or (causal and T > S)
    if bias is not None:
        open_ = bias != -math.inf  # a bias of -inf forbids as well; NaN must not: it has to show
        allowed = open_ if allowed is None else allowed & open_
        bias = bias.masked_fill(~open_, 0.0).to(q.dtype)
    forbidden = None
    if allowed is not None:
        # The most negative number there is, and not -inf: a row of nothing else would be NaN. It
        # is added: filling the scores in would cost a pass backward, to zero what is zero.
        lowest = torch.finfo(q.dtype).min / 2
        forbidden = torch.zeros_like(allowed, dtype=q.dtype).masked_fill_(~allowed, lowest)

    # The factor goes to the queries: K numbers a row in place of the scores' S.
    q = q * (1.0 / math.sqrt(K) if scale is None else scale)
    q = q.reshape(B * G, H // G * T, K)  # (B·G, R·T, K)
    keys = k.reshape(B * G, S, K).transpose(1, 2)  # (B·G, K, S)
    if forbidden is not None and forbidden.shape == (T, S) and bias is None:
        scores = torch.baddbmm(forbidden.repeat(H // G, 1), q, keys)  # (B·G, R·T, S)
    else:
        scores = torch.bmm(q, keys).view(B, H, T, S)
        scores = scores if bias is None else scores + bias
        scores = scores if forbidden is None else scores + forbidden
    weights = scores.view(B, H, T, S).softmax(dim=-1)
    if allowed is not None and empty_rows:
        weights = weights.masked_fill(~allowed, 0.0)
    if dropout_p:
        weights = F.dropout(weights, dropout_p)
    weights = weights.view(B * G, H // G * T, S)
    return torch.bmm(weights, v.reshape(B * G, S, V)).view(B, H, T, V)


def fast_attention(
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
    """The faster of `matmul_attention` and `sdpa_attention` for these inputs.

    On a GPU, without gradients and on long sequences that is the fused kernel.
    Arguments, result and errors as in `AttentionFn`.
    """
    _check_query_key(q, k)
    _check_value(k, v)
    trains = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    attend = sdpa_attention
    if q.is_cpu and trains and k.shape[2] <= _longest(q.dtype):
        attend = matmul_attention
    return attend(q, k, v, keep=keep, bias=bias, causal=causal, scale=scale, dropout_p=dropout_p)


def _longest(dtype: torch.dtype) -> int:
    """Return up to how many keys training with `matmul_attention` is the faster, on a CPU.

    Measured against PyTorch 2.13's kernel on one Zen 5 core, heads 64 wide, forward and backward:
    bf16 2.7 times faster at 256 keys and 1.9 at 1024; fp32 1.7 and 0.8 where the setting sends
    products to oneDNN (`torch.set_float32_matmul_precision("medium")`), 0.94 where it does not.
    """
    if dtype.itemsize == 2:
        return 1024
    return 512 if dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium" else 0
