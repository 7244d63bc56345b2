"""BLEU: how much of a translation also stands in its reference, counted in runs of words.

Papineni et al. 2002 (https://aclanthology.org/P02-1040), with the one smoothing that made scores
comparable (Post 2018, arXiv:1804.08771): `corpus_bleu` gives sacrebleu's number for text that is
already split into words (its `tokenize="none"`, `smooth_method="exp"`). The page's section
"BLEU, and what it hides" derives the formula.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

Sentence = str | Sequence[str]


@dataclass(frozen=True, kw_only=True)
class BleuScore:
    """A corpus' BLEU and what it was computed from.

    score: per cent, 0 to 100.
    precisions: per cent, one for each n from 1: clipped matches over n-grams written.
    brevity_penalty: 1 unless the hypotheses are shorter than their references.
    hypothesis_words, reference_words: lengths of the two corpora (nearest references).
    """

    score: float
    precisions: tuple[float, ...]
    brevity_penalty: float
    hypothesis_words: int
    reference_words: int


def ngram_counts(sentence: Sentence, order: int) -> Counter[tuple[str, ...]]:
    """How often each run of `order` words occurs.

    A string is split at white space; "a b a b" has the bigrams (a, b) twice and (b, a) once.
    """
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    words = _words(sentence)
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def corpus_bleu(
    hypotheses: Sequence[Sentence],
    references: Sequence[Sentence],
    *,
    max_order: int = 4,
    more_references: Sequence[Sequence[Sentence]] = (),
) -> BleuScore:
    """BLEU of a whole corpus, in per cent.

    Matches and lengths are summed over the corpus first and divided once: the mean of sentence
    scores is another number, and a worse one, since most single sentences lack a four-word match.

    Args:
        hypotheses, references: one sentence each, as a string of words parted by white space or
            as a list of words.
        max_order: longest run that is counted.
        more_references: further translations of the whole corpus, each as long as `references`.
            A match may come from any of them; the length nearest to the hypothesis' counts.

    Raises:
        ValueError: no sentences, corpora of unequal length, or max_order below 1.
        TypeError: one string where a corpus is wanted, or a sentence that is neither a string nor
            a list of words.
    """
    if max_order < 1:
        raise ValueError(f"max_order must be at least 1, got {max_order}")
    if not hypotheses:
        raise ValueError("a corpus needs at least one sentence; got none")
    streams = [references, *more_references]
    for stream in (hypotheses, *streams):
        if isinstance(stream, str | bytes):  # its letters would each pass for a sentence
            raise TypeError(f"a corpus is a list of sentences, got the single text {stream!r:.40}")
        if len(stream) != len(hypotheses):
            raise ValueError(
                f"{len(hypotheses)} hypotheses and {len(stream)} references: each hypothesis "
                "needs one"
            )
    matches, written = [0] * max_order, [0] * max_order
    hypothesis_words = reference_words = 0
    for hypothesis, *candidates in zip(hypotheses, *streams, strict=True):
        length = len(_words(hypothesis))
        hypothesis_words += length
        lengths = [len(_words(candidate)) for candidate in candidates]
        reference_words += min(lengths, key=lambda n: (abs(n - length), n))
        for order in range(1, max_order + 1):
            allowed: Counter[tuple[str, ...]] = Counter()
            for candidate in candidates:
                allowed |= ngram_counts(candidate, order)  # the larger count of the two
            counts = ngram_counts(hypothesis, order)
            matches[order - 1] += (counts & allowed).total()  # clipped: the smaller of the two
            written[order - 1] += counts.total()
    precisions = _smoothed(matches, written)
    penalty = 1.0
    if hypothesis_words < reference_words:
        penalty = math.exp(1 - reference_words / hypothesis_words) if hypothesis_words else 0.0
    score = 0.0
    if min(precisions) > 0:
        score = penalty * math.exp(math.fsum(map(math.log, precisions)) / max_order)
    return BleuScore(
        score=score,
        precisions=tuple(precisions),
        brevity_penalty=penalty,
        hypothesis_words=hypothesis_words,
        reference_words=reference_words,
    )


def _smoothed(matches: Sequence[int], written: Sequence[int]) -> list[float]:
    """Per cent for each order; the k-th order without a match counts as 1/2^k of a match.

    One missing four-gram would otherwise make the geometric mean, and so the whole score, zero. A
    corpus without one common word stays at zero.
    """
    precisions = [0.0] * len(matches)
    if not any(matches):
        return precisions
    halves = 1.0
    for i, (matched, total) in enumerate(zip(matches, written, strict=True)):
        if not total:  # every sentence is shorter than this
            break
        if not matched:
            halves /= 2
        precisions[i] = 100.0 * (matched or halves) / total
    return precisions


def _words(sentence: Sentence) -> list[str]:
    if isinstance(sentence, bytes | bytearray) or not isinstance(sentence, Sequence):
        raise TypeError(f"a sentence is a string or a list of words, got {type(sentence).__name__}")
    return sentence.split() if isinstance(sentence, str) else list(sentence)
