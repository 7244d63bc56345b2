"""Solutions of topic 04's exercises, and why they are what they are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def normalise(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`x.std()` divides by D - 1 and leaves eps outside the root: near enough to look right, and
    every published weight was trained with the other.
    """
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred / (variance + eps).sqrt() * weight + bias


def layer_norm_gradient(
    x: np.ndarray, weight: np.ndarray, gradient: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The incoming gradient without its parts along (1, …, 1) and along the normalised vector: a
    norm does not feel a shift or a stretch, so no gradient may ask for one.
    """
    centred = x - x.mean(axis=1, keepdims=True)
    sigma = np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps)
    normed = centred / sigma
    h = gradient * weight
    along = (h * normed).mean(axis=1, keepdims=True)
    dx = (h - h.mean(axis=1, keepdims=True) - normed * along) / sigma
    return dx, (gradient * normed).sum(axis=0), gradient.sum(axis=0)


_D, _F, _KV = 4096, 14_336, 8 * 128
# Queries and output D·D each, keys and values D·1024 each, three matrices D·F, two norms D: a
# block of Llama 3 8B.
_MATRICES = 2 * _D**2 + 2 * _D * _KV + 3 * _D * _F
BLOCK_PARAMETERS = _MATRICES + 2 * _D
# 4 T² D = 2 T · weights. With grouped heads and a gated layer the 6 D of the page no longer holds.
CROSSOVER = math.ceil(_MATRICES / (2 * _D))


def rotate(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """The module of this topic pairs i with i + K/2 because published weights do; the order of
    the coordinates is the only difference.
    """
    K = x.shape[-1]
    speeds = base ** (-torch.arange(0, K, 2, dtype=torch.float64) / K)  # (K/2,)
    angles = positions.double()[:, None] * speeds  # (T, K/2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2)  # (B, H, T, K)


def shift_matrix(n: int, D: int, base: float = 10000.0) -> np.ndarray:
    """sin(a + b) = sin a cos b + cos a sin b and cos(a + b) = cos a cos b - sin a sin b. That it
    does not depend on t is why a head can look for "n before me" everywhere.
    """
    matrix = np.zeros((D, D))
    for i in range(0, D, 2):
        angle = n * base ** (-i / D)
        cos, sin = math.cos(angle), math.sin(angle)
        matrix[i : i + 2, i : i + 2] = [[cos, sin], [-sin, cos]]
    return matrix


def post_norm_block(
    x: Tensor,
    attention: Callable[[Tensor], Tensor],
    feed_forward: Callable[[Tensor], Tensor],
    norms: Sequence[Callable[[Tensor], Tensor]],
) -> Tensor:
    """The first sublayer had no way around it; the second normalised the update and not the sum,
    and with the other sublayer's norm.
    """
    x = norms[0](x + attention(x))
    return norms[1](x + feed_forward(x))


def bleu_precision(hypotheses: list[list[str]], references: list[list[str]], n: int) -> float:
    """A set forgets how often a run occurs in the reference. The intersection of two counters
    takes the smaller count of each run: that is clipping.
    """
    matched = written = 0
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        has = Counter(tuple(reference[i : i + n]) for i in range(len(reference) - n + 1))
        runs = Counter(tuple(hypothesis[i : i + n]) for i in range(len(hypothesis) - n + 1))
        matched += (runs & has).total()
        written += runs.total()
    return matched / written


# All four precisions are 1: only the brevity penalty counts, e^(1 - 9/6).
SHORT_BLEU = 100 * math.exp(1 - 9 / 6)
# 16 + floor(16 · ln(40/16) / ln(128/16)) = 16 + floor(7.05).
BUCKET_OF_40 = 16 + math.floor(16 * math.log(40 / 16) / math.log(128 / 16))
# Slope 1/2, ten positions apart: e^(10/2).
ALIBI_FACTOR = math.exp(10 / 2)
# Variance 1 + 36.
LAST_NORM_DIVIDES_BY = math.sqrt(37)


def beam_search(
    step: Callable[[tuple[int, ...]], np.ndarray], *, end: int, num_beams: int, max_length: int
) -> tuple[list[int], float]:
    """A finished beam competes with live ones at every length, which is fair only because a live
    one can still lose probability and never gain any.
    """
    beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for _ in range(max_length):
        longer: list[tuple[float, tuple[int, ...]]] = []
        for total, ids in beams:
            if ids and ids[-1] == end:
                longer.append((total, ids))
                continue
            for token, log_p in enumerate(step(ids)):
                longer.append((total + float(log_p), (*ids, token)))
        beams = sorted(longer, key=lambda beam: -beam[0])[:num_beams]
        if all(ids[-1] == end for _, ids in beams):
            break
    total, ids = beams[0]
    return list(ids), total
