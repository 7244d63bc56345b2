"""The two obvious tokenizers: a token for each character, a token for each word.

Each is a `sequence_data.Vocabulary` built from a text; what is interesting is what they cost on
another one. Derived in README.md, "The two obvious answers".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import regex

from sequence_data import Vocabulary

_WORD = regex.compile(r"\w+|[^\w\s]|\s")
_UNKNOWN = (Vocabulary.UNKNOWN,)


def plain_words(text: str) -> list[str]:
    """Words, signs and white space; they join to the text."""
    return _WORD.findall(text)


def character_vocabulary(texts: Iterable[str], *, max_size: int | None = None) -> Vocabulary:
    """The characters of the texts, the most frequent first, behind the unknown one."""
    return Vocabulary.build(texts, max_size=max_size, specials=_UNKNOWN)


def word_vocabulary(texts: Iterable[str], *, max_size: int | None = None) -> Vocabulary:
    """The words of the texts, the most frequent first, behind the unknown one."""
    return Vocabulary.build(map(plain_words, texts), max_size=max_size, specials=_UNKNOWN)


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What a plain vocabulary does to a text: tokens, how many of them are unknown, and bytes."""

    tokens: int
    unknown: int
    num_bytes: int

    @property
    def bytes_per_token(self) -> float:
        return self.num_bytes / max(1, self.tokens)

    @property
    def unknown_share(self) -> float:
        return self.unknown / max(1, self.tokens)


def coverage(vocabulary: Vocabulary, text: str, *, by_word: bool) -> Coverage:
    """Write a text with a plain vocabulary and count."""
    symbols = plain_words(text) if by_word else list(text)
    unknown = sum(symbol not in vocabulary for symbol in symbols)
    return Coverage(tokens=len(symbols), unknown=unknown, num_bytes=len(text.encode()))
