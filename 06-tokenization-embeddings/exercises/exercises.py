"""Exercises of topic 06, in order of difficulty. Grade yourself:

    pytest 06-tokenization-embeddings/exercises

Replace each `raise NotImplementedError` by your answer, and each `...` by a number. What you leave
untouched counts as not attempted. Hints stand at the end of the docstrings, the gentlest first;
read one, try again, then read the next. `solutions.py` explains why, not only what.

Letters: V vocabulary, D width of a vector, B batch, T tokens, n characters of a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from unigram import Unigram

# 1 · implement ------------------------------------------------------------------------------------


def utf8(code_point: int) -> bytes:
    """The UTF-8 form of one code point, from 0 to 0x10FFFF, without `str.encode`.

    Below 0x80 one byte, 0xxxxxxx; below 0x800 two, 110xxxxx 10xxxxxx; below 0x10000 three,
    1110xxxx and twice 10xxxxxx; else four, 11110xxx and three times 10xxxxxx.

    Raises: ValueError for a number outside the range, and for the surrogates 0xD800 to 0xDFFF.

    Hints: (a) Six bits at a time: `code_point & 0x3F` and `code_point >> 6`. (b) The last byte is
    0x80 plus the lowest six bits. (c) The first byte is what is left, plus 0xC0, 0xE0 or 0xF0.
    """
    raise NotImplementedError


# 2 · implement ------------------------------------------------------------------------------------


def most_frequent_pair(words: Mapping[tuple[str, ...], int]) -> tuple[str, str]:
    """One step of BPE: the most frequent pair of neighbours in words with their counts.

    Of equally frequent pairs, the smaller one as Python compares tuples of strings.

    Example: {("l", "o", "w"): 5, ("l", "o", "t"): 2} -> ("l", "o"), which occurs 7 times.

    Hints: (a) `Counter` and `zip(word, word[1:])`. (b) `min` with a key of (-count, pair).
    """
    raise NotImplementedError


# 3 · implement ------------------------------------------------------------------------------------


def apply_merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """The word after one merge, from the left: ("a", "a", "a") with ("a", "a") -> ("aa", "a").

    Hints: (a) Walk with an index; step by two after a merge. (b) Test it on "aaaa" and "aaa".
    """
    raise NotImplementedError


# 4 · derive ---------------------------------------------------------------------------------------

# A model has 12 blocks of width 768 (N = 12 · 12 · 768² weights in its blocks' matrices) and an
# output layer of V · 768. Leave attention's own FLOPs aside, so that a token costs 6 (N + V D).
# With V = 32,768 a token holds 4.0 bytes of text on average, with V = 131,072 it holds 4.6.

FLOPS_PER_BYTE_SMALL: float = ...  # type: ignore[assignment]  # with V = 32,768
FLOPS_PER_BYTE_LARGE: float = ...  # type: ignore[assignment]  # with V = 131,072
# How large must N be, at the same D, for the two vocabularies to cost the same for each byte?
BREAK_EVEN_WEIGHTS: float = ...  # type: ignore[assignment]


# 5 · implement ------------------------------------------------------------------------------------


def forward_probability(word: str, pieces: Mapping[str, float]) -> float:
    """The probability of a word under a Unigram model: the sum over all its cuts.

    Args: pieces: piece -> probability (not its logarithm).
    Returns: 0.0 for a word that cannot be cut into pieces, 1.0 for the empty word.

    Time: n times the length of the longest piece. Listing the cuts will not finish.

    Hints: (a) alpha[0] = 1. (b) alpha[j] is a sum over where the last piece begins.
    """
    raise NotImplementedError


# 6 · debug ----------------------------------------------------------------------------------------


def viterbi(word: str, scores: Mapping[str, float]) -> list[str]:
    """The best cut of a word, by log-probabilities. This one has two bugs: words come out wrong,
    and not always. Find both and repair them. There is always some cut.

    Hints: (a) Try a word whose best last piece is not its longest last piece. (b) What is best[0]
    compared with, and what does a score of -5 look like to it? (c) In which order are the pieces
    found when you walk backwards?
    """
    raise NotImplementedError  # repair what follows, and take this line out
    best = [0.0] * (len(word) + 1)
    back = [0] * (len(word) + 1)
    for end in range(1, len(word) + 1):
        for start in range(end):
            piece = word[start:end]
            if piece in scores and best[start] + scores[piece] > best[end]:
                best[end] = best[start] + scores[piece]
                back[end] = start
    pieces = []
    place = len(word)
    while place > 0:
        pieces.append(word[back[place] : place])
        place = back[place]
    return pieces


# 7 · derive ---------------------------------------------------------------------------------------

# Skip-gram with k = 4 and noise in proportion to the counts. In a text of 1,000,000 pairs, the word
# w is the centre of 2,000, the word c is the company in 5,000, and both together are a pair 400
# times. A word d is the company in 10,000 pairs and never with w.

SCORE: float = ...  # type: ignore[assignment]  # to what does v_w · u_c converge?
# And toward what does v_w · u_d go, if nothing stops it: float("inf"), 0.0 or float("-inf")?
LIMIT: float = ...  # type: ignore[assignment]


# 8 · implement ------------------------------------------------------------------------------------


def skip_gram_gradient(
    own: NDArray[np.float64], context: NDArray[np.float64], noise: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The gradient of -ln σ(v·u) - Σ ln σ(-v·u_i) with respect to v.

    Args: own (D,), v; context (D,), u; noise (k, D), the u_i. Returns: (D,).

    Hints: (a) d ln σ(x) / dx = 1 - σ(x). (b) Toward the context, away from the noise.
    """
    raise NotImplementedError


# 9 · predict --------------------------------------------------------------------------------------

# A byte-level BPE is trained on English prose with V = 4,096. Commit to a number before you try.
# For each text: how many tokens does it become, as a share of its bytes? Write "few" for less than
# a half, "many" for more than nine tenths, "between" otherwise.

ENGLISH: str = ...  # type: ignore[assignment]  # "The value of the expression is returned."
GREEK: str = ...  # type: ignore[assignment]  # "Η τιμή της έκφρασης επιστρέφεται."
DIGITS: str = ...  # type: ignore[assignment]  # "8270164935187204"


# 10 · extend --------------------------------------------------------------------------------------


def fewest_pieces(word: str, vocab: Sequence[str]) -> list[str]:
    """A cut of the word into the smallest number of pieces of a WordPiece vocabulary.

    Pieces that do not begin the word stand with "##" in front, in the vocabulary and in what you
    return. Of cuts with equally few pieces, any. Return ["[UNK]"] where there is no cut.

    Greedy longest match fails twice: it takes more pieces than it must, and it gives up on words
    that can be cut. The bar: never more pieces than the greedy encoder, and no [UNK] where there
    is a cut. Words are long; listing all cuts is too slow.

    Hints: (a) It is Viterbi with a cost of one for each piece. (b) Which prefix does a piece at
    place 0 have, and which one elsewhere?
    """
    raise NotImplementedError


# 11 · extend --------------------------------------------------------------------------------------


def entropy_of_cuts(word: str, model: Unigram) -> float:
    """The entropy, in nats, of the distribution over a word's cuts that subword regularisation
    draws from at temperature 1. 0 where there is one cut.

    Without listing the cuts. `model.edges`, `model.forward`, `model.expected_counts` and
    `model.log_probability` are yours to use.

    Hints: (a) H = -Σ q(x) ln q(x) with q(x) = P(x) / P(w). (b) ln P(x) is a sum over the cut's
    pieces, so its mean needs only each piece's expected count. (c) H = ln P(w) - Σ n(x) ln p(x).
    """
    raise NotImplementedError
