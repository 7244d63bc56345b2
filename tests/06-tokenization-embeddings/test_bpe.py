"""Byte-pair encoding: training and encoding are those of `tokenizers`, and nothing is ever lost."""

from __future__ import annotations

import copy
import io
import random
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

import bpe as bpe_module
import pretokens
from bpe import BPE, byte_characters, train_bpe, train_bpe_by_recounting
from pretokens import CL100K_PATTERN, GPT2_PATTERN
from tokenizer_parity import (
    POLYGLOT,
    chunked,
    library_texts,
    model_of,
    reference_for,
    shown,
    train_reference,
    tricky_text,
)

WORDS = r"\S+|\s+"
PATTERNS = (GPT2_PATTERN, CL100K_PATTERN)


def same_as_reference(bpe: BPE, texts: Any, vocab_size: int, **options: Any) -> bool:
    vocab, merges = model_of(train_reference(texts, vocab_size, bpe.pattern, **options))
    ours = {shown(piece): id_ for piece, id_ in bpe.vocab.items()}
    return ours == vocab and [(shown(a), shown(b)) for a, b in bpe.merges] == merges


@cache
def trained(pattern: str) -> BPE:
    return train_bpe([*library_texts(), *POLYGLOT * 5], 1500, pattern=pattern)


@cache
def reference(pattern: str) -> Any:
    return reference_for(trained(pattern))


# --- training --------------------------------------------------------------------------------


def test_bytes_are_shown_and_ordered_as_by_tokenizers() -> None:
    characters = byte_characters()
    assert set(characters.values()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert list(characters.values()) == sorted(characters.values())
    assert (characters[ord("A")], characters[0x20], characters[0x0A]) == ("A", "Ġ", "Ċ")
    bpe = train_bpe([], 256)
    assert [bpe.pieces[id_][0] for id_ in range(256)] == list(characters)


def test_training_by_hand() -> None:
    # low 5, lower 2, newest 6, widest 3. es and st occur 9 times each: e comes before s. Then
    # es t; of lo and ow, 7 each, lo; low; of ne, ew and w est, 6 each, ew; of new and ew est, new,
    # since n is the smaller id; then newest.
    text = "low " * 5 + "lower " * 2 + "newest " * 6 + "widest " * 3
    bpe = train_bpe([text], 263, pattern=r"\p{L}+|\s")
    assert [a + b for a, b in bpe.merges] == [
        b"es",
        b"est",
        b"lo",
        b"low",
        b"ew",
        b"new",
        b"newest",
    ]
    assert bpe.vocab[b"newest"] == 262
    low, est = bpe.vocab[b"low"], bpe.vocab[b"est"]
    assert bpe.encode("lowest") == [low, est]


@pytest.mark.parametrize("pattern", [*PATTERNS, WORDS])
@pytest.mark.parametrize("vocab_size", [256, 257, 300, 1003, 4000])
def test_merges_are_those_of_tokenizers_on_real_text(pattern: str, vocab_size: int) -> None:
    bpe = train_bpe(library_texts(), vocab_size, pattern=pattern)
    assert len(bpe.vocab) == vocab_size
    assert same_as_reference(bpe, library_texts(), vocab_size)


@pytest.mark.parametrize("min_frequency", [0, 1, 2, 3, 50, 10**9])
def test_merges_end_with_the_frequency_as_in_tokenizers(min_frequency: int) -> None:
    # So many that pairs that occur once are reached: thousands of ties.
    texts = library_texts()[-6:]
    bpe = train_bpe(texts, 20_000, min_frequency=min_frequency)
    assert len(bpe.vocab) < 20_000
    assert same_as_reference(bpe, texts, 20_000, min_frequency=min_frequency)


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(st.text(st.sampled_from("ab é"), max_size=40), max_size=6),
    vocab_size=st.integers(256, 300),
    min_frequency=st.integers(0, 4),
    pattern=st.sampled_from([GPT2_PATTERN, WORDS]),
)
def test_merges_are_those_of_tokenizers_where_all_is_ties(
    texts: list[str], vocab_size: int, min_frequency: int, pattern: str
) -> None:
    bpe = train_bpe(texts, vocab_size, pattern=pattern, min_frequency=min_frequency)
    assert same_as_reference(bpe, texts, vocab_size, min_frequency=min_frequency)
    again = train_bpe_by_recounting(texts, vocab_size, pattern=pattern, min_frequency=min_frequency)
    assert (again.merges, again.vocab) == (bpe.merges, bpe.vocab)


@pytest.mark.parametrize("length", range(2, 20))
def test_runs_of_one_letter_are_merged_from_the_left(length: int) -> None:
    texts = ["a" * length, "ba" * 3, "aab" * 2, "baa" + "a" * length]
    bpe = train_bpe(texts, 280, pattern=WORDS)
    assert same_as_reference(bpe, texts, 280)


def test_training_by_recounting_agrees_on_real_text() -> None:
    texts = [*library_texts()[2:4], *POLYGLOT]
    bpe = train_bpe(texts, 400)
    again = train_bpe_by_recounting(texts, 400)
    assert (again.merges, again.vocab, again.pattern) == (bpe.merges, bpe.vocab, bpe.pattern)


def test_order_of_texts_and_workers_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretokens, "_BATCH_CHARS", 50_000)
    monkeypatch.setattr(pretokens, "_PART_CHARS", 10_000)
    bpe = train_bpe(library_texts(), 900)
    assert train_bpe(reversed(library_texts()), 900).merges == bpe.merges
    assert train_bpe(library_texts(), 900, workers=2).merges == bpe.merges


@pytest.mark.parametrize("train", [train_bpe, train_bpe_by_recounting])
@pytest.mark.parametrize(
    ("vocab_size", "options", "message"),
    [
        (255, {}, "at least 256"),
        (300, {"min_frequency": -1}, "must not be negative"),
        (300, {"pattern": "("}, "no regular expression"),
    ],
)
def test_bad_training(train: Any, vocab_size: int, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(["text"], vocab_size, **options)


# --- encoding --------------------------------------------------------------------------------


def test_ids_and_offsets_are_those_of_tokenizers_on_real_text() -> None:
    for bpe in map(trained, PATTERNS):
        for text in library_texts():
            want = reference(bpe.pattern).encode(text)
            assert bpe.encode(text) == want.ids
            assert bpe.encode_with_offsets(text) == (want.ids, want.offsets)


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=400, deadline=None)
@given(text=tricky_text())
def test_ids_and_offsets_are_those_of_tokenizers(pattern: str, text: str) -> None:
    bpe = trained(pattern)
    want = reference(bpe.pattern).encode(text)
    assert bpe.encode(text) == want.ids
    assert bpe.encode_with_offsets(text) == (want.ids, want.offsets)
    assert bpe.decode_bytes(want.ids) == text.encode()


def test_offsets_by_hand() -> None:
    # 中 is three bytes; the pieces below leave two tokens that both have a part of it.
    vocab = {bytes([byte]): id_ for id_, byte in enumerate(byte_characters())}
    first, second, third = (bytes([byte]) for byte in "中".encode())
    vocab[first + second] = 256
    bpe = BPE([(first, second)], vocab, WORDS)
    ids = [vocab[b"x"], 256, vocab[third], vocab[b"y"]]
    assert bpe.encode_with_offsets("x中y") == (ids, [(0, 1), (1, 2), (1, 2), (2, 3)])


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60))
def test_every_string_comes_back_byte_for_byte(text: str) -> None:
    for bpe in map(trained, PATTERNS):
        assert bpe.decode_bytes(bpe.encode(text)) == text.encode()


def test_every_character_comes_back() -> None:
    bpe = train_bpe(POLYGLOT, 300)
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    assert bpe.decode_bytes(bpe.encode(every)) == every.encode()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), words=st.lists(st.text("abc ", max_size=30), max_size=8))
def test_any_order_of_merges_is_applied_as_by_tokenizers(seed: int, words: list[str]) -> None:
    # Shuffled, a merge may make a pair that comes earlier in the table than itself.
    made = train_bpe(["abc abca bcab cabc aabbcc abab bcbc caca"] * 2, 275, pattern=WORDS)
    merges = list(made.merges)
    random.Random(seed).shuffle(merges)
    for whole_pieces in (False, True):
        bpe = BPE(merges, made.vocab, WORDS, whole_pieces=whole_pieces)
        theirs = reference_for(bpe)
        for word in words:
            assert bpe.encode(word) == theirs.encode(word).ids


def test_scan_and_heap_merge_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    bpe = trained(GPT2_PATTERN)
    draw = random.Random(0)
    words = [bytes(draw.choices(b"aabetnr \xc3\xa9", k=k)) for k in range(70) for _ in range(6)]
    merged = {}
    for limit in (0, 10**9):
        monkeypatch.setattr(bpe_module, "_SCANNED_BYTES", limit)
        merged[limit] = [bpe.merge(word) for word in words]
    assert merged[0] == merged[10**9]


def test_a_long_word_is_that_of_tokenizers_and_not_quadratic() -> None:
    bpe = trained(GPT2_PATTERN)
    word = "".join(random.Random(1).choices("etaoinsr", k=20_000))
    assert bpe.encode(word) == reference(bpe.pattern).encode(word).ids

    class Counting(dict[Any, Any]):
        asked = 0

        def get(self, key: Any, default: Any = None) -> Any:
            Counting.asked += 1
            return super().get(key, default)

    counting = BPE(bpe.merges, bpe.vocab, bpe.pattern)
    counting._rank = Counting(counting._rank)
    counting.encode(word)
    assert Counting.asked < 6 * len(word)


def test_the_cache_is_bounded_and_changes_nothing() -> None:
    bpe = trained(GPT2_PATTERN)
    small = BPE(bpe.merges, bpe.vocab, bpe.pattern, cache_size=8)
    for text in library_texts()[:3]:
        for line in text.splitlines():
            assert small.encode(line) == bpe.encode(line)
            assert 0 < len(small._cache) <= 8 or not line
    before = len(bpe._cache)
    bpe.encode("x" * 1000)
    assert len(bpe._cache) == before


def test_long_texts_are_encoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(library_texts())
    for bpe in map(trained, PATTERNS):
        want = bpe.encode(text)
        with monkeypatch.context() as patch:
            patch.setattr(pretokens, "_BATCH_CHARS", 1000)
            patch.setattr(pretokens, "_PART_CHARS", 500)
            assert bpe.encode(text) == want


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_streaming_gives_the_ids_of_the_whole(pattern: str, data: Any) -> None:
    bpe = trained(pattern)
    text = data.draw(tricky_text(max_size=40))
    size = data.draw(st.integers(1, 10))
    for source in (io.StringIO(text, newline=""), chunked(data.draw, text)):
        parts = bpe.encode_iter(source, part_chars=size)
        assert [id_ for part in parts for id_ in part] == bpe.encode(text)


def test_pieces_sent_to_another_process_are_the_same() -> None:
    bpe = trained(GPT2_PATTERN)
    options = {"whole_pieces": True, "by_piece": True, "cache_size": 7}
    for one in (bpe, BPE(bpe.merges, bpe.vocab, bpe.pattern, **options)):
        sent = copy.deepcopy(one)  # by __reduce__, as pickle does it
        for name in ("merges", "vocab", "pattern", "whole_pieces", "by_piece", "_rank"):
            assert getattr(sent, name) == getattr(one, name)
        assert sent._cache._limit == one._cache._limit
        moved = one.shifted(3)
        assert [id_ - 3 for id_ in moved.encode(POLYGLOT[0])] == one.encode(POLYGLOT[0])
        assert (moved.whole_pieces, moved.by_piece) == (one.whole_pieces, one.by_piece)


# --- wrong input -----------------------------------------------------------------------------


def test_lone_surrogates_have_no_encoding() -> None:
    for bpe in map(trained, PATTERNS):
        for call in (
            bpe.encode,
            bpe.encode_with_offsets,
            lambda t, b=bpe: list(b.encode_iter([t])),
        ):
            with pytest.raises(ValueError, match=r"lone surrogate, U\+DC80, at index 5"):
                call("text \udc80")


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["a"]])
def test_what_is_no_text(text: Any) -> None:
    with pytest.raises(TypeError, match="must be a str"):
        trained(GPT2_PATTERN).encode(text)


def test_unknown_ids_are_named() -> None:
    with pytest.raises(ValueError, match="id 1500 is no piece"):
        trained(GPT2_PATTERN).decode_bytes([5, 1500])


BYTES = {bytes([byte]): byte for byte in range(256)}


@pytest.mark.parametrize(
    ("merges", "vocab", "options", "message"),
    [
        ([], {b"a": 0}, {}, "lacks 255 of the 256 bytes, 0x00 first"),
        ([], {}, {}, "lacks 256"),
        ([], BYTES | {b"ab": 3}, {}, "unique"),
        ([], BYTES | {b"ab": -1}, {}, "not negative"),
        ([(b"a", b"b")], BYTES, {}, "b'ab' is not in vocab"),
        ([(b"ab", b"c")], BYTES, {}, "b'ab' is not in vocab"),
        ([(b"a", b"b")] * 2, BYTES | {b"ab": 256}, {}, "listed twice"),
        ([], BYTES, {"pattern": "(a)"}, "capturing"),
        ([], BYTES, {"cache_size": 0}, "cache_size"),
    ],
)
def test_bad_tables(merges: Any, vocab: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BPE(merges, vocab, **options)


def test_pairs_that_make_one_piece_share_a_rank_by_piece() -> None:
    # aa+a and a+aa make the same piece; by piece the leftmost goes first, else the table's order.
    vocab = BYTES | {b"aa": 256, b"aaa": 257, b"ba": 258, b"baa": 259}
    merges = [(b"a", b"a"), (b"aa", b"a"), (b"a", b"aa")]
    assert all(pair in list(pairwise([b"a", b"aa", b"a"])) for pair in merges[1:])
    by_table, by_piece = (
        BPE(merges, vocab, WORDS, by_piece=by_piece) for by_piece in (False, True)
    )
    assert by_table._rank == {(97, 97): 0, (256, 97): 1, (97, 256): 2}
    assert by_piece._rank == {(97, 97): 0, (256, 97): 1, (97, 256): 1}
