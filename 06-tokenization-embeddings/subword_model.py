"""What WordPiece and Unigram have in common: a vocabulary of strings, and words one at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from pretokens import check_text, safe_parts
from text_surfaces import Span, TextSurface

_CACHED_CHARS = 64  # longer words hardly ever come back
_CACHED_WORDS = 1 << 17


class SubwordModel(ABC):
    """Text to ids by cutting each word of a surface into pieces of a vocabulary.

    Args:
        vocab: piece -> id.
        surface: what a word is.

    `pieces` says what each id adds to a decoded text.

    Raises:
        ValueError: an id twice or negative.
    """

    def __init__(self, vocab: Mapping[str, int], surface: TextSurface) -> None:
        self.vocab = dict(vocab)
        self.surface = surface
        self.pattern = surface.pattern
        self.names = {id_: piece for piece, id_ in self.vocab.items()}
        if len(self.names) < len(self.vocab) or min(self.names, default=0) < 0:
            raise ValueError("ids in vocab must be unique and not negative")
        self.pieces = {id_: self.piece_bytes(piece) for id_, piece in self.names.items()}
        self._cache: dict[str, tuple[int, ...]] = {}

    @abstractmethod
    def segment(self, word: str) -> list[tuple[int, int, int]]:
        """(id, start, end) for each token of one word, in the word's characters."""

    @abstractmethod
    def piece_bytes(self, piece: str) -> bytes:
        """What a piece adds to a decoded text."""

    @abstractmethod
    def shifted(self, by: int) -> SubwordModel:
        """The same with every id raised by `by`, which makes room for special tokens in front."""

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cache": {}}  # what it has learnt by heart stays behind

    def _ids_of(self, word: str) -> tuple[int, ...]:
        found = self._cache.get(word)
        if found is None:
            found = tuple(id_ for id_, _, _ in self.segment(word))
            if len(word) <= _CACHED_CHARS:
                if len(self._cache) >= _CACHED_WORDS:
                    self._cache.clear()
                self._cache[word] = found
        return found

    def encode(self, text: str) -> list[int]:
        """The ids of a text.

        Raises:
            TypeError, ValueError: `text` is no string or holds a lone surrogate.
        """
        check_text(text)
        return list(chain.from_iterable(map(self._ids_of, self.surface.words(text))))

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """The ids, and for each one the characters [start, end) of the text that it stands for."""
        check_text(text)
        ids: list[int] = []
        offsets: list[Span] = []
        for word, spans in self.surface.aligned_words(text):
            for id_, start, end in self.segment(word):
                ids.append(id_)
                offsets.append((spans[start][0], spans[end - 1][1]))
        return ids, offsets

    def encode_iter(
        self, source: Iterable[str], *, part_chars: int = 1 << 18
    ) -> Iterator[list[int]]:
        """As `BPE.encode_iter`, for byte-level surfaces.

        Raises:
            ValueError: a surface without a pattern whose cuts are known to be safe.
        """
        for part in safe_parts(source, self.pattern or "", part_chars=part_chars):
            yield self.encode(part)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for.

        Raises:
            ValueError: an id that no piece has.
        """
        try:
            return b"".join(map(self.pieces.__getitem__, ids))
        except KeyError as error:
            raise ValueError(f"id {error.args[0]} is no piece of this vocabulary") from None


def count_words(texts: Iterable[str], surface: TextSurface) -> Counter[str]:
    """How often each word occurs in the texts.

    Raises:
        TypeError, ValueError: a text is no string or holds a lone surrogate.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be an iterable of strings, not one string")
    counts: Counter[str] = Counter()
    for text in texts:
        check_text(text)
        counts.update(surface.words(text))
    return counts


def word_alphabet(words: Iterable[str], surface: TextSurface) -> Sequence[str]:
    """The characters of the words and of the surface, by code point."""
    return sorted(set(surface.alphabet).union(*words))
