"""Our BLEU against sacrebleu's, and its formula on paper."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bleu import corpus_bleu, ngram_counts

sentences = st.lists(st.sampled_from("abcd"), max_size=9).map(" ".join)


def theirs(hypotheses, *streams, max_order=4):
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="none", smooth_method="exp", max_ngram_order=max_order, force=True)
    return metric.corpus_score(list(hypotheses), [list(stream) for stream in streams])


def test_worked_example():
    """The page's example: matches 5 of 6, 3 of 5, 2 of 4, 1 of 3; 6 words against 6."""
    score = corpus_bleu(["the cat sat on the mat"], ["the cat sat on a mat"])
    # "the" stands twice in the hypothesis and once in the reference: clipped to one.
    assert score.precisions == pytest.approx((100 * 5 / 6, 100 * 3 / 5, 100 * 2 / 4, 100 / 3))
    assert score.brevity_penalty == 1.0
    expected = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert score.score == pytest.approx(expected)


def test_brevity_penalty():
    score = corpus_bleu(["a b c d"], ["a b c d e f"])
    assert score.precisions == (100.0,) * 4
    assert score.score == pytest.approx(100 * math.exp(1 - 6 / 4))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(sentences, sentences), min_size=1, max_size=6), st.integers(1, 5))
def test_equals_sacrebleu(pairs, max_order):
    hypotheses, references = zip(*pairs, strict=True)
    ours = corpus_bleu(hypotheses, references, max_order=max_order)
    other = theirs(hypotheses, references, max_order=max_order)
    assert ours.score == pytest.approx(other.score, abs=1e-9)
    assert ours.precisions == pytest.approx(tuple(other.precisions), abs=1e-9)
    assert ours.brevity_penalty == pytest.approx(other.bp, abs=1e-12)
    assert (ours.hypothesis_words, ours.reference_words) == (other.sys_len, other.ref_len)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(sentences, sentences, sentences), min_size=1, max_size=4))
def test_equals_sacrebleu_with_two_references(triples):
    hypotheses, first, second = zip(*triples, strict=True)
    ours = corpus_bleu(hypotheses, first, more_references=[second])
    assert ours.score == pytest.approx(theirs(hypotheses, first, second).score, abs=1e-9)


def test_words_and_strings_are_the_same():
    text = ["a b c d e", "b b a"]
    other = ["a b c d f", "b a"]
    split = corpus_bleu([t.split() for t in text], [t.split() for t in other])
    assert split == corpus_bleu(text, other)


def test_corpus_is_not_the_mean_of_sentences():
    hypotheses, references = ["a b c d", "x"], ["a b c d", "y"]
    single = [corpus_bleu([h], [r]).score for h, r in zip(hypotheses, references, strict=True)]
    assert single == [pytest.approx(100.0), 0.0]
    assert corpus_bleu(hypotheses, references).score > 80


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: corpus_bleu("the cat", ["the cat"]), "list of sentences, got the single text"),
        (lambda: corpus_bleu(["a"], "a"), "list of sentences"),
        (lambda: corpus_bleu(["a"], ["a"], more_references=["a"]), "list of sentences"),
        (lambda: corpus_bleu([b"a b"], [b"a b"]), "a string or a list of words, got bytes"),  # type: ignore
        (lambda: corpus_bleu([None], ["a"]), "got NoneType"),  # type: ignore
    ],
)
def test_a_text_is_not_a_corpus_and_bytes_are_not_words(call, says):
    """Letters and bytes would be counted as words, and the score would look like a score."""
    with pytest.raises(TypeError, match=says):
        call()


def test_counts():
    assert ngram_counts("a b a b", 2) == {("a", "b"): 2, ("b", "a"): 1}
    assert not ngram_counts("a", 2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: corpus_bleu([], []), "at least one sentence"),
        (lambda: corpus_bleu(["a"], []), "1 hypotheses and 0 references"),
        (lambda: corpus_bleu(["a"], ["a"], more_references=[["a", "b"]]), "and 2 references"),
        (lambda: corpus_bleu(["a"], ["a"], max_order=0), "max_order must be at least 1"),
        (lambda: ngram_counts("a", 0), "order must be at least 1"),
    ],
)
def test_refuses(call, says):
    with pytest.raises(ValueError, match=says):
        call()
