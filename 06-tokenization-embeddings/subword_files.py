"""WordPiece and Unigram in a `tokenizer.json`: the sections that say what a word is and how it is
cut, written for `tokenizers` and read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pretokens import GPT2_PATTERN
from subword_model import SubwordModel
from text_surfaces import METASPACE, BertText, ByteLevelText, MetaspaceText, TextSurface
from unigram import Unigram
from wordpiece import WordPiece

_TEMPLATES = ("TemplateProcessing", "BertProcessing")


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": use_regex,
    }


def _surface_sections(surface: TextSurface) -> dict[str, Any]:
    if isinstance(surface, BertText):
        normalizer = {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": surface.lowercase,
        }
        return {"normalizer": normalizer, "pre_tokenizer": {"type": "BertPreTokenizer"}}
    if isinstance(surface, MetaspaceText):
        metaspace = {"type": "Metaspace", "replacement": METASPACE}
        metaspace |= {"prepend_scheme": "never", "split": True}  # type: ignore[dict-item]
        return {"normalizer": None, "pre_tokenizer": metaspace}
    if isinstance(surface, ByteLevelText):
        if surface.pattern == GPT2_PATTERN:
            return {"normalizer": None, "pre_tokenizer": _byte_level(True)}
        split = {"type": "Split", "pattern": {"Regex": surface.pattern}}
        split |= {"behavior": "Isolated", "invert": False}
        steps = {"type": "Sequence", "pretokenizers": [split, _byte_level(False)]}
        return {"normalizer": None, "pre_tokenizer": steps}
    raise ValueError(f"{type(surface).__name__} has no form in a tokenizer.json")


def _decoder(model: SubwordModel) -> dict[str, Any]:
    def replace(old: str, new: str) -> dict[str, Any]:
        return {"type": "Replace", "pattern": {"String": old}, "content": new}

    if isinstance(model.surface, ByteLevelText):
        if isinstance(model, WordPiece):
            return {"type": "Sequence", "decoders": [replace(model.prefix, ""), _byte_level(True)]}
        return _byte_level(True)
    if isinstance(model, WordPiece):
        return {"type": "WordPiece", "prefix": model.prefix, "cleanup": False}
    steps = [replace(METASPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    return {"type": "Sequence", "decoders": steps}


def subword_sections(model: SubwordModel, added_tokens: Mapping[str, int]) -> dict[str, Any]:
    """The sections of a `tokenizer.json` that depend on the model.

    Raises:
        ValueError: a surface or a model that has no such form.
    """
    if isinstance(model, WordPiece):
        vocab = {**model.vocab, **added_tokens}
        content: dict[str, Any] = {
            "type": "WordPiece",
            "unk_token": model.unk_token,
            "continuing_subword_prefix": model.prefix,
            "max_input_chars_per_word": model.max_word_chars,
            "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])),
        }
    elif isinstance(model, Unigram):
        content = {
            "type": "Unigram",
            "unk_id": model.unk_id,
            "vocab": [list(scored) for scored in model.scored_pieces],
            "byte_fallback": model.byte_fallback,
        }
    else:
        raise ValueError(f"{type(model).__name__} has no form in a tokenizer.json")
    return {
        **_surface_sections(model.surface),
        "post_processor": None,
        "decoder": _decoder(model),
        "model": content,
    }


# ---------------------------------------------------------------------------------------------
# Reading


def _read_surface(content: Mapping[str, Any]) -> TextSurface:
    normalizer, words = content.get("normalizer"), content.get("pre_tokenizer")
    kind = words.get("type") if isinstance(words, dict) else None
    if kind == "BertPreTokenizer" and isinstance(normalizer, dict):
        lowercase = normalizer.get("lowercase")
        as_bert = {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "lowercase": lowercase,
        }
        strips = normalizer.get("strip_accents")
        if {**normalizer, **as_bert} == normalizer and strips in (None, lowercase):
            return BertText(lowercase=bool(lowercase))
    elif normalizer is None and isinstance(words, dict):
        plain = {"type": "Metaspace", "replacement": METASPACE, "prepend_scheme": "never"}
        if {**words, **plain} == words and words.get("split", True):
            return MetaspaceText()
        if words == _byte_level(True) or {**words, "trim_offsets": False} == _byte_level(True):
            return ByteLevelText()
        if kind == "Sequence":
            pattern = _split_pattern(words)
            if pattern is not None:
                return ByteLevelText(pattern)
    raise ValueError(
        f"normalizer {normalizer!r:.200} with pre_tokenizer {words!r:.200} is not supported, only "
        "BERT's, Metaspace without a prefix, and ByteLevel"
    )


def _split_pattern(words: Mapping[str, Any]) -> str | None:
    steps = words.get("pretokenizers")
    if not isinstance(steps, list) or len(steps) != 2 or not isinstance(steps[0], dict):
        return None
    pattern = steps[0].get("pattern")
    found = pattern.get("Regex") if isinstance(pattern, dict) else None
    same = _surface_sections(ByteLevelText(found))["pre_tokenizer"] if found else None
    return found if words == same else None


def read_subword_model(
    content: Mapping[str, Any], added_tokens: Mapping[str, int]
) -> WordPiece | Unigram:
    """The WordPiece or Unigram of a `tokenizer.json`.

    Raises:
        ValueError: damaged, or of a kind that is not supported.
    """
    model = content["model"]
    post = content.get("post_processor")
    if post is not None and (not isinstance(post, dict) or post.get("type") not in _TEMPLATES):
        raise ValueError(f"post_processor {post!r:.200} is not supported, only a template")
    surface = _read_surface(content)
    vocab = model.get("vocab")
    if model["type"] == "WordPiece":
        if not isinstance(vocab, dict) or not all(type(id_) is int for id_ in vocab.values()):
            raise ValueError("vocab must be an object of ids")
        longest = model.get("max_input_chars_per_word", 100)
        if type(longest) is not int:
            raise ValueError(f"max_input_chars_per_word must be a number, not {longest!r:.80}")
        unk_token = str(model.get("unk_token"))
        # Special tokens stand in the list, too; in a text they are to be found by name only.
        named = {t: i for t, i in vocab.items() if t not in added_tokens or t == unk_token}
        return WordPiece(
            named,
            surface,
            unk_token=unk_token,
            prefix=str(model.get("continuing_subword_prefix", "")),
            max_word_chars=longest,
        )
    entries: list[Any] = vocab if isinstance(vocab, list) else [None]
    for number, entry in enumerate(entries):
        if (
            not isinstance(entry, list)
            or len(entry) != 2
            or not isinstance(entry[0], str)
            or type(entry[1]) not in (int, float)
        ):
            raise ValueError(f"vocab entry {number} must be a piece and a score, not {entry!r:.80}")
    unk_id = model.get("unk_id")
    if unk_id is not None and type(unk_id) is not int:
        raise ValueError(f"unk_id must be a number or null, not {unk_id!r:.80}")
    inside = [id_ for id_ in added_tokens.values() if id_ < len(entries)]
    return Unigram(
        [(piece, score) for piece, score in entries],
        surface,
        unk_id=unk_id,
        byte_fallback=bool(model.get("byte_fallback")),
        control_ids=inside,
    )
