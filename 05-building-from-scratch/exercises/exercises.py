"""Exercises of topic 05, in order of difficulty. Grade yourself:

    pytest 05-building-from-scratch/exercises

Replace each `raise NotImplementedError` by your answer, and each `...` by a number. What you leave
untouched counts as not attempted. Hints stand at the end of the docstrings, the gentlest first;
read one, try again, then read the next. `solutions.py` explains why, not only what.

Letters: B batch, T positions, S keys so far, D model width, H heads, K head width, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gpt import GPT

# 1 · implement ------------------------------------------------------------------------------------


def causal_mean(x: Tensor) -> Tensor:
    """Each position's mean of itself and all positions before it, as one matrix product.

    This is step 2 of the construction, and attention with equal weights. No loop, no cumsum:
    build the (T, T) matrix of weights and multiply.

    Args: x (B, T, D). Returns: (B, T, D).

    Hints: (a) Row t of the matrix has t + 1 equal entries; what do they sum to? (b) `torch.tril`.
    (c) `A @ x` broadcasts A over the batch.
    """
    raise NotImplementedError


# 2 · implement ------------------------------------------------------------------------------------


def nucleus(probabilities: Tensor, p: float) -> Tensor:
    """Top-p: the probabilities of the smallest set of tokens that reaches p, renormalised.

    Tokens outside the set get 0. The set holds the likeliest tokens; it is the smallest one whose
    probabilities sum to at least p, so it always holds at least one.

    Args: probabilities (V,), summing to 1; 0 < p <= 1. Returns: (V,), summing to 1.

    Hints: (a) Sort in descending order. (b) A token belongs to the set when what comes *before* it
    has not reached p yet. (c) Undo the sort with `scatter`, or with the indices of the sort.
    """
    raise NotImplementedError


# 3 · derive ---------------------------------------------------------------------------------------

# GPT-2 medium: vocabulary 50,257, 1,024 positions, width 1,024, 24 layers, 16 heads, biases
# everywhere except in the output layer, which is tied to the embedding. On paper, then here:

PARAMETERS: int = ...  # type: ignore[assignment]  # how many numbers does it learn?
CACHE_BYTES: int = ...  # type: ignore[assignment]  # of keys and values for one sequence of 1,024, fp16
FLOPS: int = ...  # type: ignore[assignment]  # of one training step, per token, matrices only: 6 for each
# weight of a matrix that a token is multiplied with (the biases and norms are not matrices; the
# tied matrix counts once, as the output layer; looking up a row is free)


# 4 · implement ------------------------------------------------------------------------------------


def decode_step(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One new token's attention over a cache.

    Args:
        q, k, v: the new token's query, key and value, each (B, H, 1, K).
        keys, values: those of the S tokens before it, each (B, H, S, K); S may be 0.
    Returns: (the attention's output (B, H, 1, K), the new keys and the new values, each
    (B, H, S + 1, K)). The new token sees itself too.

    Hints: (a) What would the last row of full causal attention compute? (b) Does one query that
    stands last need a mask? (c) `torch.cat` along dimension 2, then softmax of q kᵀ/√K.
    """
    raise NotImplementedError


# 5 · debug ----------------------------------------------------------------------------------------


def next_token_batch(tokens: Tensor, starts: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """Windows of a token stream as (ids, targets), each (B, T): targets[b, t] follows ids[b, t].

    This runs, its loss falls to almost nothing, and the model that it trains writes one token for
    ever. Find the bug, mend it, and remove the first line.

    Args: tokens (N,) int64; starts (B,), where each window begins, all <= N - T - 1.

    Hints: (a) What would a model have to do to be right about these targets? (b) Print the first
    window of `torch.arange(20)`.
    """
    raise NotImplementedError  # remove this line
    windows = torch.stack([tokens[start : start + T] for start in starts.tolist()])  # (B, T)
    ids, targets = windows, windows.clone()
    return ids, targets


# 6 · debug ----------------------------------------------------------------------------------------


@torch.no_grad()
def greedy_with_cache(model: GPT, ids: Tensor, num_new: int) -> Tensor:
    """Continue (1, T) ids greedily by `num_new` tokens with a KV cache -> (1, T + num_new).

    It gives other tokens than decoding without a cache. There are two bugs. Mend both, and remove
    the first line.

    Hints: (a) What does the cache hold after the first call, and what is then fed in? (b) Which
    row of the logits belongs to the next token? (c) Compare `cache.length` with `ids.shape[1]`.
    """
    raise NotImplementedError  # remove this line
    cache = model.new_cache(1)
    for _ in range(num_new):
        logits = model(ids[:, :1] if cache.length else ids, cache=cache)  # (1, T, V)
        ids = torch.cat((ids, logits[:, 0].argmax(dim=-1, keepdim=True)), dim=1)
    return ids


# 7 · predict --------------------------------------------------------------------------------------

# A fresh model's logits are independent, normally distributed with mean 0. Commit to the mean loss
# (nats, against random targets, to within 0.02) before you run anything:

LOSS_AT_STD_HALF: float = ...  # type: ignore[assignment]  # standard deviation 0.5, vocabulary 1,000
LOSS_AT_STD_ONE: float = ...  # type: ignore[assignment]  # standard deviation 1.0, vocabulary 50,000
# and the standard deviation of an embedding table's entries (tied to the output layer, width 768,
# behind a norm that gives vectors of mean square 1) at which a fresh model starts half a nat above
# ln V (to within 1 %):
EMBEDDING_STD: float = ...  # type: ignore[assignment]


# 8 · implement ------------------------------------------------------------------------------------


def split_fused_attention(weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """GPT-2's published attention weights as three `nn.Linear`s.

    The checkpoint holds one matrix (D, 3·D), stored so that y = x @ weight + bias, whose columns
    are queries, then keys, then values. `nn.Linear` stores (out, in) and computes x @ weightᵀ.

    Returns: "q_proj.weight", "q_proj.bias" and the same for k_proj and v_proj: (D, D) and (D,),
    contiguous, sharing no memory with the input.

    Hints: (a) Which of its two dimensions is the output? (b) Split first, then transpose.
    """
    raise NotImplementedError


# 9 · derive ---------------------------------------------------------------------------------------


def tied_bigram_gradient(embedding: np.ndarray, ids: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The gradient of a tied bigram's loss, from the formula and without autograd.

    The model is z_t = E E[x_t] (the same table twice), the loss the mean of -ln softmax(z_t)[y_t].

    Args: embedding E (V, D) float64; ids x and targets y (N,). Returns: dL/dE, (V, D).

    Hints: (a) README, step 9, gives both terms. (b) g_t = softmax(z_t) - onehot(y_t), over N.
    (c) As output: sum of g_t E[x_t]ᵀ. (d) As input: E gets Eᵀ g_t in row x_t; a token that occurs
    twice gets both, which `np.add.at` does and `E[x] +=` does not.
    """
    raise NotImplementedError


# 10 · extend --------------------------------------------------------------------------------------


def typical(logits: Tensor, mass: float) -> Tensor:
    """Locally typical sampling (Meister et al. 2022): cut what is too likely as well.

    Human text is rarely the likeliest continuation; its surprise, -ln p, stays near its expected
    value, the entropy H. Keep the tokens whose surprise is closest to H: the smallest such set
    whose probabilities sum to at least `mass`; at least one token.

    Args: logits (B, V); 0 < mass < 1. Returns: (B, V) logits, -inf where a token is cut.

    The bar: equal to `transformers`' `TypicalLogitsWarper`.

    Hints: (a) H = -Σ p ln p. (b) Sort by |−ln p − H|, ascending. (c) Then it is exercise 2.
    """
    raise NotImplementedError


# 11 · extend --------------------------------------------------------------------------------------


def continue_all(model: GPT, prompts: list[list[int]], num_new: int) -> list[list[int]]:
    """Continue prompts of different lengths greedily, all at once: num_new tokens for each.

    The bar: the tokens are those that each prompt gets alone, and the model is called at most
    `num_new` times in all. Write it with `model.new_cache`, `cache.starts` and
    `model(ids, cache=cache)`, not with `text_generation`.

    Hints: (a) Pad on the left, so that all rows end in the same column. (b) `cache.starts` is how
    much each row was padded; the model takes positions and masks from it. (c) Any id will do as
    padding: nobody sees it.
    """
    raise NotImplementedError
