"""Answers to topic 06's exercises, with their reasons."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from unigram import Unigram

# 1 · implement


def utf8(code_point: int) -> bytes:
    # The first byte says how many there are, and every later one says that it is not the first.
    # That is why a stream may be cut anywhere and read on from the next beginning.
    if not 0 <= code_point <= 0x10FFFF or 0xD800 <= code_point <= 0xDFFF:
        raise ValueError(f"no character has the code point {code_point:#x}")
    if code_point < 0x80:
        return bytes([code_point])
    more = 1 if code_point < 0x800 else 2 if code_point < 0x10000 else 3
    tail = []
    for _ in range(more):
        tail.append(0x80 | code_point & 0x3F)
        code_point >>= 6
    lead = (0xC0, 0xE0, 0xF0)[more - 1] | code_point
    return bytes([lead, *reversed(tail)])


# 2 · implement


def most_frequent_pair(words: Mapping[tuple[str, ...], int]) -> tuple[str, str]:
    # Each distinct word is visited once, whatever its count: a corpus has far fewer distinct words
    # than words. The tie-break must be fixed, or two runs give two vocabularies.
    counts: Counter[tuple[str, str]] = Counter()
    for word, count in words.items():
        for pair in pairwise(word):
            counts[pair] += count
    return min(counts, key=lambda pair: (-counts[pair], pair))


# 3 · implement


def apply_merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    # The pairs of "aaa" overlap: two of them are counted, one can be merged. From the left is the
    # convention, and training and encoding must share it.
    merged: list[str] = []
    place = 0
    while place < len(word):
        if word[place : place + 2] == pair:
            merged.append(pair[0] + pair[1])
            place += 2
        else:
            merged.append(word[place])
            place += 1
    return tuple(merged)


# 4 · derive

# N = 84,934,656; V D = 25,165,824 and 100,663,296. A token costs 6 (N + V D); divide by its bytes.
_N, _D = 12 * 12 * 768**2, 768
FLOPS_PER_BYTE_SMALL = 6 * (_N + 32_768 * _D) / 4.0
FLOPS_PER_BYTE_LARGE = 6 * (_N + 131_072 * _D) / 4.6
# (N + v D) / 4.0 = (N + w D) / 4.6, so N (4.6 - 4.0) = D (4.0 w - 4.6 v): about 478 million
# weights. Above that the large vocabulary is cheaper for each byte, below the small one.
BREAK_EVEN_WEIGHTS = _D * (4.0 * 131_072 - 4.6 * 32_768) / (4.6 - 4.0)


# 5 · implement


def forward_probability(word: str, pieces: Mapping[str, float]) -> float:
    # The cuts of word[:end] fall into classes by where their last piece begins, and those of one
    # class share that piece's factor. So 2^(n-1) products become n times the longest piece.
    longest = max(map(len, pieces), default=0)
    alpha = [1.0] + [0.0] * len(word)
    for end in range(1, len(word) + 1):
        for start in range(max(0, end - longest), end):
            alpha[end] += alpha[start] * pieces.get(word[start:end], 0.0)
    return alpha[-1]


# 6 · debug


def viterbi(word: str, scores: Mapping[str, float]) -> list[str]:
    # Bug one: the unreached places began at 0, better than any log-probability, so that nothing
    # ever improved on them and back stayed 0. They must begin at minus infinity; only the empty
    # beginning is reached at no cost. Bug two: the walk finds the last piece first.
    best = [0.0] + [-math.inf] * len(word)
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
    return pieces[::-1]


# 7 · derive

# PMI = ln [p(w, c) / (p(w) p(c))] = ln [400 · 1,000,000 / (2,000 · 5,000)] = ln 40. Less ln 4 that
# is ln 10.
SCORE = math.log(10)
# A pair that never occurs is only ever seen as noise. Every step pushes its score down, and there
# is no score at which it would stop: PMI is minus infinity. Training for a finite time, and a
# width too small to give every pair its own score, are what keep it finite.
LIMIT = -math.inf


# 8 · implement


def skip_gram_gradient(
    own: NDArray[np.float64], context: NDArray[np.float64], noise: NDArray[np.float64]
) -> NDArray[np.float64]:
    # Each term is a logistic regression: (predicted - true) times the input. True is 1 for the
    # context and 0 for noise, the inputs are the other vectors.
    def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1 / (1 + np.exp(-x))

    return (sigmoid(own @ context) - 1) * context + sigmoid(noise @ own) @ noise


# 9 · predict

ENGLISH = "few"  # frequent words are one token each with their space: about four bytes a token
# Two bytes a letter and no merges that would join them: nearly a token a byte. Only a space before
# a word, or a lead byte that prose has seen in some sign, can be saved.
GREEK = "many"
# The language reference has numbers such as 1024 and 16, so that some pairs of digits are pieces;
# sixteen random digits meet a few of them. Place value has nothing to do with where they are cut.
DIGITS = "between"


# 10 · extend


def fewest_pieces(word: str, vocab: Sequence[str]) -> list[str]:
    # The same lattice with another sum: a cost of one for each edge, and minimum for maximum.
    # BERT's greedy rule is not this: it is faster, needs no table, and the model was trained on
    # its cuts, so a better encoder at inference time only would make the model worse.
    known = frozenset(vocab)
    longest = max(map(len, known), default=0)
    cost = [0.0] + [math.inf] * len(word)
    back = [0] * (len(word) + 1)
    for end in range(1, len(word) + 1):
        for start in range(max(0, end - longest), end):
            piece = word[start:end] if start == 0 else f"##{word[start:end]}"
            if piece in known and cost[start] + 1 < cost[end]:
                cost[end], back[end] = cost[start] + 1, start
    if math.isinf(cost[-1]):
        return ["[UNK]"]
    pieces: list[str] = []
    place = len(word)
    while place > 0:
        start = back[place]
        pieces.append(word[start:place] if start == 0 else f"##{word[start:place]}")
        place = start
    return pieces[::-1]


# 11 · extend


def entropy_of_cuts(word: str, model: Unigram) -> float:
    # H = -E[ln P(x) - ln P(w)] = ln P(w) - E[ln P(x)], and ln P(x) is a sum over pieces, so its
    # mean is linear in the expected counts that forward-backward already gives.
    mean = sum(
        count * model.scored_pieces[id_][1] for id_, count in model.expected_counts(word).items()
    )
    return max(0.0, model.log_probability(word) - mean)
