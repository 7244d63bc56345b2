"""Grades `exercises.py`, or with `--solutions` `solutions.py`."""

from __future__ import annotations

import math
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch

from bpe import train_bpe
from corpora import load_corpus
from embeddings import skip_gram_loss
from tokenizer import Tokenizer
from unigram import Unigram
from wordpiece import WordPiece, train_wordpiece

PIECES = {"a": 0.3, "b": 0.2, "c": 0.1, "ab": 0.2, "bc": 0.2}


def all_cuts(word, known):
    for n in range(len(word)):
        for cuts in combinations(range(1, len(word)), n):
            parts = [word[i:j] for i, j in zip((0, *cuts), (*cuts, len(word)), strict=True)]
            if all(part in known for part in parts):
                yield parts


@pytest.mark.parametrize("code", [0, 0x41, 0x7F, 0x80, 0x7FF, 0x800, 0xFFFF, 0x10000, 0x10FFFF])
def test_1_utf8(answers, code):
    """the bytes are those of Python's own encoder, at every boundary of lengths."""
    assert answers.utf8(code) == chr(code).encode()


@pytest.mark.parametrize("code", [-1, 0x110000, 0xD800, 0xDFFF])
def test_1_utf8_refuses(answers, code):
    """what is no character has no form."""
    with pytest.raises(ValueError, match=r".+"):
        answers.utf8(code)


def test_2_pair(answers):
    """counts are weighted by the words' counts, and ties go to the smaller pair."""
    words = {("l", "o", "w"): 5, ("l", "o", "t"): 2, ("x", "y", "x", "y"): 3}
    assert answers.most_frequent_pair(words) == ("l", "o")
    assert answers.most_frequent_pair({("b", "c"): 2, ("a", "c"): 2}) == ("a", "c")


def test_3_merge(answers):
    """merges go from the left and do not overlap."""
    assert answers.apply_merge(("a", "a", "a"), ("a", "a")) == ("aa", "a")
    assert answers.apply_merge(("a",) * 4, ("a", "a")) == ("aa", "aa")
    assert answers.apply_merge(("l", "o", "w", "l", "o"), ("l", "o")) == ("lo", "w", "lo")
    assert answers.apply_merge(("b",), ("a", "a")) == ("b",)


def test_3_merges_are_a_bpe(answers):
    """with the pair of exercise 2, ten steps give the merges of `train_bpe`."""
    words = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
    model = train_bpe([word for word, n in words.items() for _ in range(n)], 256 + 8)
    state = {tuple(word): n for word, n in words.items()}
    made = []
    for _ in range(5):
        pair = answers.most_frequent_pair(state)
        made.append(pair)
        state = {answers.apply_merge(word, pair): n for word, n in state.items()}
    assert [(a.encode(), b.encode()) for a, b in made] == list(model.merges[:5])


def test_4_flops_per_byte(answers):
    """six for each weight a token is multiplied with, shared by the token's bytes."""
    small, large = 84_934_656 + 25_165_824, 84_934_656 + 100_663_296
    assert pytest.approx(1.5 * small, rel=1e-3) == answers.FLOPS_PER_BYTE_SMALL
    assert pytest.approx(6 / 4.6 * large, rel=1e-3) == answers.FLOPS_PER_BYTE_LARGE


def test_4_break_even(answers):
    """at that size both vocabularies cost the same for each byte."""
    n = answers.BREAK_EVEN_WEIGHTS
    assert (n + 32_768 * 768) / 4.0 == pytest.approx((n + 131_072 * 768) / 4.6, rel=1e-3)


@pytest.mark.parametrize("word", ["", "a", "abc", "abcab", "ca", "xa", "abcabcabc"])
def test_5_forward(answers, word):
    """the sum over all cuts."""
    want = sum(math.prod(PIECES[p] for p in cut) for cut in all_cuts(word, PIECES))
    assert answers.forward_probability(word, PIECES) == pytest.approx(want if word else 1.0)


def test_5_forward_is_fast(answers):
    """a word with more cuts than atoms in the world."""
    pieces = {"a": 0.5, "aa": 0.25}
    value = answers.forward_probability("a" * 400, pieces)
    assert 0 < value < 1


@pytest.mark.parametrize("word", ["a", "abc", "abcab", "bcbc", "aabbcc"])
def test_6_viterbi(answers, word):
    """the likeliest cut, in the order of the text."""
    scores = {piece: math.log(p) for piece, p in PIECES.items()}
    best = max(all_cuts(word, PIECES), key=lambda cut: sum(scores[p] for p in cut))
    found = answers.viterbi(word, scores)
    assert "".join(found) == word
    assert sum(scores[p] for p in found) == pytest.approx(sum(scores[p] for p in best))


def test_7_score(answers):
    """pointwise mutual information, shifted."""
    pmi = math.log(400 * 1_000_000 / (2_000 * 5_000))
    assert pmi - math.log(4) == pytest.approx(answers.SCORE, abs=1e-3)


def test_7_limit(answers):
    """what is only ever noise has no score at which the gradient is zero."""
    x = torch.tensor(float(answers.LIMIT), dtype=torch.float64, requires_grad=True)
    (-torch.nn.functional.logsigmoid(-x)).backward()
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_8_gradient(answers):
    """that of autograd."""
    random = np.random.default_rng(0)
    v, u, noise = random.normal(size=5), random.normal(size=5), random.normal(size=(3, 5))
    own = torch.tensor(v[None], requires_grad=True)
    skip_gram_loss(own, torch.tensor(u[None]), torch.tensor(noise[None])).backward()
    assert own.grad is not None
    np.testing.assert_allclose(answers.skip_gram_gradient(v, u, noise), own.grad[0].numpy())


@cache
def english() -> Tokenizer:
    texts = [d.text for d in load_corpus("stdlib") if not d.name.endswith(".py")]
    return Tokenizer.from_bpe(train_bpe(texts, 4096), ())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ENGLISH", "The value of the expression is returned."),
        ("GREEK", "Η τιμή της έκφρασης επιστρέφεται."),
        ("DIGITS", "8270164935187204"),
    ],
)
def test_9_lengths(answers, name, text):
    """what a BPE of the Python language reference does."""
    share = len(english().encode(text)) / len(text.encode())
    want = "few" if share < 0.5 else "many" if share > 0.9 else "between"
    assert getattr(answers, name) == want


def test_10_fewest_by_hand(answers):
    """where greedy is worse, and where it gives up."""
    vocab = ["[UNK]", "abc", "ab", "##d", "##e", "##cde", "abcd", "##ef", "##def"]
    assert answers.fewest_pieces("abcde", vocab) in (["abcd", "##e"], ["ab", "##cde"])
    assert answers.fewest_pieces("abcdef", vocab) in (["abc", "##def"], ["abcd", "##ef"])
    assert answers.fewest_pieces("abx", vocab) == ["[UNK]"]
    stuck = ["[UNK]", "ab", "a", "##bc"]  # greedy takes ab and cannot go on
    assert answers.fewest_pieces("abc", stuck) == ["a", "##bc"]


def test_10_never_more_than_greedy(answers):
    """on real words, and on one of a thousand characters."""
    texts = [d.text for d in load_corpus("stdlib", max_bytes=150_000)]
    model = train_wordpiece(texts, 800)
    words = sorted({word for text in texts for word in model.surface.words(text)})[::7]
    long = WordPiece(model.vocab, max_word_chars=5000)
    for word in [*words, "return" * 170]:
        greedy = [long.names[id_] for id_, _, _ in long.segment(word)]
        found = answers.fewest_pieces(word, list(model.vocab))
        assert len(found) <= len(greedy)
        assert found[0] == "[UNK]" or "".join(p.removeprefix("##") for p in found) == word


@pytest.mark.parametrize("word", ["a", "abc", "abcab", "abcabcabc"])
def test_11_entropy(answers, word):
    """that of the distribution over all cuts, listed."""
    model = Unigram([(piece, math.log(p)) for piece, p in PIECES.items()])
    shares = np.array([math.prod(PIECES[p] for p in cut) for cut in all_cuts(word, PIECES)])
    shares /= shares.sum()
    want = -(shares * np.log(shares)).sum()
    assert answers.entropy_of_cuts(word, model) == pytest.approx(want, abs=1e-9)
