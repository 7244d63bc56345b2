"""The Unigram model: a probability for every piece, and the likeliest way to cut a word.

Kudo (2018), *Subword Regularization*, arXiv:1804.10959. A word's probability is the sum over all
ways of cutting it, each the product of its pieces' probabilities. The same lattice gives the best
cut (Viterbi), the sum (forward), each piece's expected count (forward-backward), and cuts drawn at
random. `unigram_training.py` learns the pieces.

Derived in README.md, "Unigram". Ids and offsets are those of `tokenizers`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from subword_model import SubwordModel
from text_surfaces import MetaspaceText, TextSurface

UNIGRAM_UNKNOWN = "<unk>"
UNKNOWN_PENALTY = 10.0  # nats below the rarest piece, as in SentencePiece
NEVER = -1e6  # the score of what is no text: special tokens and byte pieces; no cut can want it


def byte_piece(byte: int) -> str:
    """How a byte that no piece can write stands in the vocabulary: "<0x0A>"."""
    return f"<0x{byte:02X}>"


class Edge(NamedTuple):
    """A piece that may stand at [start, end) of a word; `id` is None for an unknown character."""

    start: int
    end: int
    id: int | None
    score: float


def log_add(a: float, b: float) -> float:
    """ln(e^a + e^b) without leaving the range of floats."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))


class Unigram(SubwordModel):
    """A trained Unigram model.

    Args:
        scored_pieces: (piece, log-probability); the place in the list is the id.
        surface: what a word is; `MetaspaceText()` by default.
        unk_id: the id of what cannot be written. It may be None where all characters are pieces.
        byte_fallback: write an unknown character as its bytes; needs all 256 byte pieces.
        control_ids: entries that are no text (special tokens) and must not be found in any.

    Raises:
        ValueError: a piece twice, a score that is no number, an id out of range, or byte pieces
            missing.
    """

    def __init__(
        self,
        scored_pieces: Sequence[tuple[str, float]],
        surface: TextSurface | None = None,
        *,
        unk_id: int | None = None,
        byte_fallback: bool = False,
        control_ids: Iterable[int] = (),
    ) -> None:
        self.scored_pieces = tuple((piece, float(score)) for piece, score in scored_pieces)
        self.unk_id = unk_id
        self.byte_fallback = byte_fallback
        self.control_ids = frozenset(control_ids)
        vocab = {piece: id_ for id_, (piece, _) in enumerate(self.scored_pieces)}
        if len(vocab) < len(self.scored_pieces):
            raise ValueError("a piece is listed twice")
        if bad := [piece for piece, score in self.scored_pieces if not math.isfinite(score)]:
            raise ValueError(f"the score of {bad[0]!r} is no finite number")
        for id_ in {*self.control_ids, *([] if unk_id is None else [unk_id])}:
            if not 0 <= id_ < len(vocab):
                raise ValueError(f"id {id_} is none of the {len(vocab)} pieces")
        self._byte_ids: list[int] = []
        if byte_fallback:
            missing = [byte for byte in range(256) if byte_piece(byte) not in vocab]
            if missing:
                raise ValueError(
                    f"byte_fallback needs all 256 byte pieces; {byte_piece(missing[0])} is missing"
                )
            self._byte_ids = [vocab[byte_piece(byte)] for byte in range(256)]
        self._fallback = {id_: byte for byte, id_ in enumerate(self._byte_ids)}
        hidden = {*self.control_ids, *self._byte_ids, unk_id}
        self._matched = {
            piece: (id_, self.scored_pieces[id_][1])
            for piece, id_ in vocab.items()
            if id_ not in hidden
        }
        self._longest = max(map(len, self._matched), default=1)
        lowest = min((score for _, score in self.scored_pieces), default=0.0)
        self._unknown_score = lowest - UNKNOWN_PENALTY
        super().__init__(vocab, surface or MetaspaceText())

    def piece_bytes(self, piece: str) -> bytes:
        """A byte piece is its byte; special tokens and the unknown one are their names."""
        id_ = self.vocab[piece]
        if id_ in self._fallback:
            return bytes([self._fallback[id_]])
        if id_ in self.control_ids or id_ == self.unk_id:
            return piece.encode()
        return self.surface.piece_bytes(piece)

    def shifted(self, by: int) -> Unigram:
        """Room for `by` special tokens in front; see `with_special_tokens`, which names them."""
        return self.with_special_tokens([f"<reserved {place}>" for place in range(by)])

    def with_special_tokens(self, names: Sequence[str]) -> Unigram:
        """The same with these names as the first ids; all other ids move up."""
        by = len(names)
        return Unigram(
            [*((name, NEVER) for name in names), *self.scored_pieces],
            self.surface,
            unk_id=None if self.unk_id is None else self.unk_id + by,
            byte_fallback=self.byte_fallback,
            control_ids={*range(by), *(id_ + by for id_ in self.control_ids)},
        )

    # --- the lattice ------------------------------------------------------------------------

    def edges(self, word: str) -> list[list[Edge]]:
        """For each place of the word the pieces that begin there, shortest first. Where no piece
        is the single character itself, it may be cut off as unknown."""
        found: list[list[Edge]] = []
        for start in range(len(word)):
            here: list[Edge] = []
            for end in range(start + 1, min(len(word), start + self._longest) + 1):
                if (match := self._matched.get(word[start:end])) is not None:
                    here.append(Edge(start, end, *match))
            if not here or here[0].end > start + 1:
                here.append(Edge(start, start + 1, None, self._unknown_score))
            found.append(here)
        return found

    def best_path(self, word: str) -> list[Edge]:
        """Viterbi: best[end] = max over edges of best[start] + score, then back from the end. Of
        equally good ways to a place the one with the longest last piece is kept."""
        best = [0.0] + [-math.inf] * len(word)
        back: list[Edge | None] = [None] * (len(word) + 1)
        for here in self.edges(word):
            for edge in here:
                score = best[edge.start] + edge.score
                if score > best[edge.end]:
                    best[edge.end] = score
                    back[edge.end] = edge
        path: list[Edge] = []
        place = len(word)
        while place:
            edge = back[place]
            assert edge is not None  # every place can be reached, if by an unknown character
            path.append(edge)
            place = edge.start
        return path[::-1]

    def forward(self, word: str, *, temperature: float = 1.0) -> list[float]:
        """alpha[end]: the log of the summed probability of all ways to cut word[:end]. The last
        one is the word's. Scores are divided by `temperature` first."""
        alpha = [0.0] + [-math.inf] * len(word)
        for here in self.edges(word):
            for edge in here:
                reached = alpha[edge.start] + edge.score / temperature
                alpha[edge.end] = log_add(alpha[edge.end], reached)
        return alpha

    def log_probability(self, word: str) -> float:
        """ln of the sum over all ways of cutting the word, in nats."""
        return self.forward(word)[-1]

    def expected_counts(self, word: str) -> dict[int, float]:
        """How often each piece is expected in the word, over all its cuts by their probability
        (forward-backward). Unknown characters are left out."""
        edges = self.edges(word)
        alpha = self.forward(word)
        beta = [-math.inf] * len(word) + [0.0]  # beta[start]: all ways to cut word[start:]
        for here in reversed(edges):
            for edge in here:
                beta[edge.start] = log_add(beta[edge.start], edge.score + beta[edge.end])
        counts: dict[int, float] = {}
        for edge in (edge for here in edges for edge in here):
            if edge.id is not None:
                share = math.exp(alpha[edge.start] + edge.score + beta[edge.end] - alpha[-1])
                counts[edge.id] = counts.get(edge.id, 0.0) + share
        return counts

    def sample_path(
        self, word: str, generator: random.Random, *, temperature: float = 1.0
    ) -> list[Edge]:
        """A cut drawn with probability proportional to its own to the power 1/temperature: forward,
        then backwards from the end, choosing each last edge by its share of alpha.

        Raises:
            ValueError: temperature is not positive.
        """
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        alpha = self.forward(word, temperature=temperature)
        arriving: list[list[Edge]] = [[] for _ in range(len(word) + 1)]
        for here in self.edges(word):
            for edge in here:
                arriving[edge.end].append(edge)
        path: list[Edge] = []
        place = len(word)
        while place:
            shares = [
                math.exp(alpha[edge.start] + edge.score / temperature - alpha[place])
                for edge in arriving[place]
            ]
            (edge,) = generator.choices(arriving[place], shares)
            path.append(edge)
            place = edge.start
        return path[::-1]

    # --- words to ids -----------------------------------------------------------------------

    def segment(self, word: str) -> list[tuple[int, int, int]]:
        return self._tokens(word, self.best_path(word))

    def sample_encode(
        self, text: str, generator: random.Random, *, temperature: float = 1.0
    ) -> list[int]:
        """The ids of one cut drawn at random (subword regularisation); they decode to the text."""
        ids: list[int] = []
        for word in self.surface.words(text):
            path = self.sample_path(word, generator, temperature=temperature)
            ids.extend(id_ for id_, _, _ in self._tokens(word, path))
        return ids

    def _tokens(self, word: str, path: Sequence[Edge]) -> list[tuple[int, int, int]]:
        """Neighbouring unknown characters become one unknown token, or all their bytes."""
        tokens: list[tuple[int, int, int]] = []
        unknown: list[Edge] = []
        for edge in [*path, None]:
            if edge is not None and edge.id is None:
                unknown.append(edge)
                continue
            if unknown:
                start, end = unknown[0].start, unknown[-1].end
                if self.byte_fallback:
                    written = word[start:end].encode()
                    tokens.extend((self._byte_ids[byte], start, end) for byte in written)
                elif self.unk_id is not None:
                    tokens.append((self.unk_id, start, end))
                else:
                    raise ValueError(f"no piece writes {word[start]!r}, and there is no unk_id")
                unknown = []
            if edge is not None and edge.id is not None:
                tokens.append((edge.id, edge.start, edge.end))
        return tokens
