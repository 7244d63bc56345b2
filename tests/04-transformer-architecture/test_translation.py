"""Parallel text, the recipe, spelled-out numbers, and a translator that learns."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from number_words import LARGEST_NUMBER, english_number, german_number, number_pairs
from transformer import Transformer
from translation import (
    ParallelText,
    paper_rate,
    score_translations,
    train_transformer,
    train_with_adam,
    translate_words,
)

PAIRS = [(["a", "b"], ["x", "y"]), (["c"], ["z"]), (["b", "a", "a"], ["y"])]


def text():
    return ParallelText(PAIRS, [(["a", "b"], ["x", "y"]), (["a", "c"], ["x", "q"])])


@pytest.mark.parametrize(
    ("number", "english", "german"),
    [
        (0, "zero", "null"),
        (1, "one", "eins"),
        (21, "twenty one", "ein und zwanzig"),
        (30, "thirty", "dreißig"),
        (101, "one hundred one", "ein hundert eins"),
        (1001, "one thousand one", "ein tausend eins"),
        (2047, "two thousand forty seven", "zwei tausend sieben und vierzig"),
        (
            312_417,
            "three hundred twelve thousand four hundred seventeen",
            "drei hundert zwölf tausend vier hundert siebzehn",
        ),
    ],
)
def test_numbers_are_spelled(number, english, german):
    assert " ".join(english_number(number)) == english
    assert " ".join(german_number(number)) == german


@given(st.integers(0, LARGEST_NUMBER))
def test_a_number_can_be_read_back(number):
    """The words determine the number, in both languages."""
    words = english_number(number)
    values = {" ".join(english_number(n)): n for n in range(100)}

    def below_thousand(part):
        if "hundred" in part:
            i = part.index("hundred")
            return 100 * values[part[0]] + below_thousand(part[i + 1 :])
        return values[" ".join(part)] if part else 0

    if "thousand" in words:
        i = words.index("thousand")
        read = 1000 * below_thousand(words[:i]) + below_thousand(words[i + 1 :])
    else:
        read = below_thousand(words)
    assert read == number
    german = german_number(number)
    assert german.count("tausend") == words.count("thousand")
    assert german.count("hundert") == words.count("hundred")
    assert (german[-1] == "eins") == (number % 100 == 1)


def test_pairs_differ_and_grow():
    pairs = number_pairs(300, seed=4)
    assert len({tuple(source) for source, _ in pairs}) == 300
    assert number_pairs(100, seed=4) == pairs[:100]
    assert number_pairs(100, seed=5) != pairs[:100]


@pytest.mark.parametrize("wrong", [-1, LARGEST_NUMBER + 1])
def test_numbers_out_of_range(wrong):
    for spell in (english_number, german_number):
        with pytest.raises(ValueError, match=f"got {wrong}"):
            spell(wrong)
    with pytest.raises(ValueError, match="got 0"):
        number_pairs(0)


def test_batch_is_shifted_by_one():
    """The decoder reads BEGIN w1 … wn and says w1 … wn END; padding is left out of the loss."""
    parallel = text()
    src, reads, says = parallel.batch(PAIRS)
    assert src.shape == (3, 3)
    assert reads.shape == says.shape == (3, 3)
    assert reads[:, 0].tolist() == [parallel.begin_id] * 3
    for row, (source, target) in enumerate(PAIRS):
        n = len(target)
        assert parallel.target.decode(reads[row, 1 : n + 1]) == target
        assert parallel.target.decode(says[row, :n]) == target
        assert says[row, n] == parallel.end_id
        assert says[row, n + 1 :].tolist() == [-100] * (2 - n)
        assert parallel.source.decode(src[row, : len(source)]) == source
        assert src[row, len(source) :].tolist() == [parallel.pad_id] * (3 - len(source))


def test_batches_cover_the_text():
    parallel = text()
    stream = parallel.batches(batch_size=2, seed=0)
    sizes = sorted(len(next(stream)[0]) for _ in range(2))
    assert sizes == [1, 2]


def test_unseen_sentences_are_known():
    parallel = text()
    assert parallel.is_seen(["a", "b"])
    assert not parallel.is_seen(["a", "c"])


def test_paper_rate():
    """Equation 3 with the paper's peak."""
    D, warmup = 512, 4000
    for step in (1, 77, 4000, 4001, 100_000):
        expected = D**-0.5 * min(step**-0.5, step * warmup**-1.5)
        found = paper_rate(step, peak=(D * warmup) ** -0.5, warmup=warmup)
        assert found == pytest.approx(expected)
    assert paper_rate(5, peak=0.1, warmup=0) == 0.1
    with pytest.raises(ValueError, match="step must be at least 1"):
        paper_rate(0, peak=1.0, warmup=1)


def test_adam_follows_the_rate():
    """Adam's first step moves a weight by the rate, whatever its gradient's size."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    losses = train_with_adam(
        model,
        lambda m, x: (m(x) - 300.0).square().sum(),
        iter([(torch.ones(1, 1),)]),
        steps=1,
        rate=lambda step: 0.25 * step,
        clip=None,
    )
    assert losses == [90_000.0]
    assert float(model.weight.detach()) == pytest.approx(0.25, rel=1e-4)
    assert not model.training


def test_translator_learns():
    """A few seconds are enough for numbers below 1,000 that it has not seen."""
    pairs = [(english_number(n), german_number(n)) for n in range(1000)]
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).tolist()
    parallel = ParallelText([pairs[i] for i in order[100:]], [pairs[i] for i in order[:100]])
    torch.manual_seed(0)
    model = Transformer(
        len(parallel.source), len(parallel.target), 32, 4, 1, 1, 64, dropout=0.0, max_seq_len=32
    )
    losses = train_transformer(model, parallel, steps=160, batch_size=48, peak=5e-3, warmup=40)
    assert losses[-1] < losses[0] / 2
    score = score_translations(model, parallel)
    assert score.bleu > 80
    assert score.unseen == 100
    assert score.exact == score.exact_unseen > 0.7


def test_order_of_sources_does_not_matter():
    """Batches are sorted by length inside; answers come back in the order of the questions."""
    parallel = text()
    torch.manual_seed(1)
    model = Transformer(7, 7, 16, 2, 1, 1, 32, dropout=0.0, max_seq_len=64).eval()
    sources = [["a", "b", "c"], ["a"], ["b", "a"], ["c", "c", "a", "b"]]
    together = translate_words(model, parallel, sources, batch_size=3)
    alone = [translate_words(model, parallel, [source])[0] for source in sources]
    # A source alone may be as long as its own length + 50, in a batch as the longest's.
    for one, other in zip(together, alone, strict=True):
        assert one[: len(other)] == other


def test_refuses():
    with pytest.raises(ValueError, match="got 0 and 3"):
        ParallelText([], PAIRS)


def test_no_unseen_is_not_a_number():
    parallel = ParallelText(PAIRS, PAIRS)
    model = Transformer(7, 7, 8, 2, 1, 1, 8, max_seq_len=64).eval()
    assert math.isnan(score_translations(model, parallel).exact_unseen)
