"""What the tokenizer's tests share: real text, strings that are hard to cut, and tokenizers made
by the `tokenizers` library.
"""

from __future__ import annotations

import json
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import regex
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from bpe import BPE, byte_characters
from pretokens import GPT2_PATTERN

MODULES = (
    "argparse.py", "ast.py", "bisect.py", "calendar.py", "csv.py", "difflib.py", "email/header.py",
    "fractions.py", "heapq.py", "json/decoder.py", "locale.py", "textwrap.py", "this.py",
)  # fmt: skip

POLYGLOT = (
    "Die Größe der Straße, naïve cafés: e\u0301 und é.\n" * 3,
    "Быстрая коричневая лиса. Γειά σου Κόσμε! שלום עולם، مرحبا بالعالم ١٢٣٤\r\n" * 3,
    "素早い茶色の狐が跳ぶ。多语言文本，没有空格。빠른 갈색 여우\n\n" * 3,
    "👩‍👩‍👧‍👦 🇫🇷 🏳️‍🌈 ½ Ⅷ ² x\u00a0y\u3000z\u2028w \t\x1c\x00\x85 I'LL don't it'ſ\n" * 3,
)

# The strings at which patterns and chunk borders go wrong, to be strung together.
FRAGMENTS = (
    " ", "  ", "\n", "\r", "\r\n", "\t", "\x0b", "\x1c", "\x85", "\u00a0", "\u2003", "\u2028",
    "'", "'s", "'ll", "'LL", "'ſ", "'re", "s", "ll", "a", "A", "é", "e\u0301", "ß", "中", "ا",
    "ไทย", "1", "12", "1234", "١", "½", "Ⅷ", ".", ",", "...", "!?", "_", "-", "{", "\x00", "word",
    " word", "\u200d", "👩‍👧", "🇫🇷", "\ufeff", "\U0010ffff", "\ue000", "İ", "ŉ", "ﬆ", "<|", "|>",
    "endoftext",
)  # fmt: skip


@cache
def library_texts() -> tuple[str, ...]:
    """About 600 kB of the standard library and some lines in other scripts."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return (*((root / name).read_text(encoding="utf-8") for name in MODULES), *POLYGLOT)


def _matching_in_tokenizers(pattern: str, characters: str) -> set[str]:
    """The characters that match a class in the regex engine inside `tokenizers`."""
    remove = normalizers.Replace(Regex(pattern), "")
    parts = (characters[i : i + 1000] for i in range(0, len(characters), 1000))
    return set(characters) - {c for part in parts for c in remove.normalize_str(part)}


@cache
def disputed_characters() -> dict[str, bool]:
    """Characters that `regex` and `tokenizers` put in different classes, since they know different
    versions of Unicode; and whether one of the two does not know the character at all.
    """
    # Above these planes there are only tags, variation selectors and private characters.
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x40000)]))
    disputed: set[str] = set()
    for name in (r"\p{L}", r"\p{N}", r"\s"):
        disputed |= set(regex.findall(name, every)) ^ _matching_in_tokenizers(name, every)
    text = "".join(sorted(disputed))
    new = set(regex.findall(r"\p{Cn}", text)) | _matching_in_tokenizers(r"\p{Cn}", text)
    return {character: character in new for character in disputed}


def tricky_text(*, max_size: int = 24) -> st.SearchStrategy[str]:
    """Any Unicode text, woven with the fragments above; without the disputed characters, so that
    `tokenizers` and ours have to agree about it.
    """
    anything = st.text(max_size=4).map(
        lambda text: "".join(c for c in text if c not in disputed_characters())
    )
    piece = st.one_of(st.sampled_from(FRAGMENTS), st.sampled_from(FRAGMENTS), anything)
    return st.lists(piece, max_size=max_size).map("".join)


def chunked(draw: Any, text: str) -> list[str]:
    """A text in pieces of any sizes, empty ones too."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def reference_pre_tokenizer(pattern: str) -> Any:
    """`tokenizers`' byte-level pre-tokenizer: GPT-2's pattern is built in, others come before."""
    if pattern == GPT2_PATTERN:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def train_reference(
    texts: Any, vocab_size: int, pattern: str = GPT2_PATTERN, **options: Any
) -> Tokenizer:
    """A tokenizer that the `tokenizers` library has trained."""
    reference = Tokenizer(models.BPE())
    reference.pre_tokenizer = reference_pre_tokenizer(pattern)
    reference.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False, **options
    )
    reference.train_from_iterator(texts, trainer)
    return reference


def model_of(reference: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Its vocabulary and its merges."""
    model = json.loads(reference.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def shown(piece: bytes) -> str:
    """A piece as vocabulary files spell it."""
    characters = byte_characters()
    return "".join(characters[byte] for byte in piece)


def reference_for(bpe: BPE) -> Tokenizer:
    """`tokenizers` with the merge table of a BPE."""
    vocab = {shown(piece): id_ for piece, id_ in bpe.vocab.items()}
    merges = [(shown(left), shown(right)) for left, right in bpe.merges]
    model = models.BPE(vocab=vocab, merges=merges, ignore_merges=bpe.whole_pieces)
    reference = Tokenizer(model)
    reference.pre_tokenizer = reference_pre_tokenizer(bpe.pattern)
    reference.decoder = decoders.ByteLevel()
    return reference
