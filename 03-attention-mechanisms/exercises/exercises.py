"""Exercises of topic 03, in order of difficulty. Grade yourself:

    pytest 03-attention-mechanisms/exercises

Replace each `raise NotImplementedError` by your answer, and each `...` by a number. What you leave
untouched counts as not attempted. Hints stand at the end of the docstrings, the gentlest first;
read one, try again, then read the next. `solutions.py` explains why, not only what.

Letters: B batch, T queries, S keys, D model width, H heads, G key/value heads, K head width.
"""

from __future__ import annotations

from torch import Tensor

from attention import MultiHeadAttention

# 1 · implement ------------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √K) v, for one head and one sequence.

    Args: q (T, K), k (S, K), v (S, V). Returns: (T, V).

    Hints: (a) Three lines: scores, weights, mixture. (b) Over which dimension do weights sum to
    one? A query's weights are spread over keys. (c) `softmax(dim=-1)`.
    """
    raise NotImplementedError


# 2 · implement ------------------------------------------------------------------------------------


def causal_keep(T: int, S: int) -> Tensor:
    """Who may look at whom, when the last of T queries stands at the last of S keys.

    Returns: bool (T, S), True where the key is no later than the query. With T = S it is the lower
    triangle; with T = 1 a row of True, as in decoding with a cache.

    Hints: (a) At which place among the keys does query t stand? (b) t + S - T. (c) Compare a
    column of query places with a row of key places; no loop is needed.
    """
    raise NotImplementedError


# 3 · derive ---------------------------------------------------------------------------------------

# On paper, then here. Entries are independent and have mean 0.
# Queries have entries of variance 4, keys of variance 9, and K = 64. What is the variance of q·k,
# and by what must it be multiplied so that the scores have variance 1?
VARIANCE: float = ...  # type: ignore[assignment]
SCALE: float = ...  # type: ignore[assignment]
# A layer has D = 4,096, H = 32 heads and G = 8 key/value heads, no biases. How many numbers does
# it learn, and how many bytes of keys and values does it keep for 8,192 tokens in bf16?
PARAMETERS: int = ...  # type: ignore[assignment]
CACHE_BYTES: int = ...  # type: ignore[assignment]
# How many pairs does a causal sliding window of 128 (itself included) allow in 1,024 tokens?
WINDOW_PAIRS: int = ...  # type: ignore[assignment]


# 4 · implement ------------------------------------------------------------------------------------


def multi_head(
    x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor, num_heads: int
) -> Tensor:
    """Causal multi-head self-attention from four matrices, without a loop over heads.

    Args: x (B, T, D); each matrix (D, D), used as x @ wᵀ; head h owns columns h·K to (h+1)·K of
    the projections. Returns: (B, T, D).

    Hints: (a) (B, T, D) -> (B, T, H, K) -> (B, H, T, K), and back the same way. (b) Exercise 1
    works on the last two dimensions of any tensor if you use `.mT`. (c) The mask of exercise 2,
    with -inf before the softmax.
    """
    raise NotImplementedError


# 5 · debug ----------------------------------------------------------------------------------------


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, T, D) -> (B, H, T, K): head h holds columns h·K to (h+1)·K of every position.

    The shapes are right, a model trains with it, and its heads mix positions: with a causal mask,
    it sees the future. Find the bug, mend it, and remove the first line.

    Hints: (a) Put `torch.arange(12.0).view(1, 3, 4)` in and print. (b) `view` never moves a number
    in memory. Which call does exchange two dimensions?
    """
    raise NotImplementedError  # remove this line
    B, T, D = x.shape
    return x.view(B, num_heads, T, D // num_heads)


# 6 · debug ----------------------------------------------------------------------------------------


def masked_weights(scores: Tensor, keep: Tensor) -> Tensor:
    """Softmax over the keys that may be seen; a row without any gives zeros.

    Args: scores (..., T, S), keep bool of that shape. Returns: weights; rows sum to 1 or to 0.

    This one hides the future and yet leaks it. One bug, two symptoms: a row's sum is wrong, and a
    hidden score still matters. Mend it without making a NaN (nor a NaN in the gradient), and remove
    the first line.

    Hints: (a) Raise a hidden score by 10 and watch a visible weight. (b) Hide before the softmax,
    not after. (c) A row of nothing but -inf is 0/0; fill with a large negative number instead and
    zero the hidden weights afterwards.
    """
    raise NotImplementedError  # remove this line
    return scores.softmax(dim=-1) * keep


# 7 · predict --------------------------------------------------------------------------------------

# Commit to each number before you run anything.
# All of 8 keys are equal, the query is anything: the first weight.
WEIGHT_OF_EQUALS: float = ...  # type: ignore[assignment]
# Weights are (0.7, 0.3). 5 is added to both scores: the first weight then.
WEIGHT_AFTER_SHIFT: float = ...  # type: ignore[assignment]
# Weights are (0.7, 0.3), the gradient at them is (1, 0): the gradient at the first score.
GRADIENT_AT_SCORE: float = ...  # type: ignore[assignment]
# The tokens before the last one are put in another order; attention is causal and knows no
# positions. By how much does the last position's output change?
CHANGE_AT_LAST: float = ...  # type: ignore[assignment]
# The length doubles: by what factor does the memory of the attention weights grow?
MEMORY_FACTOR: float = ...  # type: ignore[assignment]


# 8 · derive ---------------------------------------------------------------------------------------


def attention_gradients(
    q: Tensor, k: Tensor, v: Tensor, d_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients at q, k and v from that at the output, by formula and without autograd.

    Args: q (T, K), k (S, K), v (S, V) for one head, scale 1/√K, no mask; d_out (T, V).
    Returns: d_q, d_k, d_v in the shapes of q, k, v.

    Hints: (a) Go back through three steps: mixture, softmax, scores. (b) For C = A B, the
    gradients are dA = dC Bᵀ and dB = Aᵀ dC. (c) Softmax: a ⊙ (da - Σ a da), row by row.
    """
    raise NotImplementedError


# 9 · implement ------------------------------------------------------------------------------------


def merge_parts(
    out_1: Tensor, log_sum_1: Tensor, out_2: Tensor, log_sum_2: Tensor
) -> tuple[Tensor, Tensor]:
    """Join the attention over two halves of the keys into that over all of them.

    Each half gave its output (T, V) and log Σ exp(score) over its own keys (T,).
    Returns: the output over all keys and its log Σ exp(score). Scores may be in the thousands.

    Hints: (a) out_1 is Σ exp(score) v / exp(log_sum_1). What are the sums without the division?
    (b) The new log-sum is `torch.logaddexp`. (c) Each part counts with exp(its log-sum - new one),
    which never overflows.
    """
    raise NotImplementedError


# 10 · extend --------------------------------------------------------------------------------------


def window_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention to the `window` nearest keys, without ever making a T × T tensor.

    Args: q, k, v (B, H, T, K); T is a multiple of window. Returns: (B, H, T, K).

    The bar: equal to full attention with `sliding_window_mask(T, window)`, and no tensor on the
    way has more than 4 · B · H · T · max(window, K) elements.

    Hints: (a) Cut queries into blocks of `window`. Which keys can a block's queries see? Those of
    its own block and the one before. (b) Pad the keys with one block of zeros in front, then
    stack each block with its predecessor: (B, H, blocks, 2·window, K). (c) Within a block of
    queries, query i sees columns i+1 to i+window of the 2·window; the first block must not see
    the padding.
    """
    raise NotImplementedError


# 11 · extend --------------------------------------------------------------------------------------


def to_grouped(layer: MultiHeadAttention, num_kv_heads: int) -> MultiHeadAttention:
    """A layer with fewer key/value heads from a trained one, by averaging (Ainslie et al. 2023).

    Key and value heads that will serve one group are replaced by their mean; the rest is kept.
    The result is a starting point that a little more training repairs.

    The bar: where the heads of each group were equal, the output does not change at all; the
    original is untouched; biases are handled too.

    Hints: (a) `k_proj.weight` is (H·K, D): which rows are head h's? (b) View it as
    (G, H/G, K, D) and take a mean; which dimension? (c) Biases are the same without the D.
    """
    raise NotImplementedError
