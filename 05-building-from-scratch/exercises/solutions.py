"""Solutions of topic 05's exercises, and why they are what they are."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from gpt import GPT


def causal_mean(x: Tensor) -> Tensor:
    """The weights are a lower triangle whose rows sum to one: the shape of every causal attention.

    A loop or a cumulative sum gives the same numbers, but this form shows what attention will
    replace: the constants in the triangle.
    """
    triangle = torch.ones(x.shape[1], x.shape[1], dtype=x.dtype, device=x.device).tril()  # (T, T)
    return triangle / triangle.sum(dim=1, keepdim=True) @ x


def nucleus(probabilities: Tensor, p: float) -> Tensor:
    """A token belongs to the set when the tokens before it have not reached p yet.

    Asking instead whether the sum *including* it is at most p is the classic mistake: it leaves
    out the token that crosses p, and everything where one token alone is above p.
    """
    ordered, order = probabilities.sort(descending=True)
    before = ordered.cumsum(0) - ordered
    kept = torch.where(before < p, ordered, 0.0)
    result = torch.zeros_like(probabilities).scatter(0, order, kept)
    return result / result.sum()


_V, _T, _D, _L, _H = 50_257, 1024, 1024, 24, 16
# Embedding, positions, per block 4 D·D + 2 D·4D weights and 4D + 4D + D biases and two norms of 2D,
# and a last norm.
PARAMETERS = _V * _D + _T * _D + _L * (12 * _D**2 + 13 * _D) + 2 * _D
# Two (key and value) for each layer, head, width and position, two bytes each: 96 MiB.
CACHE_BYTES = 2 * _L * _H * (_D // _H) * _T * 2
# Two FLOPs a weight going forward and four going back; the embedding's lookup is no product.
FLOPS = 6 * (_V * _D + _L * 12 * _D**2)


def decode_step(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The last query sees everything, so there is no mask at all: it is the last row of the
    causal matrix, and that row is full.
    """
    keys, values = torch.cat((keys, k), dim=2), torch.cat((values, v), dim=2)  # (B, H, S + 1, K)
    weights = (q @ keys.mT / math.sqrt(q.shape[-1])).softmax(dim=-1)  # (B, H, 1, S + 1)
    return weights @ values, keys, values


def next_token_batch(tokens: Tensor, starts: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """The targets were the inputs. The model can see its input, so copying it is perfect and
    learns nothing. T + 1 tokens make T pairs.
    """
    windows = torch.stack([tokens[start : start + T + 1] for start in starts.tolist()])
    return windows[:, :-1], windows[:, 1:]


@torch.no_grad()
def greedy_with_cache(model: GPT, ids: Tensor, num_new: int) -> Tensor:
    """What is fed in is what the cache does not hold yet: everything at first, then the newest
    token (`[:, -1:]`; `[:, :1]` fed the first one again). And the logits that count are the last
    row's: during the prompt, row 0 says what follows its first token.
    """
    cache = model.new_cache(1)
    for _ in range(num_new):
        logits = model(ids[:, cache.length :], cache=cache)  # (1, T, V)
        ids = torch.cat((ids, logits[:, -1].argmax(dim=-1, keepdim=True)), dim=1)
    return ids


# ln V + σ²/2, from the mean of a log-normal; and D s² / 2 = 1/2 gives s = 1/√D.
LOSS_AT_STD_HALF = math.log(1_000) + 0.5**2 / 2
LOSS_AT_STD_ONE = math.log(50_000) + 1.0**2 / 2
EMBEDDING_STD = 1 / math.sqrt(768)


def split_fused_attention(weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Output columns are split first; then each part is turned over to (out, in). Transposing
    first and splitting the wrong dimension gives matrices of the right shape and wrong content
    wherever D columns happen to be D rows: only a comparison of logits finds that.
    """
    result = {}
    names = ("q_proj", "k_proj", "v_proj")
    for name, part, offset in zip(names, weight.chunk(3, dim=1), bias.chunk(3), strict=True):
        result[f"{name}.weight"] = part.T.clone(memory_format=torch.contiguous_format)
        result[f"{name}.bias"] = offset.clone()
    return result


def tied_bigram_gradient(embedding: np.ndarray, ids: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The product rule with one factor on each side: E as output matrix, then E as lookup table."""
    hidden = embedding[ids]  # (N, D)
    logits = hidden @ embedding.T  # (N, V)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    g = exponentials / exponentials.sum(axis=1, keepdims=True)
    g[np.arange(len(ids)), targets] -= 1.0
    g /= len(ids)
    gradient = g.T @ hidden  # every row, from the output layer
    np.add.at(gradient, ids, g @ embedding)  # only the rows that were read
    return gradient


def typical(logits: Tensor, mass: float) -> Tensor:
    """Exercise 2 with another order: closest to the expected surprise first."""
    log_p = logits.log_softmax(dim=-1)  # (B, V)
    p = log_p.exp()
    entropy = -(p * log_p).nan_to_num().sum(dim=-1, keepdim=True)  # (B, 1)
    order = (-log_p - entropy).abs().argsort(dim=-1)  # (B, V)
    ordered = p.gather(-1, order)
    before = ordered.cumsum(dim=-1) - ordered
    cut = torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, before >= mass)
    return logits.masked_fill(cut, -math.inf)


@torch.no_grad()
def continue_all(model: GPT, prompts: list[list[int]], num_new: int) -> list[list[int]]:
    """One call for all prompts, one for each further token. With the padding on the left the last
    column is every row's newest token, so the loop knows nothing of the rows' lengths.
    """
    longest = max(len(prompt) for prompt in prompts)
    rows = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    cache = model.new_cache(len(prompts), longest + num_new)
    cache.starts = torch.tensor([longest - len(prompt) for prompt in prompts])
    new = torch.tensor(rows)  # (B, T)
    chosen = []
    for _ in range(num_new):
        new = model(new, cache=cache, last_only=True)[:, -1].argmax(dim=-1, keepdim=True)  # (B, 1)
        chosen.append(new)
    return torch.cat(chosen, dim=1).tolist()
