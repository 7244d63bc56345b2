"""WordPiece beside `tokenizers`: vocabulary, ids and offsets; and by hand."""

from __future__ import annotations

import copy
import unicodedata
from collections import Counter
from functools import cache
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from subword_model import count_words
from text_surfaces import BertText, ByteLevelText
from tokenizer_parity import library_texts, tricky_text
from wordpiece import BYTE_LEVEL_CONTINUES, CONTINUES, WordPiece, train_wordpiece

UNK = "[UNK]"


def reference_words(surface) -> tuple[object, object]:
    """`tokenizers`' normaliser and pre-tokenizer for a surface."""
    if isinstance(surface, ByteLevelText):
        return None, pre_tokenizers.ByteLevel(add_prefix_space=False)
    return (
        normalizers.BertNormalizer(lowercase=surface.lowercase),
        pre_tokenizers.BertPreTokenizer(),
    )


def reference_for(model: WordPiece) -> Tokenizer:
    """`tokenizers` with the same vocabulary."""
    reference = Tokenizer(
        models.WordPiece(
            vocab=model.vocab,
            unk_token=UNK,
            continuing_subword_prefix=model.prefix,
            max_input_chars_per_word=model.max_word_chars,
        )
    )
    normalizer, reference.pre_tokenizer = reference_words(model.surface)
    if normalizer is not None:
        reference.normalizer = normalizer
    return reference


@cache
def trained(surface=None, vocab_size: int = 1500) -> WordPiece:
    return train_wordpiece(library_texts(), vocab_size, surface=surface)


SURFACES = [BertText(), BertText(lowercase=False), ByteLevelText()]


@pytest.mark.parametrize("surface", SURFACES)
def test_vocabulary_is_that_of_tokenizers(surface):
    """`tokenizers` numbers "##a" by a hash that changes from run to run, and its ties with it.
    Named as special tokens in our order they are fixed, and everything else is then the same."""
    ours = trained(surface)
    size = 1 + sum(len(piece.removeprefix(ours.prefix)) == 1 for piece in ours.vocab)
    first = sorted(ours.vocab, key=ours.vocab.__getitem__)[:size]
    reference = Tokenizer(models.WordPiece(unk_token=UNK))
    normalizer, reference.pre_tokenizer = reference_words(surface)
    if normalizer is not None:
        reference.normalizer = normalizer
    trainer = trainers.WordPieceTrainer(
        vocab_size=1500,
        special_tokens=first,
        show_progress=False,
        continuing_subword_prefix=ours.prefix,
    )
    reference.train_from_iterator(library_texts(), trainer)
    assert reference.get_vocab(with_added_tokens=False) == ours.vocab


@pytest.mark.parametrize("surface", SURFACES)
def test_ids_and_offsets_of_real_text(surface):
    model = trained(surface)
    reference = reference_for(model)
    for text in library_texts():
        want = reference.encode(text)
        assert model.encode(text) == want.ids
        ids, offsets = model.encode_with_offsets(text)
        assert ids == want.ids
        assert offsets == want.offsets


@cache
def disputed_by_bert() -> str:
    """Characters that Python's and `tokenizers`' versions of Unicode put in different classes."""
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x30000)]))
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    disputed = []
    for character in every:
        text = f"a{character}b"
        want = splitter.pre_tokenize_str(normalizer.normalize_str(text))
        if [word for word, _ in want] != BertText().words(text):
            disputed.append(character)
    return "".join(disputed)


def test_bert_words_differ_for_young_characters_only():
    """Marks, signs and letters that Unicode has gained or moved since `tokenizers`' tables."""
    disputed = disputed_by_bert()
    assert len(disputed) < 1000
    assert not {unicodedata.category(c)[0] for c in disputed} & {"L", "N", "Z"}
    assert all(ord(c) > 0x2FF for c in disputed)


@given(text=tricky_text())
def test_ids_and_offsets_of_any_text(text):
    text = "".join(c for c in text if c not in disputed_by_bert())
    for surface in SURFACES:
        model = trained(surface)
        want = reference_for(model).encode(text)
        ids, offsets = model.encode_with_offsets(text)
        assert model.encode(text) == ids == want.ids
        assert offsets == want.offsets


@given(text=tricky_text())
def test_byte_level_wordpiece_gives_every_text_back(text):
    model = trained(ByteLevelText())
    assert model.decode_bytes(model.encode(text)) == text.encode()
    assert model.unk_id not in model.encode(text)


def test_a_word_that_looks_like_a_prefix_survives():
    """With "##" for bytes, too, the text "##a" and the inside of a word would be one piece."""
    model = train_wordpiece(["##a ##a ##a xa xa xa"], 600, surface=ByteLevelText())
    assert model.prefix == BYTE_LEVEL_CONTINUES
    assert model.decode_bytes(model.encode("##a xa")) == b"##a xa"


def test_longest_match_by_hand():
    vocab = [UNK, "un", "u", "##aff", "##able", "##a", "##ffa", "unaf", "##f", "##ble"]
    model = WordPiece({piece: id_ for id_, piece in enumerate(vocab)})
    named = [model.names[i] for i in model.encode("Unaffable")]
    assert named == ["unaf", "##f", "##able"]  # two pieces, un ##aff ##able, would be three: greedy
    assert model.encode("unaffablez") == [0]  # one character missing: the word is lost
    assert model.encode_with_offsets(" unaf UN")[1] == [(1, 5), (6, 8)]


def test_greedy_is_not_always_shortest():
    vocab = [UNK, "abc", "ab", "##d", "##e", "##cde"]
    model = WordPiece({piece: id_ for id_, piece in enumerate(vocab)})
    assert [model.names[i] for i in model.encode("abcde")] == ["abc", "##d", "##e"]


def test_likelihood_rule_prefers_what_belongs_together():
    """q is only ever followed by u; t e is more frequent, but so are both of its parts."""
    words = ["tet"] * 20 + ["qu"] * 6 + ["et"] * 10
    texts = [" ".join(words)]
    by_count = train_wordpiece(texts, 9)
    by_likelihood = train_wordpiece(texts, 9, rule="likelihood")
    # [UNK], e q t u, ##e ##t ##u, and one merge.
    assert by_count.names[8] == "te"
    assert by_likelihood.names[8] == "qu"


def test_likelihood_rule_by_definition():
    """Each merge has the highest count(ab) / (count(a) count(b)), recounted from scratch."""
    texts = [library_texts()[-1], library_texts()[-4]]
    model = train_wordpiece(texts, 260, rule="likelihood", min_frequency=3)
    words = count_words(texts, BertText())
    cut = {w: [w[0], *(CONTINUES + c for c in w[1:])] for w in words}
    pieces = sorted(model.vocab, key=model.vocab.__getitem__)
    rank = {piece: id_ for id_, piece in enumerate(pieces)}
    merged = [p for p in pieces[1:] if len(p.removeprefix(CONTINUES)) > 1]
    assert merged
    for piece in merged:
        single: Counter[str] = Counter()
        double: Counter[tuple[str, str]] = Counter()
        for word, parts in cut.items():
            for part in parts:
                single[part] += words[word]
            for pair in pairwise(parts):
                double[pair] += words[word]
        best = min(
            (pair for pair, n in double.items() if n >= 3),
            key=lambda pair: (
                -double[pair] / (single[pair[0]] * single[pair[1]]),
                rank[pair[0]],
                rank[pair[1]],
            ),
        )
        assert best[0] + best[1].removeprefix(CONTINUES) == piece
        for parts in cut.values():
            place = 0
            while place + 1 < len(parts):
                if (parts[place], parts[place + 1]) == best:
                    parts[place : place + 2] = [piece]
                place += 1


def test_sending_it_away_keeps_it():
    model = trained()
    again = copy.deepcopy(model)  # by the same hooks as a pickle
    text = library_texts()[0]
    assert again.encode(text) == model.encode(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: WordPiece({"a": 0}), "unk_token"),
        (lambda: WordPiece({UNK: 0, "a": 0}), "unique"),
        (lambda: WordPiece({UNK: 0}, prefix=""), "prefix must not be empty"),
        (lambda: train_wordpiece(["abc"], 5), "at least 6"),
        (lambda: train_wordpiece(["abc"], 50, rule=cast(Any, "size")), "rule must be"),
        (lambda: train_wordpiece(["abc"], 50, min_frequency=-1), "min_frequency"),
        (lambda: trained().encode("\ud800"), "lone surrogate"),
        (lambda: trained().decode_bytes([10**6]), "no piece"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        change()


def test_one_string_is_no_corpus():
    with pytest.raises(TypeError, match="not one string"):
        train_wordpiece("abc", 50)
