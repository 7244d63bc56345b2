"""Cutting text: the patterns are the published ones, and cutting a stream changes nothing."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

import pretokens
from pretokens import (
    CL100K_PATTERN,
    GPT2_PATTERN,
    check_text,
    count_pretokens,
    cuts_are_proven,
    safe_parts,
    splitter,
    text_parts,
)
from tokenizer_parity import (
    chunked,
    disputed_characters,
    library_texts,
    reference_pre_tokenizer,
    tricky_text,
)

PATTERNS = {"gpt2": GPT2_PATTERN, "cl100k": CL100K_PATTERN}
TIKTOKEN_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
TIKTOKEN_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace("{1,3}", "")
CUTTABLE = {
    **PATTERNS,
    "tiktoken-gpt2": TIKTOKEN_GPT2,
    "tiktoken-cl100k": TIKTOKEN_CL100K,
    "llama3": LLAMA3,
    "qwen": QWEN,
}


def reference_split(pattern: str, text: str) -> list[str]:
    cut = pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(text)
    return [piece for piece, _ in cut]


# --- the patterns ----------------------------------------------------------------------------


def test_gpt2_pattern_by_hand() -> None:
    text = "Hello world's 123\n\n  x=1\t \n"
    want = ["Hello", " world", "'s", " 123", "\n\n ", " x", "=", "1", "\t \n"]
    assert splitter(GPT2_PATTERN).findall(text) == want


def test_cl100k_pattern_by_hand() -> None:
    text = "DON'T\t(pay) 12345;\n\n  x \n "
    want = ["DON", "'T", "\t", "(pay", ")", " ", "123", "45", ";\n\n", " ", " x", " \n "]
    assert splitter(CL100K_PATTERN).findall(text) == want


@pytest.mark.parametrize("pattern", CUTTABLE.values(), ids=CUTTABLE)
def test_known_patterns_lose_nothing(pattern: str) -> None:
    assert cuts_are_proven(pattern)
    for text in library_texts():
        assert "".join(splitter(pattern).findall(text)) == text


@pytest.mark.parametrize("pattern", [*PATTERNS.values(), LLAMA3, QWEN])
@settings(max_examples=300, deadline=None)
@given(text=tricky_text())
def test_split_is_that_of_tokenizers(pattern: str, text: str) -> None:
    assert splitter(pattern).findall(text) == reference_split(pattern, text)


@settings(max_examples=300, deadline=None)
@given(text=tricky_text())
def test_gpt2_split_is_the_one_built_into_tokenizers(text: str) -> None:
    cut = reference_pre_tokenizer(GPT2_PATTERN).pre_tokenize_str(text)
    ours = splitter(GPT2_PATTERN).findall(text)
    # `tokenizers` gives characters for bytes here, so the places are compared.
    ends = [sum(map(len, ours[: i + 1])) for i in range(len(ours))]
    assert [end for _, (_, end) in cut] == ends


@pytest.mark.parametrize(
    ("ours", "theirs"), [(GPT2_PATTERN, TIKTOKEN_GPT2), (CL100K_PATTERN, TIKTOKEN_CL100K)]
)
@settings(max_examples=300, deadline=None)
@given(text=tricky_text())
def test_spelling_means_the_same_as_tiktokens(ours: str, theirs: str, text: str) -> None:
    assert splitter(ours).findall(text) == regex.findall(theirs, text)


def test_real_text_is_split_as_by_tokenizers() -> None:
    for pattern in PATTERNS.values():
        for text in library_texts():
            assert splitter(pattern).findall(text) == reference_split(pattern, text)


def test_regex_engines_differ_only_about_characters_new_to_one_of_them() -> None:
    assert all(disputed_characters().values())


# --- any pattern -----------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    text=tricky_text(),
    pattern=st.sampled_from([r"\p{N}{1,3}|a+", r"x", r"\p{L}+(?=\s)", r"(?<=a)b|\s++"]),
)
def test_splitter_keeps_what_a_pattern_leaves_out(text: str, pattern: str) -> None:
    pieces = splitter(pattern).findall(text)
    assert "".join(pieces) == text
    assert pieces == reference_split(pattern, text)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(", "no regular expression"), ("(a)|b", "capturing"), ("a*", "empty string")],
)
def test_bad_patterns(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        splitter(pattern)


# --- cutting streams -------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", CUTTABLE.values(), ids=CUTTABLE)
@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_cuts_change_nothing(pattern: str, data: Any) -> None:
    text = data.draw(tricky_text(max_size=40))
    part_chars = data.draw(st.integers(1, 12))
    find = splitter(pattern).findall
    for source in (io.StringIO(text, newline=""), chunked(data.draw, text)):
        parts = list(safe_parts(source, pattern, part_chars=part_chars))
        assert "".join(parts) == text
        assert [piece for part in parts for piece in find(part)] == find(text)


@pytest.mark.parametrize("pattern", CUTTABLE.values(), ids=CUTTABLE)
def test_every_single_cut_in_hard_places(pattern: str) -> None:
    find = splitter(pattern).findall
    hard = "a \n b\r\n\r\n c  d\t\ne'll 'LL;\n\n;\r\n 12345 67\n8.\n9 \n\u00a0x\u00a0\n\n  "
    for text in (hard, hard[::-1], hard.upper(), *(hard[i:] for i in range(30))):
        for size in range(1, len(text)):
            parts = safe_parts(io.StringIO(text, newline=""), pattern, part_chars=size)
            assert [piece for part in parts for piece in find(part)] == find(text)


def test_ordinary_text_is_cut_close_to_where_asked() -> None:
    text = "".join(library_texts())
    for pattern in PATTERNS.values():
        parts = list(safe_parts(io.StringIO(text, newline=""), pattern, part_chars=1000))
        assert max(map(len, parts)) < 1300
        assert "".join(parts) == text


@pytest.mark.parametrize(
    "text", ["1,2,3\n" * 50, "word\n" * 60, "!? " * 90, "中。" * 120, "9" * 30 + " x" + "9" * 300]
)
def test_cuts_are_found_in_text_of_one_kind(text: str) -> None:
    for pattern in PATTERNS.values():
        assert len(list(safe_parts(io.StringIO(text), pattern, part_chars=40))) > 1


def test_text_without_a_cut_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []
    cut = pretokens._CUT

    class Counting:
        def search(self, text: str, first: int, end: int) -> Any:
            searched.append(end - first)
            return cut.search(text, first, end)

    monkeypatch.setattr(pretokens, "_CUT", Counting())
    text = "a" * 100_000
    assert list(safe_parts(io.StringIO(text), GPT2_PATTERN, part_chars=100)) == [text]
    assert sum(searched) < 2 * len(text)


def test_strings_to_keep_whole_are_not_cut() -> None:
    text = "a<end of it>b <end of it><end of it>c " * 20
    uncut = regex.compile(regex.escape("<end of it>"))
    for size in range(1, 60):
        parts = list(
            safe_parts(io.StringIO(text), GPT2_PATTERN, part_chars=size, uncut=uncut, reach=11)
        )
        assert "".join(parts) == text
        assert sum(len(uncut.findall(part)) for part in parts) == 60
        assert len(parts) > 5 or size > 40


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("text", {}, TypeError, "not one string"),
        (io.BytesIO(b"text"), {}, TypeError, "strings, not bytes"),
        ([b"text"], {}, TypeError, "strings, not bytes"),
        (["text"], {"part_chars": 0}, ValueError, "positive"),
        (["text"], {"pattern": r"\S+|\s+"}, ValueError, "proven safe"),
    ],
)
def test_bad_streams(source: Any, options: Any, error: type[Exception], message: str) -> None:
    options = {"pattern": GPT2_PATTERN, **options}
    with pytest.raises(error, match=message):
        list(safe_parts(source, **options))


def test_long_texts_are_cut_and_short_ones_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretokens, "_BATCH_CHARS", 100)
    monkeypatch.setattr(pretokens, "_PART_CHARS", 50)
    text = "some words and more " * 50
    assert list(text_parts(text[:90], GPT2_PATTERN)) == [text[:90]]
    assert list(text_parts(text, r"\S+|\s+")) == [text]
    parts = list(text_parts(text, GPT2_PATTERN))
    assert len(parts) > 10
    assert "".join(parts) == text


# --- counting --------------------------------------------------------------------------------


def test_counts_are_those_of_findall_whatever_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretokens, "_BATCH_CHARS", 40_000)  # several batches, some texts cut
    monkeypatch.setattr(pretokens, "_PART_CHARS", 10_000)
    texts = library_texts()
    for pattern in PATTERNS.values():
        want: Counter[str] = Counter()
        for text in texts:
            want.update(regex.findall(pattern, text))
        assert count_pretokens(texts, pattern) == want
    assert count_pretokens(iter(texts), CL100K_PATTERN, workers=2) == want


def test_counting_nothing() -> None:
    assert count_pretokens([]) == count_pretokens(["", ""]) == Counter()


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        (["a\ud800"], {}, ValueError, r"lone surrogate, U\+D800, at index 1"),
        ([3], {}, TypeError, "must be a str, not int"),
        ("abc", {}, TypeError, "not one string"),
        (["a"], {"workers": 0}, ValueError, "workers"),
        (["a"], {"pattern": "("}, ValueError, "no regular expression"),
    ],
)
def test_bad_counting(texts: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        count_pretokens(texts, **options)


@pytest.mark.parametrize("text", ["", "a", "é中👩‍👧\x00\U0010ffff", "a" * 100])
def test_texts_that_pass(text: str) -> None:
    check_text(text)
