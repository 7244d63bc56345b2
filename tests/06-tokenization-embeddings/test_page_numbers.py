"""The numbers that topic 06's README works out on the page, computed again."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter

import pytest

from bpe import train_bpe
from gpt import gpt_preset
from subword_model import count_words
from text_surfaces import BertText
from unigram import Unigram
from wordpiece import WordPiece, train_wordpiece

WORDS = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
TEXTS = [word for word, count in WORDS.items() for _ in range(count)]


def test_utf8_and_normal_forms():
    assert "é".encode() == b"\xc3\xa9"
    assert "€".encode() == b"\xe2\x82\xac"
    assert (ord("A"), ord("é"), ord("€")) == (65, 233, 8364)
    assert unicodedata.normalize("NFD", "é").encode() == b"e\xcc\x81"
    assert unicodedata.normalize("NFKC", "²ﬁ") == "2fi"


def test_bpe_by_hand():
    model = train_bpe(TEXTS, 256 + 5)
    assert [left + right for left, right in model.merges] == [b"es", b"est", b"lo", b"low", b"ew"]
    assert [model.pieces[id_] for id_ in model.encode("lowest")] == [b"low", b"est"]


def test_wordpiece_by_hand():
    counts = count_words(TEXTS, BertText())
    symbols: Counter[str] = Counter()
    for word, n in counts.items():
        symbols[word[0]] += n
        for character in word[1:]:
            symbols["##" + character] += n
    assert (symbols["##e"], symbols["##s"], symbols["w"], symbols["##i"]) == (17, 9, 3, 3)
    assert pytest.approx(0.059, abs=5e-4) == 9 / (17 * 9)
    likely = train_wordpiece(TEXTS, 1 + 10 + 8 + 1, rule="likelihood")
    assert likely.names[len(likely.vocab) - 1] == "wi"
    frequent = train_wordpiece(TEXTS, len(likely.vocab))
    assert frequent.names[len(frequent.vocab) - 1] == "##es"


def test_greedy_by_hand():
    pieces = ["[UNK]", "un", "##aff", "##able", "unaf", "##f"]
    model = WordPiece({piece: id_ for id_, piece in enumerate(pieces)})
    assert [model.names[id_] for id_ in model.encode("unaffable")] == ["unaf", "##f", "##able"]


def test_em_by_hand():
    p = {"a": 0.3, "b": 0.2, "c": 0.1, "ab": 0.2, "bc": 0.2}
    model = Unigram([(piece, math.log(share)) for piece, share in p.items()])
    assert math.exp(model.log_probability("abc")) == pytest.approx(0.086)
    shares = [0.006 / 0.086, 0.02 / 0.086, 0.06 / 0.086]
    assert shares == pytest.approx([0.070, 0.233, 0.698], abs=5e-4)
    counts = {model.names[id_]: n for id_, n in model.expected_counts("abc").items()}
    expected = [counts[piece] for piece in p]
    assert expected == pytest.approx([0.767, 0.070, 0.302, 0.233, 0.698], abs=5e-4)
    total = sum(expected)
    assert total == pytest.approx(2.070, abs=5e-4)
    new = [n / total for n in expected]
    assert new == pytest.approx([0.371, 0.034, 0.146, 0.112, 0.337], abs=5e-4)
    after = Unigram([(piece, math.log(share)) for piece, share in zip(p, new, strict=True)])
    assert math.exp(after.log_probability("abc")) == pytest.approx(0.143, abs=5e-4)


def test_shares_of_the_output_layer():
    gpt2 = gpt_preset("gpt2")
    assert 50_257 * 768 == 38_597_376
    assert 38_597_376 / gpt2.num_parameters == pytest.approx(0.31, abs=5e-3)
    # Llama 3 (2024), table 3: widths 4,096 and 16,384; 8.03 and 405.9 billion parameters.
    assert pytest.approx(0.13, abs=5e-3) == 2 * 128_256 * 4096 / 8.03e9
    assert pytest.approx(0.010, abs=5e-4) == 2 * 128_256 * 16_384 / 405.9e9
    assert pytest.approx(8.4e9, rel=0.01) == 8 * 2048 * 128_256 * 4


def test_self_check():
    assert pytest.approx(1.14) == (0.8 + 0.4) * 0.95
    assert pytest.approx(0.97, abs=5e-3) == (0.98 + 0.04) * 0.95
