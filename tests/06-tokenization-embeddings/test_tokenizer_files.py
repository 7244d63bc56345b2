"""Tokenizer files: what other programs wrote is read as they read it, or refused, with why."""

from __future__ import annotations

import copy
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Reference
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

from bpe import BPE, train_bpe
from pretokens import CL100K_PATTERN, GPT2_PATTERN
from tokenizer import Tokenizer
from tokenizer_files import EOS_TOKEN, TokenizerParts, tokenizer_json
from tokenizer_parity import POLYGLOT, library_texts, train_reference, tricky_text

TEXTS = (*POLYGLOT, *library_texts()[:2], f" a{EOS_TOKEN}  b foo   bar ", "")


def small(pattern: str = GPT2_PATTERN, **options: Any) -> Reference:
    return train_reference(TEXTS, 400, pattern, **options)


def check_same(ours: Tokenizer, theirs: Reference) -> None:
    for text in TEXTS:
        want = theirs.encode(text)
        ids, offsets = ours.encode_with_offsets(text, allowed_special="all")
        assert (ids, offsets) == (want.ids, want.offsets)
        assert ours.encode(text, allowed_special="all") == ids
        assert ours.decode(ids) == text


def load(theirs: Reference, folder: Path) -> Tokenizer:
    theirs.save(str(folder / "theirs.json"))
    return Tokenizer.load(folder / "theirs.json")


# --- what is read ----------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [GPT2_PATTERN, CL100K_PATTERN, r"\p{N}{1,3}|\p{L}+"])
@pytest.mark.parametrize("special", [(), (EOS_TOKEN,), ("<pad>", EOS_TOKEN, "foo")])
def test_files_of_tokenizers(tmp_path: Path, pattern: str, special: tuple[str, ...]) -> None:
    theirs = small(pattern, special_tokens=list(special))
    ours = load(theirs, tmp_path)
    check_same(ours, theirs)
    assert ours.vocab_size == theirs.get_vocab_size() == 400
    assert tuple(ours.special_tokens) == special
    assert ours.eos_id == (special.index(EOS_TOKEN) if special else None)


def test_tokens_added_after_training(tmp_path: Path) -> None:
    theirs = small()
    theirs.add_special_tokens([EOS_TOKEN, "!"])
    theirs.add_tokens(["foo", "   ", "Größe"])
    ours = load(theirs, tmp_path)
    check_same(ours, theirs)
    assert (ours.vocab_size, ours.special_tokens) == (404, {"!": 0, EOS_TOKEN: 400})
    # What is not special is found in any text; and all that survives being saved.
    assert 401 in ours.encode("foo!")
    assert 0 in ours.encode("foo!")
    ours.save(tmp_path / "ours.json")
    check_same(Tokenizer.load(tmp_path / "ours.json"), theirs)
    check_same(ours, Reference.from_file(str(tmp_path / "ours.json")))


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("prefix", [True, False])
def test_trimmed_offsets(tmp_path: Path, trim: bool, prefix: bool) -> None:
    theirs = small(r"\p{L}+\s*|\s+|[^\s\p{L}]+", special_tokens=["  foo ", "a "])
    theirs.post_processor = processors.ByteLevel(trim_offsets=trim, add_prefix_space=prefix)
    ours = load(theirs, tmp_path)
    check_same(ours, theirs)
    ours.save(tmp_path / "ours.json")
    check_same(ours, Reference.from_file(str(tmp_path / "ours.json")))
    check_same(Tokenizer.load(tmp_path / "ours.json"), theirs)
    for text in ("  foo ", " foo", "   ", " x", "a a  foo  a", "é  \u00a0 ", "  中  "):
        want = theirs.encode(text)
        assert ours.encode_with_offsets(text, allowed_special="all") == (want.ids, want.offsets)


@cache
def trimming(prefix: bool) -> tuple[Tokenizer, Reference]:
    theirs = train_reference((*TEXTS, "  a   b    c     " * 9), 420, r"\p{L}+ *|\s+|[^\s\p{L}]+")
    theirs.post_processor = processors.ByteLevel(trim_offsets=True, add_prefix_space=prefix)
    with tempfile.TemporaryDirectory() as folder:
        return load(theirs, Path(folder)), theirs


@settings(max_examples=200, deadline=None)
@given(text=tricky_text(), prefix=st.booleans())
def test_trimmed_offsets_of_any_text(text: str, prefix: bool) -> None:
    ours, theirs = trimming(prefix)
    want = theirs.encode(text)
    assert ours.encode_with_offsets(text) == (want.ids, want.offsets)


@pytest.mark.parametrize("step", ["sequence", "no decoder", "no post-processor", "old merges"])
def test_other_spellings_of_the_same(tmp_path: Path, step: str) -> None:
    theirs = small(CL100K_PATTERN, special_tokens=[EOS_TOKEN])
    content = json.loads(theirs.to_str())
    if step == "sequence":
        for key, name, part in (
            ("decoder", "decoders", content["decoder"]),
            ("post_processor", "processors", {"type": "ByteLevel", "trim_offsets": False}),
        ):
            content[key] = {"type": "Sequence", name: [part]}
        content["normalizer"] = {"type": "Sequence", "normalizers": []}
        content["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0}
    elif step == "no decoder":
        content["decoder"] = None
    elif step == "no post-processor":
        del content["post_processor"]
    else:
        content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
        del content["model"]["type"], content["model"]["byte_fallback"]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    check_same(Tokenizer.load(path), theirs)


def test_a_split_that_keeps_its_matches(tmp_path: Path) -> None:
    theirs = small(CL100K_PATTERN)
    split = pre_tokenizers.Split(Regex(CL100K_PATTERN), "removed", invert=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    check_same(load(theirs, tmp_path), theirs)


def test_whole_pieces(tmp_path: Path) -> None:
    # A piece that the merges do not reach is used only where merges are ignored.
    bpe = train_bpe(["ab"], 256)
    parts = {flag: BPE([], bpe.vocab | {b"ab": 256}, whole_pieces=flag) for flag in (True, False)}
    for flag, made in parts.items():
        tokenizer = Tokenizer.from_bpe(made, ())
        tokenizer.save(tmp_path / "tokenizer.json")
        theirs = Reference.from_file(str(tmp_path / "tokenizer.json"))
        loaded = Tokenizer.load(tmp_path / "tokenizer.json")
        assert loaded.encode("ab") == theirs.encode("ab").ids == tokenizer.encode("ab")
        assert (loaded.encode("ab") == [256]) == flag


def test_gpt2s_two_files(tmp_path: Path) -> None:
    theirs = small(special_tokens=[EOS_TOKEN])
    theirs.model.save(str(tmp_path))
    ours = Tokenizer.load(tmp_path)
    check_same(ours, theirs)
    assert ours.special_tokens == {EOS_TOKEN: 0}
    assert ours.eos_id == 0
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 400}')
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": {"content": "<pad>"}}')
    more = Tokenizer.load(tmp_path)
    assert (more.pad_id, more.eos_id, more.vocab_size) == (400, 0, 401)


def test_folders_of_transformers(tmp_path: Path) -> None:
    theirs = small(special_tokens=[EOS_TOKEN])
    theirs.model.save(str(tmp_path))
    gpt2 = GPT2Tokenizer(vocab=f"{tmp_path}/vocab.json", merges=f"{tmp_path}/merges.txt")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=theirs,
        bos_token=EOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token="<pad>",
        extra_special_tokens=["<a>"],
    )
    for name, made in (("gpt2", gpt2), ("fast", fast)):
        made(["a", "a b"], padding=name == "fast", truncation=True, max_length=1)
        made.save_pretrained(tmp_path / name)
        ours = Tokenizer.load(tmp_path / name)
        assert (ours.eos_id, ours.bos_id) == (made.eos_token_id, made.bos_token_id)
        assert ours.pad_id == made.pad_token_id
        for text in (*TEXTS, "<a><pad>"):
            ids = made(text)["input_ids"]
            assert ours.encode(text, allowed_special="all") == ids
            assert ours.decode(ids) == text


# --- what is refused -------------------------------------------------------------------------


def other_models() -> dict[str, tuple[Reference, str]]:
    word_piece = Reference(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    unigram = Reference(models.Unigram([("a", -1.0)]))
    word_level = Reference(models.WordLevel({"a": 0}, unk_token="a"))
    sentence_piece = Reference(models.BPE({"a": 0, "▁": 1}, []))
    sentence_piece.pre_tokenizer = pre_tokenizers.Metaspace()
    changed = {
        name: small() for name in ("nfc", "template", "digits", "prefix", "sequence", "flag")
    }
    changed["nfc"].normalizer = normalizers.NFC()
    changed["template"].add_special_tokens(["<s>"])
    changed["template"].post_processor = processors.TemplateProcessing(
        "<s> $A", special_tokens=[("<s>", 400)]
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    changed["digits"].pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), byte_level])
    changed["prefix"].pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    split = pre_tokenizers.Split(Regex("a"), "isolated")
    changed["sequence"].pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    changed["flag"].add_tokens([AddedToken("foo", lstrip=True)])
    more = {
        name: small() for name in ("decoder", "none", "no regex", "merged", "possessive", "string")
    }
    more["decoder"].decoder = decoders.WordPiece()
    more["none"].pre_tokenizer = None
    no_regex = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    more["no regex"].pre_tokenizer = no_regex
    for name, pattern, behaviour in (
        ("merged", Regex("a"), "merged_with_next"),
        ("possessive", Regex(r"\p{N}{1,3}+"), "isolated"),
        ("string", "a", "isolated"),
    ):
        split = pre_tokenizers.Split(pattern, behaviour)
        more[name].pre_tokenizer = pre_tokenizers.Sequence([split, no_regex])
    return {
        "WordPiece": (word_piece, "pre_tokenizer None is not supported"),
        "Unigram": (unigram, "pre_tokenizer None is not supported"),
        "WordLevel": (word_level, "model 'WordLevel' is not supported"),
        "SentencePiece": (sentence_piece, r"'▁' is not byte-level|Metaspace"),
        "nfc": (changed["nfc"], "normalizer .*NFC.* is not supported"),
        "template": (changed["template"], r"post_processor \['TemplateProcessing'\]"),
        "digits": (changed["digits"], "pre_tokenizer .*Digits"),
        "prefix": (changed["prefix"], "add_prefix_space"),
        "sequence": (changed["sequence"], "splits twice"),
        "flag": (changed["flag"], "lstrip of the added token 'foo'"),
        "decoder": (more["decoder"], r"decoder \['WordPiece'\]"),
        "none": (more["none"], r"pre_tokenizer \[\]"),
        "no regex": (more["no regex"], "without a regex"),
        "merged": (more["merged"], "MergedWithNext"),
        "possessive": (more["possessive"], r"'\{1,3\}\+' does not mean the same"),
        "string": (more["string"], "by a string"),
    }


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    for theirs, message in other_models().values():
        with pytest.raises(ValueError, match=message) as caught:
            load(theirs, tmp_path)
        assert "theirs.json" in str(caught.value)


def valid() -> dict[str, Any]:
    bpe = train_bpe(["low lower lowest"], 262)
    made = TokenizerParts(model=bpe, special_tokens={EOS_TOKEN: 262}, eos_token=EOS_TOKEN)
    return json.loads(tokenizer_json(made))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout": 0.1}, "dropout = 0.1"),
        ({"byte_fallback": True}, "byte_fallback"),
        ({"end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ({"continuing_subword_prefix": "##"}, "continuing_subword_prefix"),
        ({"vocab": {"a": 0}}, "is not in vocab|lacks 255"),
        ({"vocab": {"a": "0"}}, "'a' has '0' for an id"),
        ({"vocab": None}, "vocab must be an object"),
        ({"merges": [["a"]]}, "merge 0 must be a pair"),
        ({"merges": ["a b c"]}, "merge 0 must be a pair"),
        ({"merges": ["q x"]}, "b'qx' is not in vocab"),
        ({"merges": ["a é中"]}, "not byte-level: '中' stands for no byte"),
    ],
)
def test_damaged_models_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    content = valid()
    content["model"] |= change
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x81\xff", "is no JSON"),
        (b"", "is no JSON"),
        (b'{"model": {"vocab": {', "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[1, 2]", "must hold a JSON object, not list"),
        (b"{}", "model must be an object"),
    ],
)
def test_what_is_no_tokenizer_file(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    for place in (path, tmp_path):
        with pytest.raises(ValueError, match=message):
            Tokenizer.load(place)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places in a file, but of long lists and vocabularies only the first ones."""
    found = [path] if path else []
    if isinstance(value, dict):
        items = list(value.items())[:12]
    else:
        items = list(enumerate(value))[:2] if isinstance(value, list) else []
    return found + [place for key, part in items for place in places(part, (*path, key))]


@pytest.mark.parametrize("place", places(valid()), ids=lambda path: "-".join(map(str, path)))
def test_any_damage_is_a_value_error_or_harmless(tmp_path: Path, place: tuple[Any, ...]) -> None:
    path = tmp_path / "tokenizer.json"
    for junk in (
        None,
        True,
        -1,
        2.5,
        "x",
        "",
        [],
        ["x"],
        [None],
        {},
        {"x": 1},
        {"type": "x"},
        "gone",
    ):
        content = copy.deepcopy(valid())
        holder = content
        for key in place[:-1]:
            holder = holder[key]
        if junk == "gone":
            del holder[place[-1]]
        else:
            holder[place[-1]] = junk
        path.write_text(json.dumps(content), encoding="utf-8")
        try:
            tokenizer = Tokenizer.load(path)
        except ValueError as error:
            message = str(error)
        else:
            message = "tokenizer.json"
            assert tokenizer.decode(tokenizer.encode("the lowest")) == "the lowest"
        assert "tokenizer.json" in message


def test_folders_that_hold_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        Tokenizer.load(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("vocab.json", "[]", "JSON object"),
        ("vocab.json", '{"a": -1}', "'a' has -1 for an id"),
        ("merges.txt", "a b c", "merge 0"),
        ("added_tokens.json", '{"<pad>": 5}', "id 5 belongs to both"),
        ("tokenizer_config.json", '{"eos_token": "<y>"}', "eos_token '<y>' is none of"),
        ("tokenizer_config.json", '{"add_prefix_space": true}', "add_prefix_space"),
    ],
)
def test_damaged_gpt2_folders(tmp_path: Path, name: str, text: str, message: str) -> None:
    small(special_tokens=[EOS_TOKEN]).model.save(str(tmp_path))
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("IQ== 0\nIg==\n", "line 2: must be a piece in base 64 and a rank"),
        ("I!== 0\n", "line 1"),
        ("IQ== x\n", "line 1"),
        ("IQ== 0\n", "lacks 255 of the 256 bytes"),
        ("\ud83d", "no text"),
    ],
)
def test_damaged_rank_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.tiktoken"
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.from_tiktoken(path, GPT2_PATTERN)
    assert "x.tiktoken" in str(caught.value)


def test_a_pattern_that_others_read_differently_is_not_saved(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_bpe(train_bpe([], 256, pattern=r"\p{N}{1,3}+|\S+"))
    with pytest.raises(ValueError, match="does not mean the same"):
        tokenizer.save(tmp_path / "tokenizer.json")
    assert not list(tmp_path.iterdir())
