"""WordPiece and Unigram behind the one Tokenizer, and as files that `tokenizers` loads."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Theirs
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from pretokens import CL100K_PATTERN
from text_surfaces import BertText, ByteLevelText, MetaspaceText
from tokenizer import BERT_TOKENS, Tokenizer
from tokenizer_parity import chunked, library_texts, tricky_text
from unigram import Unigram, byte_piece
from unigram_training import train_unigram
from wordpiece import train_wordpiece

EOS = "<|endoftext|>"
TEXTS = library_texts()[-6:]
KINDS = (
    "wordpiece bert", "wordpiece cased", "wordpiece bytes", "unigram", "unigram fallback",
    "unigram bytes",
)  # fmt: skip
PREPENDING = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}
LOSSLESS = ("wordpiece bytes", "unigram bytes", "unigram fallback")


@cache
def made(kind: str) -> Tokenizer:
    model, _, how = kind.partition(" ")
    if model == "wordpiece":
        surface = {"bert": BertText(), "cased": BertText(lowercase=False)}.get(
            how, ByteLevelText(CL100K_PATTERN)
        )
        return Tokenizer.from_wordpiece(
            train_wordpiece(TEXTS, 900, surface=surface), (*BERT_TOKENS, EOS)
        )
    surface = ByteLevelText() if how == "bytes" else MetaspaceText()
    return Tokenizer.from_unigram(
        train_unigram(TEXTS, 900, surface=surface, byte_fallback=how == "fallback")
    )


@cache
def in_tokenizers(kind: str, folder: Path) -> Theirs:
    path = folder / f"{kind}.json"
    made(kind).save(path)
    return Theirs.from_file(str(path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_file_is_the_same_tokenizer_in_tokenizers(kind, folder):
    """Ids and offsets, special tokens found in the text; and what the ids decode to."""
    ours, theirs = made(kind), in_tokenizers(kind, folder)
    for text in (*TEXTS, f"one{EOS}two <|endoftext|> [CLS] [MASK]<pad>"):
        want = theirs.encode(text, add_special_tokens=False)
        ids, offsets = ours.encode_with_offsets(text, allowed_special="all")
        assert ours.encode(text, allowed_special="all") == ids == want.ids
        assert offsets == want.offsets
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
        assert ours.decode(ids, skip_special=True) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_text_unless_allowed(kind, folder):
    """And so they are in `tokenizers` with our file, when it is told to."""
    ours = made(kind)
    theirs = Theirs.from_str(in_tokenizers(kind, folder).to_str())
    theirs.encode_special_tokens = True
    text = " ".join(["typed", *ours.special_tokens, EOS])
    ids = ours.encode(text)
    unknown = {made(kind).special_tokens.get(name) for name in ("[UNK]", "<unk>")}
    assert not set(ids) & (set(ours.special_tokens.values()) - unknown)
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    if kind in LOSSLESS:
        assert ours.decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
def test_loading_gives_the_tokenizer_back(kind, folder, tmp_path):
    ours = made(kind)
    ours.save(tmp_path / "folder")
    loaded = Tokenizer.load(tmp_path / "folder")
    assert loaded.special_tokens == ours.special_tokens
    assert (loaded.eos_id, loaded.pad_id) == (ours.eos_id, ours.pad_id)
    assert loaded.model.vocab == ours.model.vocab
    for text in (*TEXTS, EOS, "[UNK] <unk> [PAD]", "<0x0A>"):
        assert loaded.encode(text) == ours.encode(text)
        assert loaded.encode(text, allowed_special="all") == ours.encode(
            text, allowed_special="all"
        )
    auto = AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert auto.encode(TEXTS[0], add_special_tokens=False) == ours.encode(TEXTS[0])
    assert auto.pad_token_id == ours.pad_id


@given(text=tricky_text())
def test_lossless_ones_give_every_text_back(text):
    for kind in LOSSLESS:
        shown = text.replace("▁", "") if kind == "unigram fallback" else text
        assert made(kind).decode(made(kind).encode(shown)) == shown


@given(text=tricky_text(), data=st.data())
def test_streaming_is_the_whole(text, data):
    for kind in ("wordpiece bytes", "unigram bytes"):
        pieces = chunked(data.draw, text * 3)
        parts = list(made(kind).encode_iter(pieces, part_chars=5))
        assert [id_ for part in parts for id_ in part] == made(kind).encode(text * 3)


def test_streaming_needs_a_pattern():
    with pytest.raises(ValueError, match="streaming needs a pattern"):
        next(made("unigram").encode_iter(["text"]))


def test_bert_as_published_is_read(tmp_path):
    """A file as `transformers` writes BERT's: with a template, which concerns batches."""
    vocab = {name: id_ for id_, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    vocab |= {"hello": 5, "wor": 6, "##ld": 7, "!": 8}
    theirs = Theirs(models.WordPiece(vocab, unk_token="[UNK]"))
    theirs.normalizer = normalizers.BertNormalizer()
    theirs.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    theirs.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    theirs.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.load(tmp_path)
    assert ours.encode("Hello, WORLD!") == [5, 1, 6, 7, 8]
    assert ours.decode([5, 6, 7, 8]) == "hello world !"
    assert ours.pad_id == 0
    assert ours.vocab_size == 9


def test_roles_and_names_of_the_made():
    ours = made("wordpiece bert")
    assert [ours.special_tokens[name] for name in (*BERT_TOKENS, EOS, "[UNK]")] == [*range(6)]
    assert ours.pad_id == 0
    assert ours.eos_id == 4
    unigram = made("unigram fallback")
    assert unigram.special_tokens == {"<pad>": 0, EOS: 1, "<unk>": 2}
    assert isinstance(unigram.model, Unigram)
    assert unigram.model.vocab[byte_piece(0)] == 3
    with pytest.raises(TypeError, match="is a Unigram, not a BPE"):
        _ = unigram.bpe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "is not supported, only"),
        ({"pre_tokenizer": PREPENDING}, "is not supported, only"),
        ({"post_processor": {"type": "ByteLevel"}}, "only a template"),
        ({"model": {"type": "Unigram", "vocab": [["a"]]}}, "a piece and a score"),
        ({"model": {"type": "Unigram", "vocab": {"a": 1}}}, "a piece and a score"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": "a"}}, "unk_id"),
        ({"model": {"type": "WordPiece", "vocab": ["a"]}}, "object of ids"),
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "b"}}, "must be in vocab"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}}}, "is not supported"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(change, message, tmp_path):
    made("unigram").save(tmp_path / "tokenizer.json")
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(tmp_path / "tokenizer.json")
