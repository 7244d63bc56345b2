"""How a text is laid before a subword model: as words of characters, each tied to its place.

A subword model only ever sees words. What a word is, and what is lost on the way, is decided here:
`ByteLevelText` (GPT-2's: bytes as characters, nothing lost), `MetaspaceText` (SentencePiece's: a
space becomes a sign of its own) and `BertText` (BERT's: cleaned, perhaps lower case, no spaces).
Words and offsets are those of the `tokenizers` library's classes of the same names.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import regex

from bpe import byte_characters
from pretokens import GPT2_PATTERN, splitter, text_parts

METASPACE = "▁"  # U+2581, which stands for a space in SentencePiece's vocabularies
_CHARACTER = byte_characters()
_BYTE = {character: byte for byte, character in _CHARACTER.items()}
_TABLE = "".join(_CHARACTER[byte] for byte in range(256))
_SPACED = regex.compile(rf"{METASPACE}[^{METASPACE}]*|[^{METASPACE}]+")

_PUNCTUATION = r"!-/:-@\[-`{-~\p{P}"
_BERT_WORD = regex.compile(rf"[{_PUNCTUATION}]|[^\s{_PUNCTUATION}]+")
_REMOVED = regex.compile(r"(?![\t\n\r])[\x00\ufffd\p{Cc}\p{Cf}\p{Co}]")
_WHITE = regex.compile(r"\s")
# The blocks of Chinese characters that BERT's multilingual model sets apart, as its authors and
# `tokenizers` list them. (The last but two ends short of where Unicode's block does.)
_CHINESE = regex.compile(
    "[\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f"
    "\U0002b740-\U0002b81f\U0002b920-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f]"
)

Span = tuple[int, int]


class TextSurface(Protocol):
    """What a subword model needs to know about text."""

    @property
    def pattern(self) -> str | None:
        """The pre-tokenisation pattern, where streaming is possible."""
        ...

    @property
    def spaced(self) -> bool:
        """Whether decoding puts a space before each word."""
        ...

    @property
    def alphabet(self) -> str:
        """The characters that every vocabulary must have."""
        ...

    def words(self, text: str) -> Iterable[str]:
        """The words, written in the model's characters."""
        ...

    def aligned_words(self, text: str) -> Iterable[tuple[str, Sequence[Span]]]:
        """Each word, and for each of its characters the [start, end) that it has in the text."""
        ...

    def piece_bytes(self, piece: str) -> bytes:
        """What a piece of a word adds to a decoded text."""
        ...


@dataclass(frozen=True)
class ByteLevelText:
    """Pre-tokens by a pattern, written byte by byte in GPT-2's 256 characters. Loses nothing.

    Raises:
        ValueError: the pattern does not compile, captures groups or matches the empty string.
    """

    pattern: str = GPT2_PATTERN
    spaced = False
    alphabet = "".join(sorted(_BYTE))

    def __post_init__(self) -> None:
        splitter(self.pattern)

    def words(self, text: str) -> Iterable[str]:
        find = splitter(self.pattern).findall
        for part in text_parts(text, self.pattern):
            for word in find(part):
                # Latin-1 gives every byte the code of its own number, which `translate` looks up.
                yield word.encode().decode("latin-1").translate(_TABLE)

    def aligned_words(self, text: str) -> Iterable[tuple[str, Sequence[Span]]]:
        begin = 0
        for word in splitter(self.pattern).findall(text):
            spans = [
                (place, place + 1)
                for place, character in enumerate(word, start=begin)
                for _ in character.encode()
            ]
            begin += len(word)
            yield word.encode().decode("latin-1").translate(_TABLE), spans

    def piece_bytes(self, piece: str) -> bytes:
        try:
            return bytes(map(_BYTE.__getitem__, piece))
        except KeyError as error:
            raise ValueError(f"piece {piece!r} is not byte-level: {error.args[0]!r}") from None


@dataclass(frozen=True)
class MetaspaceText:
    """Spaces become "▁" and begin words (SentencePiece; Kudo and Richardson 2018). What is lost:
    a "▁" that was in the text comes back as a space."""

    pattern = None
    spaced = False
    alphabet = METASPACE

    def words(self, text: str) -> Iterable[str]:
        return _SPACED.findall(text.replace(" ", METASPACE))

    def aligned_words(self, text: str) -> Iterable[tuple[str, Sequence[Span]]]:
        begin = 0
        for word in self.words(text):
            yield word, [(place, place + 1) for place in range(begin, begin + len(word))]
            begin += len(word)

    def piece_bytes(self, piece: str) -> bytes:
        return piece.replace(METASPACE, " ").encode()


@dataclass(frozen=True, kw_only=True)
class BertText:
    """BERT's normaliser and words (Devlin et al. 2019): control characters dropped, Chinese
    characters set apart, with `lowercase` accents stripped and letters lowered; then split at
    white space and around each punctuation mark. Loses white space, and with `lowercase` more."""

    lowercase: bool = True
    pattern = None
    spaced = True
    alphabet = ""

    def words(self, text: str) -> Iterable[str]:
        text = _CHINESE.sub(r" \g<0> ", _WHITE.sub(" ", _REMOVED.sub("", text)))
        if self.lowercase:
            text = "".join(map(_lowered, text)) if not text.isascii() else text.lower()
        return _BERT_WORD.findall(text)

    def aligned_words(self, text: str) -> Iterable[tuple[str, Sequence[Span]]]:
        shown: list[str] = []
        spans: list[Span] = []
        for place, character in enumerate(text):
            if _REMOVED.match(character):
                continue
            new = " " if _WHITE.match(character) else character
            if _CHINESE.match(new):
                new = f" {new} "
            if self.lowercase:
                new = "".join(map(_lowered, new))
            shown.append(new)
            spans.extend([(place, place + 1)] * len(new))
        for match in _BERT_WORD.finditer("".join(shown)):
            yield match.group(), spans[match.start() : match.end()]

    def piece_bytes(self, piece: str) -> bytes:
        return piece.encode()


def _lowered(character: str) -> str:
    """Without accents and in lower case. Sign by sign, so that no context counts: a final capital
    sigma becomes σ, as in BERT's code."""
    decomposed = unicodedata.normalize("NFD", character)
    return "".join(c for c in decomposed if unicodedata.category(c) != "Mn").lower()
