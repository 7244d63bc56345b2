"""WordPiece: a vocabulary in which a piece knows whether it begins a word, used greedily.

Schuster and Nakajima (2012); as BERT has it, Devlin et al. (2019, arXiv:1810.04805). A piece that
continues a word is written with a prefix, "##ing" beside "ing". To encode, take the longest piece
that the word begins with, and go on behind it; a word that cannot be finished is unknown as a
whole. No merges are kept: the vocabulary is all there is.

Derived in README.md, "WordPiece". Ids and offsets are those of `tokenizers`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from bpe import learn_merges
from subword_model import SubwordModel, count_words, word_alphabet
from text_surfaces import BertText, ByteLevelText, TextSurface

CONTINUES = "##"  # BERT's prefix of a piece within a word
# "##" is ambiguous where words may begin with "##"; no byte is written as this sign.
BYTE_LEVEL_CONTINUES = "▁"
UNKNOWN_TOKEN = "[UNK]"


class WordPiece(SubwordModel):
    """A trained WordPiece vocabulary.

    Args:
        vocab: piece -> id, continuing pieces with their prefix; `unk_token` among them.
        surface: what a word is; `BertText()` by default.
        unk_token: stands for a word that cannot be written.
        prefix: marks continuing pieces.
        max_word_chars: a longer word is unknown (100 in BERT).

    Raises:
        ValueError: no unk_token in vocab, an id twice or negative, an empty prefix.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        surface: TextSurface | None = None,
        *,
        unk_token: str = UNKNOWN_TOKEN,
        prefix: str = CONTINUES,
        max_word_chars: int = 100,
    ) -> None:
        if unk_token not in vocab:
            raise ValueError(f"unk_token {unk_token!r} must be in vocab")
        if not prefix:
            raise ValueError("prefix must not be empty: it tells inner pieces from first ones")
        self.unk_token = unk_token
        self.unk_id = vocab[unk_token]
        self.prefix = prefix
        self.max_word_chars = max_word_chars
        super().__init__(vocab, surface or BertText())
        # The unknown token's name, should a text hold it, is a text like any other.
        self._matched = {piece: id_ for piece, id_ in self.vocab.items() if piece != unk_token}
        self._longest = max(map(len, self.vocab))

    def piece_bytes(self, piece: str) -> bytes:
        """A first piece of BERT's brings the space before its word."""
        if piece == self.unk_token:
            return (" " * self.surface.spaced + piece).encode()
        if piece.startswith(self.prefix) and len(piece) > len(self.prefix):
            return self.surface.piece_bytes(piece[len(self.prefix) :])
        if self.surface.spaced:
            return b" " + self.surface.piece_bytes(piece)
        # A byte-level vocabulary may hold names that are not byte-level, such as special tokens.
        return self.surface.piece_bytes(piece) if self._is_ordinary(piece) else piece.encode()

    def _is_ordinary(self, piece: str) -> bool:
        return not self.surface.alphabet or set(piece) <= set(self.surface.alphabet)

    def shifted(self, by: int) -> WordPiece:
        return WordPiece(
            {piece: id_ + by for piece, id_ in self.vocab.items()},
            self.surface,
            unk_token=self.unk_token,
            prefix=self.prefix,
            max_word_chars=self.max_word_chars,
        )

    def segment(self, word: str) -> list[tuple[int, int, int]]:
        """Longest match first. Time: characters × length of the longest piece."""
        unknown = [(self.unk_id, 0, len(word))]
        if len(word) > self.max_word_chars:
            return unknown
        tokens: list[tuple[int, int, int]] = []
        start = 0
        while start < len(word):
            for end in range(min(len(word), start + self._longest), start, -1):
                piece = word[start:end] if start == 0 else self.prefix + word[start:end]
                if (id_ := self._matched.get(piece)) is not None:
                    tokens.append((id_, start, end))
                    start = end
                    break
            else:
                return unknown
        return tokens


# ---------------------------------------------------------------------------------------------
# Training


def _start(
    counts: Mapping[str, int], surface: TextSurface, prefix: str
) -> tuple[list[str], list[list[int]]]:
    """The pieces to begin with (first characters, then continuing ones, each by code point), and
    the words as their ids."""
    firsts = word_alphabet(counts, surface)
    inner = set().union(*(word[1:] for word in counts))
    if isinstance(surface, ByteLevelText):
        inner |= set(surface.alphabet)  # every string must have an encoding
    pieces = [*firsts, *(prefix + character for character in sorted(inner))]
    id_of = {piece: id_ for id_, piece in enumerate(pieces)}
    words = [
        [id_of[word[0]], *(id_of[prefix + character] for character in word[1:])] for word in counts
    ]
    return pieces, words


def _merges_by_count(
    words: Sequence[Sequence[int]],
    weights: Sequence[int],
    num_symbols: int,
    num_merges: int,
    min_frequency: int,
) -> list[tuple[int, int]]:
    """BPE's rule, which is what `tokenizers` trains WordPiece with."""
    flat = np.full(sum(map(len, words)) + len(words) + 1, -1, np.int32)
    weight = np.zeros(len(flat), np.int64)
    place = 1
    for word, count in zip(words, weights, strict=True):
        flat[place : place + len(word)] = word
        weight[place : place + len(word)] = count
        place += len(word) + 1
    return learn_merges(flat, weight, num_symbols, num_merges, min_frequency)


def _merges_by_likelihood(
    words: Sequence[list[int]],
    weights: Sequence[int],
    num_symbols: int,
    num_merges: int,
    min_frequency: int,
) -> list[tuple[int, int]]:
    """At each step the pair with the highest count(ab) / (count(a) count(b)): the one that raises
    the likelihood most for each time it is used. Ties go to the smaller ids."""
    symbols: Counter[int] = Counter()
    pairs: Counter[tuple[int, int]] = Counter()
    where: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for number, (word, weight) in enumerate(zip(words, weights, strict=True)):
        for symbol in word:
            symbols[symbol] += weight
        for pair in pairwise(word):
            pairs[pair] += weight
            where[pair].add(number)
    merges: list[tuple[int, int]] = []
    while len(merges) < num_merges:
        frequent = [pair for pair, n in pairs.items() if n >= max(1, min_frequency)]
        if not frequent:
            break
        best = min(
            frequent, key=lambda pair: (-pairs[pair] / (symbols[pair[0]] * symbols[pair[1]]), pair)
        )
        new = num_symbols + len(merges)
        merges.append(best)
        for number in where.pop(best):
            word, weight = words[number], weights[number]
            for pair in pairwise(word):
                pairs[pair] -= weight
            for symbol in word:
                symbols[symbol] -= weight
            place = 0
            while place + 1 < len(word):
                if (word[place], word[place + 1]) == best:
                    word[place : place + 2] = (new,)
                place += 1
            for symbol in word:
                symbols[symbol] += weight
            for pair in pairwise(word):
                pairs[pair] += weight
                where[pair].add(number)
        del pairs[best]
    return merges


def train_wordpiece(
    texts: Iterable[str],
    vocab_size: int,
    *,
    surface: TextSurface | None = None,
    min_frequency: int = 0,
    rule: Literal["count", "likelihood"] = "count",
    unk_token: str = UNKNOWN_TOKEN,
) -> WordPiece:
    """Learn a vocabulary of `vocab_size` pieces, the unknown token among them.

    Args:
        surface: what a word is: `BertText()` by default; with `ByteLevelText()` nothing is ever
            unknown, and the continuing prefix is "▁".
        min_frequency: a pair must occur so often to be merged.
        rule: what to merge next: the most frequent pair (as `tokenizers` does) or the one that
            gains most likelihood for each use (as published). With "likelihood" a min_frequency
            is needed in practice: two signs that occur once, together, have the highest score.

    Ties go to the pair with the smaller ids. `tokenizers` numbers the continuing characters in
    the order of a randomly seeded hash table, so that its ties, and with them a few pieces,
    change from run to run; here they come by code point.

    Raises:
        ValueError: vocab_size does not hold the characters; a lone surrogate; an unknown rule.
    """
    if rule not in ("count", "likelihood"):
        raise ValueError(f'rule must be "count" or "likelihood", got {rule!r}')
    if min_frequency < 0:
        raise ValueError(f"min_frequency must not be negative, got {min_frequency}")
    surface = surface or BertText()
    byte_level = isinstance(surface, ByteLevelText)
    prefix = BYTE_LEVEL_CONTINUES if byte_level else CONTINUES
    counts = count_words(texts, surface)
    pieces, words = _start(counts, surface, prefix)
    num_symbols = len(pieces)
    if vocab_size < num_symbols + 1:
        raise ValueError(
            f"vocab_size must be at least {num_symbols + 1}, for the characters and "
            f"{unk_token}; got {vocab_size}"
        )
    learn = _merges_by_count if rule == "count" else _merges_by_likelihood
    num_merges = vocab_size - num_symbols - 1
    for a, b in learn(words, list(counts.values()), num_symbols, num_merges, min_frequency):
        pieces.append(pieces[a] + pieces[b].removeprefix(prefix))
    return WordPiece(
        {piece: id_ for id_, piece in enumerate([unk_token, *pieces])},
        surface,
        unk_token=unk_token,
        prefix=prefix,
        max_word_chars=10**9 if byte_level else 100,
    )
