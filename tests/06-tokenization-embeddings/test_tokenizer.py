"""The tokenizer: every string comes back, special tokens are no text, and three other libraries
give the same ids from what it saves.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Reference
from transformers import AutoTokenizer

from bpe import BPE, train_bpe
from pretokens import CL100K_PATTERN, GPT2_PATTERN
from tokenizer import Tokenizer
from tokenizer_files import EOS_TOKEN, tokenizer_json
from tokenizer_parity import (
    POLYGLOT,
    chunked,
    library_texts,
    model_of,
    shown,
    train_reference,
    tricky_text,
)

PATTERNS = (GPT2_PATTERN, CL100K_PATTERN)
SPECIALS = (EOS_TOKEN, "<|im start|>", "<|im start|>system", "<x>")
ROLES = ("eos_token", "bos_token", "pad_token")


@cache
def trained(pattern: str) -> BPE:
    return train_bpe([*library_texts(), *POLYGLOT * 5], 1200, pattern=pattern)


@cache
def made(pattern: str) -> Tokenizer:
    return Tokenizer.from_bpe(trained(pattern), SPECIALS, bos_token="<|im start|>", pad_token="<x>")


@cache
def reference(pattern: str) -> Reference:
    return Reference.from_str(tokenizer_json(made(pattern).parts))


def text_with_specials() -> st.SearchStrategy[str]:
    pieces = ("<|", "im", " start", "|>", "<x", ">", "system", "endoftext", " ", "\n", *SPECIALS)
    return st.lists(st.one_of(st.sampled_from(pieces), tricky_text(max_size=3)), max_size=14).map(
        "".join
    )


# --- ids -------------------------------------------------------------------------------------


def test_special_tokens_come_first_and_ids_are_those_of_tokenizers() -> None:
    for pattern in PATTERNS:
        texts = library_texts()
        size = 900 + len(SPECIALS)
        theirs = train_reference(texts, size, pattern, special_tokens=list(SPECIALS))
        ours = Tokenizer.from_bpe(train_bpe(texts, 900, pattern=pattern), SPECIALS)
        assert ours.vocab_size == size
        assert ours.special_tokens == {name: id_ for id_, name in enumerate(SPECIALS)}
        vocab, merges = model_of(theirs)
        assert vocab == {shown(p): i for p, i in ours.bpe.vocab.items()} | ours.special_tokens
        assert merges == [(shown(a), shown(b)) for a, b in ours.bpe.merges]
        for text in texts:
            assert ours.encode(text) == theirs.encode(text).ids


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=250, deadline=None)
@given(text=text_with_specials())
def test_ids_and_offsets_are_those_of_tokenizers_special_tokens_too(
    pattern: str, text: str
) -> None:
    ours, theirs = made(pattern), reference(pattern)
    want = theirs.encode(text)
    assert ours.encode(text, allowed_special="all") == want.ids
    found = ours.encode_with_offsets(text, allowed_special="all")
    assert found == (want.ids, want.offsets)
    assert ours.decode(want.ids) == theirs.decode(want.ids, skip_special_tokens=False) == text
    assert ours.decode(want.ids, skip_special=True) == theirs.decode(want.ids)


def test_special_tokens_are_text_unless_allowed() -> None:
    tokenizer = made(GPT2_PATTERN)
    text = f"a{EOS_TOKEN}b<x>"
    plain = tokenizer.encode(text)
    assert not set(plain) & set(tokenizer.special_tokens.values())
    assert tokenizer.encode(text, allowed_special={"<x>"})[-1] == tokenizer.special_tokens["<x>"]
    both = tokenizer.encode(text, allowed_special=[EOS_TOKEN, "<x>"])
    assert both == tokenizer.encode(text, allowed_special="all")
    assert [id_ for id_ in both if id_ < 4] == [0, 3]
    for ids in (plain, both):
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode(both, skip_special=True) == "ab"


def test_the_longest_special_token_is_found() -> None:
    tokenizer = made(GPT2_PATTERN)
    assert tokenizer.encode("<|im start|>system", allowed_special="all") == [2]
    ids = tokenizer.encode("<|im start|>system", allowed_special={"<|im start|>"})
    assert ids == [1, *tokenizer.encode("system")]


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60), allowed=st.sets(st.sampled_from(SPECIALS)))
def test_every_string_comes_back(text: str, allowed: set[str]) -> None:
    for pattern in PATTERNS:
        tokenizer = made(pattern)
        ids = tokenizer.encode(text, allowed_special=allowed)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(ids) == text.encode()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_streaming_cuts_through_no_special_token(data: Any) -> None:
    text = data.draw(text_with_specials())
    size = data.draw(st.integers(1, 12))
    allowed = data.draw(st.sampled_from(["all", frozenset(), frozenset({"<|im start|>system"})]))
    for pattern in PATTERNS:
        tokenizer = made(pattern)
        want = tokenizer.encode(text, allowed_special=allowed)
        for source in (io.StringIO(text, newline=""), chunked(data.draw, text)):
            parts = tokenizer.encode_iter(source, allowed_special=allowed, part_chars=size)
            assert [id_ for part in parts for id_ in part] == want


def test_streaming_cuts_between_special_tokens() -> None:
    stream = io.StringIO("<|im start|>some words<x> " * 100)
    parts = list(made(GPT2_PATTERN).encode_iter(stream, allowed_special="all", part_chars=50))
    assert max(map(len, parts)) < 60


def test_a_batch_is_each_text() -> None:
    tokenizer = made(CL100K_PATTERN)
    texts = [*POLYGLOT, "", "<x>"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch(iter(["<x>"]), allowed_special="all") == [[3]]


def test_half_a_character_is_shown_as_one_that_is_missing() -> None:
    tokenizer = Tokenizer.from_bpe(train_bpe([], 256))
    ids = tokenizer.encode("a中b")
    assert tokenizer.decode_bytes(ids[:3]) == b"a\xe4\xb8"
    assert tokenizer.decode(ids[:3]) == "a\ufffd"
    assert tokenizer.decode(ids) == "a中b"


def test_roles() -> None:
    tokenizer = made(GPT2_PATTERN)
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id) == (0, 1, 3)
    bare = Tokenizer.from_bpe(trained(GPT2_PATTERN), ())
    assert (bare.eos_id, bare.bos_id, bare.pad_id, bare.vocab_size) == (None, None, None, 1200)
    default = Tokenizer.from_bpe(trained(GPT2_PATTERN))
    assert (default.eos_id, default.special_tokens) == (0, {EOS_TOKEN: 0})
    named = Tokenizer.from_bpe(trained(GPT2_PATTERN), {"<x>": 5000}, eos_token="<x>")
    assert (named.eos_id, named.vocab_size) == (5000, 5001)
    assert named.bpe.vocab == trained(GPT2_PATTERN).vocab


def test_a_tokenizer_can_be_sent_to_a_worker() -> None:
    sent = copy.deepcopy(made(CL100K_PATTERN))  # by __reduce__, as pickle does it
    assert sent.encode(POLYGLOT[3]) == made(CL100K_PATTERN).encode(POLYGLOT[3])
    assert sent.special_tokens == made(CL100K_PATTERN).special_tokens
    assert "1204" in repr(sent)


# --- what it saves ---------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
def test_saved_and_loaded_again(tmp_path: Path, pattern: str) -> None:
    tokenizer = made(pattern)
    tokenizer.save(tmp_path / "folder")
    tokenizer.save(tmp_path / "alone.json")
    folder, alone = Tokenizer.load(tmp_path / "folder"), Tokenizer.load(tmp_path / "alone.json")
    for loaded in (folder, alone):
        for name in ("merges", "vocab", "pattern", "whole_pieces"):
            assert getattr(loaded.bpe, name) == getattr(tokenizer.bpe, name)
        assert loaded.special_tokens == tokenizer.special_tokens
        for text in (*POLYGLOT, "".join(SPECIALS)):
            for allowed in (frozenset(), "all"):
                want = tokenizer.encode_with_offsets(text, allowed_special=allowed)
                assert loaded.encode_with_offsets(text, allowed_special=allowed) == want
    for role in ROLES:
        assert getattr(folder.parts, role) == getattr(tokenizer.parts, role)
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (tmp_path / "alone.json").read_text() == (
        tmp_path / "folder" / "tokenizer.json"
    ).read_text()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_saved_file_is_the_same_tokenizer_in_tokenizers(tmp_path: Path, pattern: str) -> None:
    tokenizer = made(pattern)
    tokenizer.save(tmp_path / "tokenizer.json")
    theirs = Reference.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.get_vocab_size() == tokenizer.vocab_size
    for text in library_texts():
        want = theirs.encode(text)
        assert tokenizer.encode_with_offsets(text, allowed_special="all") == (
            want.ids,
            want.offsets,
        )
        assert theirs.decode(want.ids, skip_special_tokens=False) == text


# AutoTokenizer has opinions of its own about the tokenizers of models that it knows.
@pytest.mark.parametrize("model_type", [None, "gpt2", "qwen3", "llama"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_saved_folder_is_the_same_tokenizer_in_transformers(
    tmp_path: Path, pattern: str, model_type: str | None
) -> None:
    tokenizer = made(pattern)
    tokenizer.save(tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert [getattr(theirs, f"{role}_id") for role in ROLES] == [0, 1, 3]
    assert len(theirs) == tokenizer.vocab_size
    texts = [*POLYGLOT, *library_texts()[:3], " ".join(SPECIALS), "a .  b , c 's"]
    for text, ids in zip(texts, theirs(texts)["input_ids"], strict=True):
        assert tokenizer.encode(text, allowed_special="all") == ids
        assert theirs.decode(ids) == text
    padded = theirs(["a", "a b c"], padding=True)["input_ids"]
    assert padded[0][-1] == tokenizer.pad_id


# --- tiktoken --------------------------------------------------------------------------------


def tiktoken_of(ranks: dict[bytes, int], pattern: str, special: dict[str, int]) -> Any:
    return tiktoken.Encoding("test", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def rank_file(path: Path, ranks: dict[bytes, int]) -> Path:
    lines = (f"{base64.b64encode(piece).decode()} {rank}\n" for piece, rank in ranks.items())
    path.write_text("".join(lines))
    return path


@cache
def theirs_by_tiktoken(pattern: str) -> Any:
    tokenizer = made(pattern)
    # Of special tokens that begin alike, tiktoken finds now one, now the other.
    special = {name: id_ for name, id_ in tokenizer.special_tokens.items() if "system" not in name}
    return tiktoken_of(tokenizer.bpe.vocab, pattern, special)


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=250, deadline=None)
@given(text=text_with_specials())
def test_tiktoken_gives_the_same_ids_from_the_same_table(pattern: str, text: str) -> None:
    tokenizer, theirs = made(pattern), theirs_by_tiktoken(pattern)
    assert tokenizer.encode(text) == theirs.encode_ordinary(text)
    want = theirs.encode(text, allowed_special="all")
    assert tokenizer.encode(text, allowed_special=theirs.special_tokens_set) == want
    assert tokenizer.decode_bytes(want) == theirs.decode_bytes(want)


def test_tiktoken_gives_the_same_ids_on_real_text() -> None:
    for pattern in PATTERNS:
        for text in library_texts():
            assert made(pattern).encode(text) == theirs_by_tiktoken(pattern).encode_ordinary(text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_rank_file_is_read(tmp_path: Path, pattern: str) -> None:
    bpe = trained(pattern)
    path = rank_file(tmp_path / "x.tiktoken", bpe.vocab)
    special = {EOS_TOKEN: 1300, "<y>": 1301}
    tokenizer = Tokenizer.from_tiktoken(path, pattern, special_tokens=special)
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (1300, 1302)
    for text in library_texts():
        assert tokenizer.encode(text) == bpe.encode(text)
    tokenizer.save(tmp_path / "tokenizer.json")
    theirs = Reference.from_file(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    for text in (*POLYGLOT, f"a{EOS_TOKEN}b <y>"):
        ids = tokenizer.encode(text, allowed_special="all")
        assert theirs.encode(text).ids == loaded.encode(text, allowed_special="all") == ids


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), text=st.text("abc", max_size=60))
def test_any_rank_file_means_what_it_means_to_tiktoken(
    tmp_path_factory: pytest.TempPathFactory, seed: int, text: str
) -> None:
    # Pieces that no training gives: out of order, out of reach, made in several ways.
    draw = random.Random(seed)
    pieces = {"".join(draw.choices("abc", k=draw.randint(2, 5))).encode() for _ in range(25)}
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {piece: 256 + i for i, piece in enumerate(draw.sample(sorted(pieces), len(pieces)))}
    path = rank_file(tmp_path_factory.mktemp("ranks") / "x.tiktoken", ranks)
    tokenizer = Tokenizer.from_tiktoken(path, GPT2_PATTERN)
    assert tokenizer.encode(text) == tiktoken_of(ranks, GPT2_PATTERN, {}).encode_ordinary(text)


# --- wrong input -----------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [frozenset(), {"<x>"}, "all"])
def test_lone_surrogates_have_no_encoding(allowed: Any) -> None:
    tokenizer = made(GPT2_PATTERN)
    for call in (tokenizer.encode, tokenizer.encode_with_offsets):
        with pytest.raises(ValueError, match=r"U\+D83D, at index 9"):
            call("abc<x>def\ud83d", allowed_special=allowed)


def test_unknown_ids_are_named() -> None:
    with pytest.raises(ValueError, match="id 1204 is not in the vocabulary of 1204"):
        made(GPT2_PATTERN).decode([5, 1204])


@pytest.mark.parametrize(
    ("allowed", "error", "message"),
    [({"<y>"}, ValueError, "<y>"), ("<x>", TypeError, "not one name")],
)
def test_bad_permissions(allowed: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        made(GPT2_PATTERN).encode("text", allowed_special=allowed)


@pytest.mark.parametrize(
    ("special", "options", "error", "message"),
    [
        ("<x>", {}, TypeError, "not one string"),
        (("<x>", "<x>"), {}, ValueError, "different"),
        (("",), {}, ValueError, "not empty"),
        (("the",), {}, ValueError, "'the' is an ordinary piece"),
        ({"<x>": 3}, {}, ValueError, "id 3 belongs to both"),
        ({"<x>": 5000, "<y>": 5000}, {}, ValueError, "id 5000 belongs to both"),
        ({"<x>": -1}, {}, ValueError, "at least 0"),
        ({"<x>": 1.5}, {}, ValueError, "at least 0"),
        (("<x>",), {"eos_token": "<y>"}, ValueError, "eos_token '<y>' is none of"),
        (("<x>",), {"pad_token": EOS_TOKEN}, ValueError, "pad_token"),
    ],
)
def test_bad_special_tokens(
    special: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Tokenizer.from_bpe(trained(GPT2_PATTERN), special, **options)


def test_a_batch_is_not_one_text() -> None:
    with pytest.raises(TypeError, match="not one string"):
        made(GPT2_PATTERN).encode_batch("abc")
