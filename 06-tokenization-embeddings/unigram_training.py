"""Learning a Unigram model: many seed pieces, EM, pruning, again, until the vocabulary fits.

Kudo (2018), arXiv:1804.10959, with the choices of SentencePiece and of `tokenizers`: seeds are the
repeated substrings, the M step is the Bayesian one that presses rare pieces out, and a piece is
pruned by what its loss would cost the likelihood. All words are one lattice of arrays, and a pass
goes through it place by place, so that no Python loop runs over words.

Derived in README.md, "Unigram".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subword_model import count_words, word_alphabet
from text_surfaces import MetaspaceText, TextSurface
from unigram import NEVER, UNIGRAM_UNKNOWN, Unigram, byte_piece

MAX_PIECE_CHARS = 16
_SHRINKING = 0.75  # of the pieces stay at each pruning
_SUB_ITERATIONS = 2  # EM steps between two prunings
_SLACK = 1.1  # EM stops at so many times the vocabulary; the last cut needs no new EM
_LEAST_COUNT = 0.5  # a piece expected less often is dropped at once
_END = "\0"  # what follows a word while substrings are counted by word


def digamma(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The derivative of ln Γ, for x > 0: digamma(x) = digamma(x + 1) - 1/x up to x >= 6, then the
    asymptotic series. Accurate to 1e-10."""
    x = np.asarray(x, np.float64)
    low = np.zeros_like(x)
    y = x.copy()
    for _ in range(6):
        small = y < 6
        low = np.where(small, low - 1 / np.where(small, y, 1.0), low)
        y = np.where(small, y + 1, y)
    z = 1 / (y * y)
    series = z * (1 / 12 - z * (1 / 120 - z * (1 / 252 - z * (1 / 240 - z / 132))))
    return low + np.log(y) - 0.5 / y - series


def seed_pieces(
    words: Mapping[str, int], *, max_chars: int = MAX_PIECE_CHARS, by_word: bool = False
) -> dict[str, int]:
    """Substrings that stand in two or more places of the text, with their number of places; none
    that is always followed by the same sign, since the longer one says the same.

    Args:
        words: the distinct words with their counts.
        by_word: as `tokenizers` has it: each distinct word is one place, however often it occurs,
            and its end is a sign. Then a word that shares nothing with others is no seed, and a
            text of few distinct words is spelt out.
    """
    counts: Counter[str] = Counter()
    for word, count in words.items():
        ended = word + _END if by_word else word
        weight = 1 if by_word else count
        for start in range(len(word)):
            for end in range(start + 1, min(len(ended), start + max_chars + 1) + 1):
                counts[ended[start:end]] += weight
    always_followed = {
        longer[:-1] for longer, count in counts.items() if counts.get(longer[:-1]) == count
    }
    return {
        piece: count
        for piece, count in counts.items()
        if 2 <= len(piece) <= max_chars
        and count >= 2
        and piece not in always_followed
        and not piece.endswith(_END)
    }


@dataclass(frozen=True)
class Lattice:
    """Every piece at every place of every word. Places are cells: a word of n characters has
    n + 1, one after the other; edges are sorted by the place in the word where they end.

    start, end, piece: int64 (edges,); weight: float64 (edges,), the count of the edge's word;
    first, last: int64 (words,) the first and last cell of each word; counts: float64 (words,);
    levels: edges [levels[i], levels[i + 1]) end at the i-th place of their words.
    """

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    piece: NDArray[np.int64]
    weight: NDArray[np.float64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    counts: NDArray[np.float64]
    levels: NDArray[np.int64]

    @classmethod
    def build(cls, counts: Mapping[str, float], pieces: Sequence[str]) -> Lattice:
        """The lattice of these words over these pieces."""
        id_of = {piece: id_ for id_, piece in enumerate(pieces)}
        longest = max(map(len, pieces))
        edges: list[
            tuple[int, int, int, int, int]
        ] = []  # place of the end, end, start, piece, word
        first = 0
        firsts = []
        for number, word in enumerate(counts):
            firsts.append(first)
            for start in range(len(word)):
                for end in range(start + 1, min(len(word), start + longest) + 1):
                    if (id_ := id_of.get(word[start:end])) is not None:
                        edges.append((end, first + end, first + start, id_, number))
            first += len(word) + 1
        table = np.array(edges, np.int64).reshape(-1, 5)
        table = table[np.lexsort((table[:, 2], table[:, 1], table[:, 0]))]
        weights = np.fromiter(counts.values(), np.float64, len(counts))
        lengths = np.fromiter(map(len, counts), np.int64, len(counts))
        begin = np.array(firsts, np.int64)
        places = np.arange(1, int(lengths.max(initial=0)) + 2)
        return cls(
            start=table[:, 2].copy(),
            end=table[:, 1].copy(),
            piece=table[:, 3].copy(),
            weight=weights[table[:, 4]],
            first=begin,
            last=begin + lengths,
            counts=weights,
            levels=np.searchsorted(table[:, 0], places).astype(np.int64),
        )

    def kept(self, new_id: NDArray[np.int64]) -> Lattice:
        """The lattice after a pruning: new_id (pieces,) gives each piece's new id, -1 if gone."""
        stays = new_id[self.piece] >= 0
        before = np.concatenate((np.zeros(1, np.int64), np.cumsum(stays, dtype=np.int64)))
        return Lattice(
            start=self.start[stays],
            end=self.end[stays],
            piece=new_id[self.piece[stays]],
            weight=self.weight[stays],
            first=self.first,
            last=self.last,
            counts=self.counts,
            levels=before[self.levels],
        )

    @property
    def _cells(self) -> int:
        return int(self.last[-1]) + 1 if len(self.last) else 0

    def _groups(self, level: int) -> tuple[slice, NDArray[np.int64]]:
        """The edges that end at a place, and where those of a new cell begin among them."""
        part = slice(int(self.levels[level]), int(self.levels[level + 1]))
        ends = self.end[part]
        return part, np.flatnonzero(np.concatenate(([True], ends[1:] != ends[:-1])))

    def forward(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """(cells,) ln of the summed probability of all ways from a word's begin to each cell."""
        alpha = np.full(self._cells, -np.inf)
        alpha[self.first] = 0.0
        for level in range(len(self.levels) - 1):
            part, groups = self._groups(level)
            if part.start == part.stop:
                continue
            reached = alpha[self.start[part]] + scores[self.piece[part]]
            alpha[self.end[part][groups]] = _log_sums(reached, groups)
        return alpha

    def backward(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """(cells,) the same from each cell to the end of its word."""
        beta = np.full(self._cells, -np.inf)
        beta[self.last] = 0.0
        # An edge may be used when all that its end leads to is summed up: from the last place on.
        for level in range(len(self.levels) - 2, -1, -1):
            part, _ = self._groups(level)
            reached = scores[self.piece[part]] + beta[self.end[part]]
            np.logaddexp.at(beta, self.start[part], reached)
        return beta

    def expected(self, scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        """The E step: (pieces,) how often each piece is expected, and the log-likelihood in nats
        of all words, each as often as it occurs."""
        alpha, beta = self.forward(scores), self.backward(scores)
        total = alpha + beta  # at a word's first cell its log-probability
        whole = np.repeat(total[self.first], self.last - self.first + 1)  # (cells,)
        share = np.exp(alpha[self.start] + scores[self.piece] + beta[self.end] - whole[self.start])
        counts = np.bincount(self.piece, self.weight * share, minlength=len(scores))
        return np.asarray(counts, np.float64), float((alpha[self.last] * self.counts).sum())

    def best(self, scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Viterbi: (cells,) the best score of a way to each cell, and (edges,) whether an edge is
        on the best way through its word."""
        best = np.full(self._cells, -np.inf)
        best[self.first] = 0.0
        back = np.full(self._cells, -1, np.int64)
        for level in range(len(self.levels) - 1):
            part, groups = self._groups(level)
            if part.start == part.stop:
                continue
            reached = best[self.start[part]] + scores[self.piece[part]]
            highest = np.maximum.reduceat(reached, groups)
            sizes = np.diff(np.append(groups, len(reached)))
            is_best = reached >= np.repeat(highest, sizes)
            index = np.where(is_best, np.arange(len(reached)), len(reached))
            cells = self.end[part][groups]
            best[cells] = highest
            back[cells] = np.minimum.reduceat(index, groups) + part.start
        on_path = np.zeros(len(self.start), bool)
        cells = self.last[self.last > self.first]
        while len(cells):
            edges = back[cells]
            on_path[edges] = True
            cells = self.start[edges]
            cells = cells[back[cells] >= 0]
        return best, on_path


def _log_sums(values: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """ln of the sum of exp over each group of neighbours."""
    highest = np.maximum.reduceat(values, groups)
    sizes = np.diff(np.append(groups, len(values)))
    safe = np.where(np.isfinite(highest), highest, 0.0)
    with np.errstate(divide="ignore"):
        return safe + np.log(np.add.reduceat(np.exp(values - np.repeat(safe, sizes)), groups))


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round of training saw: the pieces it began with, and the log-likelihood in nats
    of the training text before and after its EM steps."""

    pieces: int
    before: float
    after: float


def _prune(
    pieces: Sequence[str], scores: NDArray[np.float64], lattice: Lattice, size: int
) -> NDArray[np.int64]:
    """Which pieces stay, at most `size`: those without an alternative, then those whose removal
    would cost the likelihood most. Returns their indices in that order.

    Removing a piece that occurs n times gives its occurrences to the pieces of its best cut
    without it. With N tokens in all and k pieces in that cut, the average log-probability of an
    occurrence falls from ln(n / N) to the sum of ln((n_j + n) / (N + n (k - 1))).
    """
    own = Lattice.build(dict.fromkeys(pieces, 1.0), pieces)
    span = own.end - own.start
    words = np.searchsorted(own.first, own.start, side="right") - 1
    whole = span == (own.last - own.first)[words]
    without = Lattice(
        start=own.start[~whole],
        end=own.end[~whole],
        piece=own.piece[~whole],
        weight=own.weight[~whole],
        first=own.first,
        last=own.last,
        counts=own.counts,
        levels=np.concatenate((np.zeros(1, np.int64), np.cumsum(~whole)))[own.levels],
    )
    second, on_path = without.best(scores)
    second = second[own.last]  # (pieces,) -inf where there is no other cut
    _, used = lattice.best(scores)
    n = np.bincount(lattice.piece[used], lattice.weight[used], minlength=len(pieces))
    total = n.sum()
    has_other = np.isfinite(second)
    removable = has_other & (scores >= second)  # itself its best cut
    unused = (n == 0) & has_other
    k = np.bincount(words[~whole][on_path], minlength=len(pieces))
    with np.errstate(divide="ignore", invalid="ignore"):
        as_it_is = np.log(n / total)
        each = (
            np.log(n[without.piece[on_path]] + n[words[~whole][on_path]])
            - np.log(total + n * (k - 1))[words[~whole][on_path]]
        )
        instead = np.bincount(words[~whole][on_path], each, minlength=len(pieces))
        loss = n * (as_it_is - instead)
    certain = np.flatnonzero(~unused & ~removable)
    candidates = np.flatnonzero(~unused & removable)
    candidates = candidates[np.argsort(-loss[candidates], kind="stable")]
    return np.concatenate((certain, candidates[: max(0, size - len(certain))]))


def train_unigram(
    texts: Iterable[str],
    vocab_size: int,
    *,
    surface: TextSurface | None = None,
    byte_fallback: bool = False,
    max_piece_chars: int = MAX_PIECE_CHARS,
    seeds_by_word: bool = False,
    rounds: list[Round] | None = None,
) -> Unigram:
    """Learn a vocabulary of `vocab_size` pieces with their probabilities.

    Every character of the texts is a piece. Without a surface that has an alphabet for all text,
    "<unk>" has id 0 and, with `byte_fallback`, the 256 byte pieces follow; both count.

    Args:
        surface: what a word is; `MetaspaceText()` by default.
        seeds_by_word: count seeds as `tokenizers` does (see `seed_pieces`).
        rounds: a list to which each round of training is appended.

    Raises:
        ValueError: vocab_size does not hold the characters; a lone surrogate in a text; no text.
    """
    surface = surface or MetaspaceText()
    open_ended = surface.pattern is None  # some text may hold an unknown character
    extra = [UNIGRAM_UNKNOWN] if open_ended else []
    if byte_fallback:
        extra += [byte_piece(byte) for byte in range(256)]
    counts = count_words(texts, surface)
    if not counts:
        raise ValueError("there must be text to learn from")
    alphabet = set(word_alphabet(counts, surface))
    if byte_fallback:  # so that "<0x0A>" in a text is written as text, and never as a line end
        alphabet |= set("<>x0123456789ABCDEF")
    characters = sorted(alphabet)
    size = vocab_size - len(extra)
    if size < len(characters):
        raise ValueError(
            f"vocab_size must be at least {len(characters) + len(extra)}, for the characters "
            f"and {len(extra)} further entries; got {vocab_size}"
        )
    seen = Counter[str]()
    for word, count in counts.items():
        for character in word:
            seen[character] += count
    seeds = seed_pieces(counts, max_chars=max_piece_chars, by_word=seeds_by_word)
    pieces = [*sorted(seen, key=lambda c: (-seen[c], c)), *seeds]
    weights = np.array(
        [*(seen[c] for c in pieces[: len(seen)]), *(n * len(p) for p, n in seeds.items())], float
    )
    scores = np.log(weights / weights.sum())
    lattice = Lattice.build(counts, pieces)
    most = int(size * _SLACK)
    while True:
        began = len(pieces)
        before = None
        after = 0.0
        for _ in range(_SUB_ITERATIONS):
            expected, likelihood = lattice.expected(scores)
            before = likelihood if before is None else before
            # A character stays however rare, or a word could become impossible.
            stays = (expected >= _LEAST_COUNT) | np.fromiter((len(p) == 1 for p in pieces), bool)
            pieces, lattice = _only(pieces, lattice, np.flatnonzero(stays))
            expected = np.maximum(expected[stays], _LEAST_COUNT)
            scores = digamma(expected) - digamma(expected.sum())
        if rounds is not None:
            after = lattice.expected(scores)[1]
            rounds.append(Round(pieces=began, before=before or 0.0, after=after))
        if len(pieces) <= most:
            break
        chosen = _prune(pieces, scores, lattice, max(most, int(len(pieces) * _SHRINKING)))
        if len(chosen) == len(pieces):
            break
        pieces, lattice = _only(pieces, lattice, chosen)
        scores = scores[chosen]
    return _finished(
        dict(zip(pieces, scores.tolist(), strict=True)),
        characters,
        size,
        Unigram([(name, NEVER) for name in extra], surface, unk_id=0 if open_ended else None),
        byte_fallback,
    )


def _only(
    pieces: Sequence[str], lattice: Lattice, chosen: NDArray[np.int64]
) -> tuple[list[str], Lattice]:
    """The pieces with these indices, in this order, and the lattice over them."""
    new_id = np.full(len(pieces), -1, np.int64)
    new_id[chosen] = np.arange(len(chosen))
    return [pieces[int(index)] for index in chosen], lattice.kept(new_id)


def _finished(
    scores: Mapping[str, float],
    characters: Sequence[str],
    size: int,
    empty: Unigram,
    byte_fallback: bool,
) -> Unigram:
    """All characters, then the pieces that are worth most, sorted by probability, behind the
    entries of `empty`. A character that no text had is as rare as the rarest piece."""
    rarest = min(scores.values())
    kept = {character: scores.get(character, rarest) for character in characters}
    for piece, score in scores.items():  # in the order of the last pruning
        if len(kept) == size:
            break
        kept.setdefault(piece, score)
    ordered = sorted(kept.items(), key=lambda item: (-item[1], item[0]))
    return Unigram(
        [*empty.scored_pieces, *ordered],
        empty.surface,
        unk_id=empty.unk_id,
        byte_fallback=byte_fallback,
    )
