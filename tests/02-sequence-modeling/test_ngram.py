"""Kneser-Ney: against its definition, by hand, and as a distribution."""

import math
from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ngram import NgramModel, modified_discounts
from sequence_data import Vocabulary


def by_definition(ids, order, vocab_size, history, symbol):
    """The formula word for word, with loops over everything."""
    ids = list(ids)

    def raw(gram):
        return sum(ids[i : i + len(gram)] == gram for i in range(len(ids)))

    def count(gram, k):
        if k == order:
            return raw(gram)
        left = {tuple(ids[i - 1 : i]) for i in range(len(ids)) if ids[i : i + k] == gram}
        return len(left)

    def p(k, history):
        if k == 0:
            return 1 / vocab_size
        context = history[len(history) - (k - 1) :]
        lower = p(k - 1, history)
        grams = {tuple(ids[i : i + k]) for i in range(len(ids) - k + 1)}
        counts = {gram: count(list(gram), k) for gram in grams}
        d = (0.0, *modified_discounts(Counter(counts.values())))
        own = {g[-1]: c for g, c in counts.items() if list(g[:-1]) == context}
        if not own:
            return lower
        total = sum(own.values())
        c = own.get(symbol, 0)
        backoff = sum(d[min(x, 3)] for x in own.values()) / total
        return max(c - d[min(c, 3)], 0) / total + backoff * lower

    return p(min(order, len(history) + 1), list(history))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_it_is_the_definition(order):
    random = Random(order)
    ids = [min(int(random.expovariate(0.7)), 5) for _ in range(150)]
    model = NgramModel(ids, order=order, vocab_size=8)
    for _ in range(25):
        history = [random.randrange(6) for _ in range(random.randrange(6))]
        symbol = random.randrange(8)
        expected = by_definition(ids, order, 8, history, symbol)
        assert model.distribution(history)[symbol] == pytest.approx(expected, rel=1e-9)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=80),
    st.lists(st.integers(0, 9), max_size=9),
    st.integers(1, 5),
)
@settings(max_examples=80, deadline=None)
def test_it_is_a_distribution(ids, history, order):
    p = NgramModel(ids, order=order, vocab_size=10).distribution(history)
    assert p.sum() == pytest.approx(1, abs=1e-9)
    assert (p > 0).all() or len(set(ids)) <= 10
    assert (p >= 0).all()


def test_nats_are_the_distributions_along_the_text():
    random = Random(3)
    ids = [random.randrange(5) for _ in range(300)]
    model = NgramModel(ids[:200], order=4, vocab_size=6)
    held_out = ids[200:]
    slow = sum(-math.log(model.distribution(held_out[:i])[s]) for i, s in enumerate(held_out))
    assert model.nats(held_out) == pytest.approx(slow, rel=1e-9)


def test_discounts_by_hand():
    """n1 = 6, n2 = 3, n3 = 2, n4 = 1: Y = 1/2, D1 = 1/2, D2 = 1, D3 = 2."""
    found = modified_discounts(Counter({1: 6, 2: 3, 3: 2, 4: 1}))
    assert found == pytest.approx((0.5, 1.0, 2.0))


def test_a_bigram_by_hand():
    """The README's example: "abracadabra", order 2, five letters."""
    ids = ["abcdr".index(letter) for letter in "abracadabra"]
    model = NgramModel(ids, order=2, vocab_size=5)
    # After a: b twice, c once, d once. Pairs: ab 2, br 2, ra 2, ac ca ad da 1, so n1 = 4, n2 = 3.
    y = 4 / (4 + 2 * 3)
    d1, d2 = 1 - 2 * y * 3 / 4, 1.0  # n3 = 0: D2 falls back to 2 / 2
    assert model.discounts[1][:2] == pytest.approx((d1, d2))
    assert (d1, d2) == pytest.approx((0.4, 1.0))
    backoff = (2 * d1 + d2) / 4
    lower = model.distribution([])
    p = model.distribution([0])
    assert p[1] == pytest.approx((2 - d2) / 4 + backoff * lower[1])
    assert p[2] == pytest.approx((1 - d1) / 4 + backoff * lower[2])
    assert p[4] == pytest.approx(backoff * lower[4])
    assert backoff == pytest.approx(0.45)
    assert lower.tolist() == pytest.approx([0.4, 0.15, 0.15, 0.15, 0.15])
    assert p[[1, 4]].tolist() == pytest.approx([0.3175, 0.0675])


def test_a_frequent_word_with_one_predecessor_is_not_expected_elsewhere():
    text = "san francisco " * 20 + "the cat a dog one cat two dog the dog a cat my cat"
    vocabulary = Vocabulary.build([text.split()])
    model = NgramModel(vocabulary.encode(text.split()), order=2, vocab_size=len(vocabulary))
    p = model.distribution([vocabulary.id("<unk>")])
    assert p[vocabulary.id("cat")] > p[vocabulary.id("francisco")]


def test_longer_contexts_help_on_a_text_that_has_them():
    text = b"the quick brown fox jumps over the lazy dog. " * 30
    bits = [NgramModel(text, order=n, vocab_size=256).nats(text) for n in (1, 2, 3, 5)]
    assert bits == sorted(bits, reverse=True)


def test_parameters_are_counted():
    model = NgramModel([0, 1, 0, 1, 0], order=2, vocab_size=2)
    # Order 1: one context with two symbols. Order 2: two contexts with one each.
    assert model.num_parameters == (1 + 2) + (1 + 1) + (1 + 1)


def test_the_coding_step_is_the_distribution():
    model = NgramModel(b"abcabcabd", order=3, vocab_size=256)
    p, state = model.coding_step(None, None)
    np.testing.assert_array_equal(p, model.distribution([]))
    for i, byte in enumerate(b"abca"):
        p, state = model.coding_step(state, byte)
        np.testing.assert_array_equal(p, model.distribution(list(b"abca"[: i + 1])))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="order must be"):
        NgramModel([1], order=0, vocab_size=3)
    with pytest.raises(ValueError, match="must lie in"):
        NgramModel([3], order=1, vocab_size=3)
    with pytest.raises(ValueError, match="at least one"):
        NgramModel([], order=1, vocab_size=3)
    with pytest.raises(ValueError, match="vocab_size"):
        NgramModel([1], order=1, vocab_size=0)
