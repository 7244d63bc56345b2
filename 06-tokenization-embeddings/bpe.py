"""Byte-pair encoding on bytes: learn a vocabulary by merging, then write text with it.

Text is cut into pre-tokens, each pre-token becomes its UTF-8 bytes, and training merges the most
frequent pair of neighbours again and again (Gage 1994; Sennrich, Haddow and Birch 2016,
arXiv:1508.07909; on bytes: Radford et al. 2019). Since every byte is a token, every string has an
encoding, and `decode_bytes(encode(text)) == text.encode()`.

Merges, ids and offsets are those of the `tokenizers` library with the same pattern.
"""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, pairwise
from typing import NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from pretokens import GPT2_PATTERN, check_text, count_pretokens, safe_parts, splitter, text_parts

_CACHED_CHARS = 64  # longer pre-tokens hardly ever come back
_SCANNED_BYTES = 64  # shorter pre-tokens are merged by scanning, longer ones with a heap
_UNMERGED = 1 << 62

# The bytes in the order of their ids, which is GPT-2's: those that Latin-1 can print come first.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_BYTE_ORDER = bytes((*_PRINTABLE, *(byte for byte in range(256) if byte not in _PRINTABLE)))


def byte_characters() -> dict[int, str]:
    """The character that stands for each byte in vocabulary files, in the order of the ids: "A"
    for 0x41, but "Ġ" for a space and "Ċ" for a line end, as whatever Latin-1 cannot print is
    written with the letters from U+0100 on."""
    shown = [*_PRINTABLE, *range(0x100, 0x100 + 256 - len(_PRINTABLE))]
    return {byte: chr(code) for byte, code in zip(_BYTE_ORDER, shown, strict=True)}


# ---------------------------------------------------------------------------------------------
# Training


class _Pair(NamedTuple):
    """A heap entry: the smallest is the pair with the highest count, then with the lowest ids."""

    negative_count: int
    left: int
    right: int
    starts: NDArray[np.integer]  # cells at which the pair starts; merges elsewhere make some stale


def _lay_out(counts: Mapping[str, int]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """All distinct pre-tokens side by side, a cell a byte, with a boundary cell around each: the
    (cells,) ids, -1 at a boundary, and how often the pre-token of each cell occurs."""
    words = [word.encode() for word in counts]
    ids = np.full(256, -1, np.int32)
    ids[np.frombuffer(_BYTE_ORDER, np.uint8)] = np.arange(256)
    ids[0xFF] = -1  # occurs nowhere in UTF-8, so it can be the boundary
    flat = np.frombuffer(b"\xff" + b"\xff".join(words) + b"\xff", np.uint8)
    cells = np.fromiter(map(len, words), np.int64, len(words)) + 1
    weight = np.repeat(np.fromiter(counts.values(), np.int64, len(words)), cells)
    return ids[flat], np.concatenate((np.zeros(1, np.int64), weight))  # (cells,)


def _by_value(
    values: NDArray[np.integer], starts: NDArray[np.integer], weight: NDArray[np.int64]
) -> Iterator[tuple[int, int, NDArray[np.integer]]]:
    """For each distinct value: itself, its total weight, and the cells where it is found."""
    if not len(values):
        return
    order = np.argsort(values, kind="stable")
    values, starts = values[order], starts[order]
    firsts = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))
    totals = np.add.reduceat(weight[starts], firsts).tolist()
    bounds = [*firsts.tolist(), len(values)]
    for value, total, (first, end) in zip(
        values[firsts].tolist(), totals, pairwise(bounds), strict=True
    ):
        yield value, total, starts[first:end]


def _every_other(starts: NDArray[np.integer], width: int) -> NDArray[np.integer]:
    """Of overlapping pairs (a a in "aaaa") the first, third, ... of each run, left to right."""
    starts = np.sort(starts)
    place = np.arange(len(starts))
    begins = np.diff(starts, prepend=-width - 1) != width
    run_start = np.maximum.accumulate(np.where(begins, place, 0))
    return starts[(place - run_start) % 2 == 0]


def learn_merges(
    head: NDArray[np.int32],
    weight: NDArray[np.int64],
    num_symbols: int,
    num_merges: int,
    min_frequency: int,
) -> list[tuple[int, int]]:
    """The merges as pairs of ids; the n-th makes id num_symbols + n.

    Args:
        head: (cells,) ids of the symbols of all distinct words, with -1 at both ends and between
            words. It is overwritten.
        weight: (cells,) how often the word of a cell occurs.

    All words lie side by side. A token is known by the cell that it starts at; inside it are cells
    of -2. Its neighbours are found without links: the next one starts where it ends, and the
    previous one ends in the cell before it.

    Nothing is recounted. A pair gets its list of starts when its younger part is made and never
    gains one later, so the count that it carries in the heap can only be too high. It is put
    right when the pair comes to the top: stale starts are dropped, and if the count has fallen
    the pair goes back. What stays on top is the true maximum. A merge then touches only the cells
    around its own starts.
    """
    tail = head.copy()  # (cells,) id of the token that ends here; -1 boundary
    width = [1] * num_symbols  # cells of each id
    places = np.arange(len(head) - 1, dtype=np.int32 if len(head) < 2**31 else np.int64)
    places = places[(head[:-1] >= 0) & (head[1:] >= 0)]
    keys = head[places].astype(np.int32 if num_symbols < 2**15 else np.int64)
    keys = keys * num_symbols + head[places + 1]
    heap = [
        _Pair(-count, *divmod(key, num_symbols), at)
        for key, count, at in _by_value(keys, places, weight)
    ]
    heapq.heapify(heap)
    merges: list[tuple[int, int]] = []
    while heap and len(merges) < num_merges:
        negative_count, a, b, starts = heap[0]
        starts = starts[(head[starts] == a) & (head[starts + width[a]] == b)]
        count = int(weight[starts].sum())
        if count != -negative_count:
            heapq.heapreplace(heap, _Pair(-count, a, b, starts))
            continue
        if count < max(1, min_frequency):
            break
        heapq.heappop(heap)
        new = num_symbols + len(merges)
        merges.append((a, b))
        width.append(width[a] + width[b])
        if a == b:
            starts = _every_other(starts, width[a])
        head[starts] = new
        head[starts + width[a]] = -2
        tail[starts + width[new] - 1] = new
        left, right = tail[starts - 1], head[starts + width[new]]
        whole = left >= 0
        for c, total, at in _by_value(left[whole], starts[whole], weight):
            heapq.heappush(heap, _Pair(-total, c, new, at - width[c]))
        whole = (right >= 0) & (right != new)  # two new ones side by side were seen from the right
        for c, total, at in _by_value(right[whole], starts[whole], weight):
            heapq.heappush(heap, _Pair(-total, new, c, at))
    return merges


def _check_training(vocab_size: int, min_frequency: int) -> None:
    if vocab_size < 256:
        raise ValueError(f"vocab_size must be at least 256, one for each byte; got {vocab_size}")
    if min_frequency < 0:
        raise ValueError(f"min_frequency must not be negative, got {min_frequency}")


def _from_id_pairs(merges: Sequence[tuple[int, int]], pattern: str) -> BPE:
    pieces = [bytes([byte]) for byte in _BYTE_ORDER]
    for a, b in merges:
        pieces.append(pieces[a] + pieces[b])
    vocab = {piece: id_ for id_, piece in enumerate(pieces)}
    return BPE([(pieces[a], pieces[b]) for a, b in merges], vocab, pattern)


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    pattern: str = GPT2_PATTERN,
    min_frequency: int = 0,
    workers: int = 1,
) -> BPE:
    """Learn a vocabulary of `vocab_size` pieces: the 256 bytes and vocab_size - 256 merges.

    Ties between pairs of equal count go to the pair with the smaller ids. Training stops early,
    with a smaller vocabulary, when no pair is left that occurs at least `min_frequency` times
    (and at least once).

    Args:
        texts: the corpus; pre-tokens do not run from one text into the next.
        workers: processes that cut the texts; the result does not depend on it.

    Raises:
        ValueError: vocab_size below 256, a bad pattern, a lone surrogate in a text.
    """
    _check_training(vocab_size, min_frequency)
    counts = count_pretokens(texts, pattern, workers=workers)
    symbols, weight = _lay_out(counts)
    merges = learn_merges(symbols, weight, 256, vocab_size - 256, min_frequency)
    return _from_id_pairs(merges, pattern)


def train_bpe_by_recounting(
    texts: Iterable[str],
    vocab_size: int,
    *,
    pattern: str = GPT2_PATTERN,
    min_frequency: int = 0,
) -> BPE:
    """`train_bpe` as the definition says it: count all pairs, merge the best, begin again.

    It takes time proportional to text × merges, and exists to be read and to be compared with.
    """
    _check_training(vocab_size, min_frequency)
    ids = {byte: id_ for id_, byte in enumerate(_BYTE_ORDER)}
    words = [
        ([ids[byte] for byte in word.encode()], count)
        for word, count in count_pretokens(texts, pattern).items()
    ]
    merges: list[tuple[int, int]] = []
    while 256 + len(merges) < vocab_size:
        counts: Counter[tuple[int, int]] = Counter()
        for word, count in words:
            for pair in pairwise(word):
                counts[pair] += count
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < min_frequency:
            break
        new = 256 + len(merges)
        merges.append(best)
        for word, _ in words:
            place = 0
            while place + 1 < len(word):
                if (word[place], word[place + 1]) == best:
                    word[place : place + 2] = (new,)
                place += 1
    return _from_id_pairs(merges, pattern)


# ---------------------------------------------------------------------------------------------
# Encoding


class _Cache(dict[str, tuple[int, ...]]):
    """Pre-token -> ids, worked out on first sight; emptied when full."""

    def __init__(self, bpe: BPE, limit: int) -> None:
        super().__init__()
        self._bpe = bpe
        self._limit = limit

    def __missing__(self, pretoken: str) -> tuple[int, ...]:
        ids = tuple(self._bpe.merge(pretoken.encode()))
        if len(pretoken) <= _CACHED_CHARS:
            if len(self) >= self._limit:
                self.clear()
            self[pretoken] = ids
        return ids


class BPE:
    """A trained byte-level BPE: the merges in order, the ids of all pieces, and the pattern.

    Args:
        merges: pairs of pieces, in the order in which they are to be applied.
        vocab: id of every piece; all 256 bytes, the parts and the results of all merges.
        pattern: regular expression (of the `regex` module) that cuts text into pre-tokens.
        whole_pieces: a pre-token that is itself a piece is never cut, whatever the merges say
            (`ignore_merges` in tokenizer.json; what tiktoken does).
        by_piece: all merges that make the same piece have the rank of its first (tiktoken's rule).
        cache_size: pre-tokens whose ids are remembered, about 200 bytes each.

    Raises:
        ValueError: a byte, part or result is missing from `vocab`, an id is used twice or
            negative, a merge is listed twice, or the pattern does not compile.
    """

    def __init__(
        self,
        merges: Sequence[tuple[bytes, bytes]],
        vocab: Mapping[bytes, int],
        pattern: str = GPT2_PATTERN,
        *,
        whole_pieces: bool = False,
        by_piece: bool = False,
        cache_size: int = 1 << 17,
    ) -> None:
        self.merges = tuple(merges)
        self.vocab = dict(vocab)
        self.pattern = pattern
        self.whole_pieces = whole_pieces
        self.by_piece = by_piece
        self.pieces = {id_: piece for piece, id_ in self.vocab.items()}
        if cache_size < 1:
            raise ValueError(f"cache_size must be positive, got {cache_size}")
        if len(self.pieces) < len(self.vocab) or min(self.pieces, default=0) < 0:
            raise ValueError("ids in vocab must be unique and not negative")
        if missing := [byte for byte in range(256) if bytes([byte]) not in self.vocab]:
            raise ValueError(
                f"vocab lacks {len(missing)} of the 256 bytes, 0x{missing[0]:02X} first"
            )
        self._byte_ids = [self.vocab[bytes([byte])] for byte in range(256)]
        self._rank: dict[tuple[int, int], int] = {}
        self._made: list[int] = []
        first_rank: dict[int, int] = {}
        for rank, (left, right) in enumerate(self.merges):
            try:
                pair = self.vocab[left], self.vocab[right]
                made = self.vocab[left + right]
            except KeyError as error:
                raise ValueError(
                    f"merge {rank}, {left!r} + {right!r}: {error.args[0]!r} is not in vocab"
                ) from None
            if pair in self._rank:
                raise ValueError(f"merge {rank}, {left!r} + {right!r}, is listed twice")
            self._made.append(made)
            self._rank[pair] = first_rank.setdefault(made, rank) if by_piece else rank
        self._split = splitter(pattern).findall
        self._cache_size = cache_size
        self._cache = _Cache(self, cache_size)

    def _like(self) -> partial[BPE]:
        return partial(
            BPE,
            whole_pieces=self.whole_pieces,
            by_piece=self.by_piece,
            cache_size=self._cache_size,
        )

    def __reduce__(self) -> tuple[object, ...]:
        # As its arguments: what the cache has learnt stays behind when a BPE is sent away.
        return self._like(), (self.merges, self.vocab, self.pattern)

    def shifted(self, by: int) -> BPE:
        """The same with every id raised by `by`, which makes room for special tokens in front."""
        vocab = {piece: id_ + by for piece, id_ in self.vocab.items()}
        return self._like()(self.merges, vocab, self.pattern)

    def merge(self, word: bytes) -> list[int]:
        """The ids of one pre-token: the pair of lowest rank is merged, leftmost first, until no
        pair of neighbours is in the table. Time n² for short words, with the constant of two C
        loops; n log n for long ones."""
        if self.whole_pieces and word in self.vocab:
            return [self.vocab[word]]
        ids = [self._byte_ids[byte] for byte in word]
        if len(ids) < 2:
            return ids
        if len(ids) > _SCANNED_BYTES:
            return self._merge_long(ids)
        rank_of, made = self._rank.get, self._made
        ranks = [rank_of(pair, _UNMERGED) for pair in pairwise(ids)]
        while ranks:
            best = min(ranks)
            if best == _UNMERGED:
                break
            place = ranks.index(best)
            new = made[best]
            ids[place : place + 2] = (new,)
            del ranks[place]
            if place:
                ranks[place - 1] = rank_of((ids[place - 1], new), _UNMERGED)
            if place < len(ranks):
                ranks[place] = rank_of((new, ids[place + 1]), _UNMERGED)
        return ids

    def _merge_long(self, ids: list[int]) -> list[int]:
        rank_of, made = self._rank.get, self._made
        end = len(ids)
        following = array("q", range(1, end + 1))
        previous = array("q", range(-1, end - 1))
        # One integer orders the heap by rank, then by place.
        heap = [
            rank * end + place
            for place, pair in enumerate(pairwise(ids))
            if (rank := rank_of(pair, _UNMERGED)) != _UNMERGED
        ]
        heapq.heapify(heap)
        while heap:
            rank, place = divmod(heapq.heappop(heap), end)
            after = following[place]
            if after == end or rank_of((ids[place], ids[after])) != rank:
                continue  # a merge has changed this pair since
            new = ids[place] = made[rank]
            ids[after] = -1  # merged away
            after = following[place] = following[after]
            if after < end:
                previous[after] = place
                if (rank := rank_of((new, ids[after]), _UNMERGED)) != _UNMERGED:
                    heapq.heappush(heap, rank * end + place)
            before = previous[place]
            if before >= 0 and (rank := rank_of((ids[before], new), _UNMERGED)) != _UNMERGED:
                heapq.heappush(heap, rank * end + before)
        return [id_ for id_ in ids if id_ >= 0]

    def encode(self, text: str) -> list[int]:
        """The ids of a text.

        Raises:
            TypeError, ValueError: `text` is no string or holds a lone surrogate.
        """
        check_text(text)
        ids: list[int] = []
        for part in text_parts(text, self.pattern):
            ids.extend(chain.from_iterable(map(self._cache.__getitem__, self._split(part))))
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids, and for each one the characters [start, end) of the text that it has a byte
        of. Tokens that share a character's bytes share its offsets: ("é") is (0, 1), (0, 1)."""
        ids = self.encode(text)
        widths = map(len, map(self.pieces.__getitem__, ids))
        ends = np.cumsum(np.fromiter(widths, np.int64, len(ids)))  # (tokens,) in bytes
        starts = np.concatenate((np.zeros(1, np.int64), ends))[:-1]
        if not text.isascii():
            # A byte of the form 10xxxxxx continues a character; any other one begins the next.
            begins = (np.frombuffer(text.encode(), np.uint8) & 0xC0) != 0x80  # (bytes,)
            character = np.cumsum(begins) - 1
            starts, ends = character[starts], character[ends - 1] + 1
        return ids, list(zip(starts.tolist(), ends.tolist(), strict=True))

    def encode_iter(
        self, source: TextIO | Iterable[str], *, part_chars: int = 1 << 18
    ) -> Iterator[list[int]]:
        """The ids of a text too long for memory, a list for each part; joined, they are those of
        the whole text, whatever pieces it comes in. Memory does not grow with its length (see
        `safe_parts`). Open a file with `newline=""` if its line ends are to be kept.

        Raises:
            ValueError: a pattern for which no cut is known to be safe; a lone surrogate.
        """
        for part in safe_parts(source, self.pattern, part_chars=part_chars):
            yield self.encode(part)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for; they need not be whole characters.

        Raises:
            ValueError: an id that no piece has.
        """
        try:
            return b"".join(map(self.pieces.__getitem__, ids))
        except KeyError as error:
            raise ValueError(f"id {error.args[0]} is no piece of this vocabulary") from None
