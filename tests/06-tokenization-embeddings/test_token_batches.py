"""Batches beside `tokenizers`' template, truncation and padding; the plain vocabularies."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from plain_tokens import character_vocabulary, coverage, plain_words, word_vocabulary
from token_batches import make_batch, truncate_pair

WORDS = [f"w{number}" for number in range(40)]
VOCAB = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2} | {word: 3 + i for i, word in enumerate(WORDS)}
ids_lists = st.lists(st.integers(3, 42), max_size=14)


def reference(max_length: int | None, multiple: int, side: str) -> Tokenizer:
    made = Tokenizer(models.WordLevel(VOCAB, unk_token="[PAD]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    if max_length is not None:
        made.enable_truncation(max_length)
    made.enable_padding(direction=side, pad_id=0, pad_token="[PAD]", pad_to_multiple_of=multiple)
    return made


def written(ids: list[int]) -> str:
    return " ".join(WORDS[id_ - 3] for id_ in ids)


@given(
    pairs=st.lists(st.tuples(ids_lists, ids_lists), min_size=1, max_size=4),
    max_length=st.one_of(st.none(), st.integers(3, 24)),
    multiple=st.sampled_from([1, 8]),
    side=st.sampled_from(["left", "right"]),
    paired=st.booleans(),
)
def test_batches_are_those_of_tokenizers(pairs, max_length, multiple, side, paired):
    firsts, seconds = [a for a, _ in pairs], [b for _, b in pairs]
    batch = make_batch(
        firsts,
        seconds if paired else None,
        pad_id=0,
        begin_id=1,
        separator_id=2,
        max_length=max_length,
        pad_to_multiple_of=multiple,
        side=side,
    )
    texts = [(written(a), written(b)) if paired else written(a) for a, b in pairs]
    want = reference(max_length, multiple, side).encode_batch(texts)
    assert batch.ids.tolist() == [row.ids for row in want]
    assert batch.keep.tolist() == [[bool(m) for m in row.attention_mask] for row in want]
    assert batch.types.tolist() == [row.type_ids for row in want]


def test_a_batch_by_hand():
    batch = make_batch([[7, 8], [9]], pad_id=0, begin_id=1, separator_id=2)
    assert batch.ids.tolist() == [[1, 7, 8, 2], [1, 9, 2, 0]]
    assert batch.keep.tolist() == [[True] * 4, [True, True, True, False]]
    left = make_batch([[7, 8], [9]], pad_id=0, side="left")
    assert left.ids.tolist() == [[7, 8], [0, 9]]
    assert left.types.dtype == left.ids.dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: make_batch([[1]], [[1], [2]], pad_id=0), "second ones"),
        (lambda: make_batch([[1]], pad_id=0, begin_id=1, max_length=0), "too short"),
        (lambda: make_batch([[1]], pad_id=0, pad_to_multiple_of=0), "at least 1"),
        (lambda: make_batch([], pad_id=0), "at least one"),
        (lambda: truncate_pair([1], [2], -1), "negative"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        change()


@given(text=st.text(max_size=40))
def test_plain_words_join_to_the_text(text):
    assert "".join(plain_words(text)) == text


def test_plain_vocabularies_meet_the_unknown():
    train, other = "the cat sat", "the dog sat"
    by_word = coverage(word_vocabulary([train]), other, by_word=True)
    assert (by_word.tokens, by_word.unknown) == (5, 1)
    by_character = coverage(character_vocabulary([train]), other, by_word=False)
    assert (by_character.tokens, by_character.unknown) == (11, 3)  # d, o, g
    assert by_character.bytes_per_token == 1.0
    assert by_word.unknown_share == pytest.approx(0.2)
    assert len(word_vocabulary([train], max_size=2)) == 2
