"""Exercises of topic 04, in order of difficulty. Grade yourself:

    pytest 04-transformer-architecture/exercises

Replace each `raise NotImplementedError` by your answer, and each `...` by a number. What you leave
untouched counts as not attempted. Hints stand at the end of the docstrings, the gentlest first;
read one, try again, then read the next. `solutions.py` explains why, not only what.

Letters: B batch, T positions, D model width, H heads, K head width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

# 1 · implement ------------------------------------------------------------------------------------


def normalise(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm over the last dimension, from means alone: (..., D) -> (..., D).

    Hints: (a) `keepdim=True`. (b) The variance is a mean over D, not over D - 1. (c) eps stands
    under the root.
    """
    raise NotImplementedError


# 2 · derive ---------------------------------------------------------------------------------------


def layer_norm_gradient(
    x: np.ndarray, weight: np.ndarray, gradient: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The backward pass of exercise 1, from the formula and without autograd.

    Args: x and gradient (= dL/dy) are (N, D), weight is (D,), all float64.
    Returns: (dL/dx (N, D), dL/dweight (D,), dL/dbias (D,)).

    Hints: (a) README, "Layer norm and its gradient". (b) The parameters serve all N rows, so their
    gradients are sums over them. (c) First h = gradient · weight; then two means over D.
    """
    raise NotImplementedError


# 3 · derive ---------------------------------------------------------------------------------------

# A decoder block (pre-norm, biases nowhere, RMS norms) with D = 4,096, H = 32 heads of 128, 8
# key/value heads of 128, and a gated feed-forward layer of width F = 14,336. On paper:

BLOCK_PARAMETERS: int = ...  # type: ignore[assignment]  # how many numbers does it learn?
CROSSOVER: int = ...  # type: ignore[assignment]  # at which T do 4 T² D FLOPs (scores and mean)
# equal those of the block's matrices, 2 for each weight and position? Rounded up.


# 4 · implement ------------------------------------------------------------------------------------


def rotate(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary positions with neighbouring pairs, as in the paper: x (B, H, T, K) -> same shape.

    Coordinates 2i and 2i + 1 form a pair, turned by positions · base^(-2i/K); positions is (T,).

    Hints: (a) `x[..., 0::2]` and `x[..., 1::2]` are (B, H, T, K/2). (b) A turn by a sends (x, y)
    to (x cos a - y sin a, x sin a + y cos a). (c) Angles are (T, K/2) and broadcast.
    """
    raise NotImplementedError


# 5 · implement ------------------------------------------------------------------------------------


def shift_matrix(n: int, D: int, base: float = 10000.0) -> np.ndarray:
    """The (D, D) matrix M with PE[t + n] = M PE[t] for sinusoidal encodings, for every t. D even.

    Hints: (a) It consists of 2 x 2 blocks on its diagonal. (b) README, "Sinusoids": the rotation
    identity. (c) Sine comes first in each pair, so the block is not the usual rotation matrix.
    """
    raise NotImplementedError


# 6 · debug ----------------------------------------------------------------------------------------


def post_norm_block(
    x: Tensor,
    attention: Callable[[Tensor], Tensor],
    feed_forward: Callable[[Tensor], Tensor],
    norms: Sequence[Callable[[Tensor], Tensor]],
) -> Tensor:
    """The 2017 encoder block: two sublayers, each followed by addition and norm.

    It runs, and deep stacks of it do not train. There are two bugs. Mend them, and remove the
    first line.

    Hints: (a) Where is the way around each sublayer? (b) Which norm belongs to which sublayer?
    """
    raise NotImplementedError  # remove this line
    x = norms[0](attention(x))
    return x + norms[0](feed_forward(x))


# 7 · debug ----------------------------------------------------------------------------------------


def bleu_precision(hypotheses: list[list[str]], references: list[list[str]], n: int) -> float:
    """The clipped precision of runs of n words over a corpus, between 0 and 1.

    It is right for most sentences, and too high for a few. Find the bug, mend it, and remove the
    first line. (What is counted twice?)

    Hints: (a) Try the hypothesis "the the the". (b) A run that the reference has once may be
    credited once. (c) The smaller of two counts.
    """
    raise NotImplementedError  # remove this line
    matched = written = 0
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        has = {tuple(reference[i : i + n]) for i in range(len(reference) - n + 1)}
        runs = [tuple(hypothesis[i : i + n]) for i in range(len(hypothesis) - n + 1)]
        matched += sum(run in has for run in runs)
        written += len(runs)
    return matched / written


# 8 · predict --------------------------------------------------------------------------------------

# Commit to these before you compute anything:

# The BLEU (per cent, to within 0.1) of "a b c d e f" against the reference "a b c d e f g h i":
SHORT_BLEU: float = ...  # type: ignore[assignment]
# T5's bucket (decoder, 32 buckets, max_distance 128) of a key 40 positions back:
BUCKET_OF_40: int = ...  # type: ignore[assignment]
# ALiBi, H = 8 heads: by what factor does the steepest head favour, all scores being equal, a key
# 2 positions back over one 12 positions back (to within 1 %)?
ALIBI_FACTOR: float = ...  # type: ignore[assignment]
# The stream of a fresh pre-norm model of 18 layers: the embedding has variance 1, each of the 36
# sublayers adds an independent 1. By what is a gradient divided at the last norm (to within 1 %)?
LAST_NORM_DIVIDES_BY: float = ...  # type: ignore[assignment]


# 9 · extend ---------------------------------------------------------------------------------------


def beam_search(
    step: Callable[[tuple[int, ...]], np.ndarray], *, end: int, num_beams: int, max_length: int
) -> tuple[list[int], float]:
    """Find a likely sequence: keep the `num_beams` likeliest beginnings at every length.

    Args:
        step: from a beginning (a tuple of ids, at first empty) to log-probabilities (V,).
        end: the id that finishes a sequence; it is the last of the ids returned, unless
            max_length came first. No length normalisation.
    Returns: (ids, log-probability) of the likeliest sequence found. A finished sequence keeps
    its place among the beams and is not extended.

    The bar: with one beam it is greedy search; with enough beams it finds the best sequence of
    all; a wider beam is not worse on the test's examples.

    Hints: (a) A beam is (log-probability, ids). (b) At each length, replace each unfinished beam
    by its V extensions, then keep the best num_beams of all. (c) Stop when all are finished.
    """
    raise NotImplementedError
