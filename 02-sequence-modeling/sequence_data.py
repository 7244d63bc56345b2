"""Sequences as tensors: vocabularies, padding, batches of equal length, and toy tasks.

The toy tasks are small enough to be learned in seconds and each isolates one ability: keeping
(`copy_task`), addressing by position (`reverse_task`), comparing (`sort_task`), carrying
(`addition_task`), remembering across a gap (`recall_task`) and looking up by content
(`induction_task`). Their ids start at 0 and hold no special tokens; add what you need.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

_IGNORED = -100  # the target that `numerics.cross_entropy` leaves out


class Vocabulary:
    """A fixed list of symbols, each with its place in the list as id; specials come first.

    Symbols are strings: characters, words or tags. A symbol that is not listed becomes
    `Vocabulary.UNKNOWN` where that is among the specials, and a ValueError where it is not.
    """

    PAD, BEGIN, END, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"

    def __init__(
        self, symbols: Iterable[str], *, specials: Sequence[str] = (PAD, BEGIN, END, UNKNOWN)
    ) -> None:
        self.specials = tuple(specials)
        self.symbols = (*self.specials, *symbols)
        self._ids = {symbol: i for i, symbol in enumerate(self.symbols)}
        if len(self._ids) != len(self.symbols):
            twice = [symbol for symbol, count in Counter(self.symbols).items() if count > 1]
            raise ValueError(f"symbols must be different, got {twice} more than once")

    @classmethod
    def build(
        cls,
        sequences: Iterable[Iterable[str]],
        *,
        min_count: int = 1,
        max_size: int | None = None,
        specials: Sequence[str] = (PAD, BEGIN, END, UNKNOWN),
    ) -> Vocabulary:
        """The symbols of these sequences, most frequent first, equals in alphabetical order.

        A string is a sequence of characters, a list of words one of words. Symbols seen fewer
        than `min_count` times are dropped; `max_size` counts the specials.
        """
        counts = Counter(symbol for sequence in sequences for symbol in sequence)
        kept = sorted(
            (symbol for symbol, count in counts.items() if count >= min_count),
            key=lambda symbol: (-counts[symbol], symbol),
        )
        if max_size is not None:
            if max_size < len(specials):
                raise ValueError(f"max_size={max_size} leaves no room for {len(specials)} specials")
            kept = kept[: max_size - len(specials)]
        return cls(kept, specials=specials)

    def __len__(self) -> int:
        return len(self.symbols)

    def __contains__(self, symbol: str) -> bool:
        return symbol in self._ids

    def id(self, symbol: str) -> int:
        """The id of one symbol; `UNKNOWN`'s, or ValueError, for one that is not listed."""
        found = self._ids.get(symbol, self._ids.get(self.UNKNOWN))
        if found is None:
            raise ValueError(f"{symbol!r} is not in the vocabulary, which has no {self.UNKNOWN}")
        return found

    def encode(self, sequence: Iterable[str]) -> list[int]:
        """Symbols to ids."""
        return [self.id(symbol) for symbol in sequence]

    def decode(self, ids: Iterable[int] | Tensor, *, skip_specials: bool = True) -> list[str]:
        """Ids to symbols; ValueError for an id out of range, TypeError where it is no integer."""
        numbers = [operator.index(i) for i in ids]
        for i in numbers:
            if not 0 <= i < len(self.symbols):
                raise ValueError(f"ids must lie in [0, {len(self.symbols)}), got {i}")
        first = len(self.specials) if skip_specials else 0
        return [self.symbols[i] for i in numbers if i >= first]


def pad_sequences(
    sequences: Sequence[Sequence[int] | Tensor],
    *,
    pad_id: int,
    side: Literal["left", "right"] = "right",
) -> tuple[Tensor, Tensor]:
    """Sequences of different lengths as one rectangle.

    Returns (ids, keep): (B, T) int64, T the longest length, filled up with `pad_id` on `side`;
    and (B, T) bool, True where an id is real. Raises ValueError for no sequences at all, TypeError
    for ids that are no integers.

    Example: [[5, 6], [7]] with pad_id 0 -> [[5, 6], [7, 0]] and [[True, True], [True, False]].
    """
    if side not in ("left", "right"):
        raise ValueError(f"side must be left or right, got {side!r}")
    if len(sequences) == 0:
        raise ValueError("there must be at least one sequence to pad")
    T = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), T), pad_id, dtype=torch.int64)  # (B, T)
    keep = torch.zeros(len(sequences), T, dtype=torch.bool)  # (B, T)
    for row, sequence in enumerate(sequences):
        where = slice(0, len(sequence)) if side == "right" else slice(T - len(sequence), T)
        values = torch.as_tensor(sequence)
        if len(values) and (values.is_floating_point() or values.is_complex()):
            raise TypeError(f"ids must be integers, got {values.dtype} in sequence {row}")
        ids[row, where] = values.to(torch.int64)
        keep[row, where] = True
    return ids, keep


def length_buckets(
    lengths: Sequence[int], *, max_tokens: int, generator: torch.Generator
) -> list[list[int]]:
    """Group sequences of similar lengths, so that little of a batch is padding.

    Returns batches of indices into `lengths`, each index once. A batch of n sequences, the
    longest T long, has n * T <= max_tokens. Sequences of equal length are mixed at random and
    the batches come in random order, for otherwise training would go from short to long.
    Raises ValueError if a length is not in [1, max_tokens].
    """
    for i, length in enumerate(lengths):
        if not 1 <= length <= max_tokens:
            raise ValueError(
                f"lengths must lie in [1, max_tokens={max_tokens}], got {length} at {i}"
            )
    order = torch.randperm(len(lengths), generator=generator).tolist()
    order.sort(key=lambda i: lengths[i])  # stable: equals stay shuffled
    batches: list[list[int]] = []
    for i in order:
        # Lengths only grow, so the newcomer is the longest of its batch.
        if batches and (len(batches[-1]) + 1) * lengths[i] <= max_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def copy_task(
    num_examples: int, length: int, num_symbols: int, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random symbols and the same again: (source, target), both (N, length) in [0, num_symbols)."""
    _check_sizes(num_examples=num_examples, length=length, num_symbols=num_symbols)
    source = torch.randint(num_symbols, (num_examples, length), generator=generator)  # (N, length)
    return source, source.clone()


def reverse_task(
    num_examples: int, length: int, num_symbols: int, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random symbols and the same backwards: (source, target), both (N, length)."""
    source, target = copy_task(num_examples, length, num_symbols, generator=generator)
    return source, target.flip(1)


def sort_task(
    num_examples: int, length: int, num_symbols: int, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random symbols and the same in ascending order: (source, target), both (N, length)."""
    source, target = copy_task(num_examples, length, num_symbols, generator=generator)
    return source, target.sort(dim=1).values


def addition_task(
    num_examples: int, num_digits: int, *, generator: torch.Generator, reverse_sum: bool = False
) -> tuple[Tensor, Tensor]:
    """Two numbers and their sum, digit by digit: ids 0-9 are digits, 10 is the plus sign.

    Returns (source, target): (N, 2 * num_digits + 1) and (N, num_digits + 1), with leading
    zeros. With `reverse_sum` the target begins with the units, the order in which carries run.
    Worked value, two digits: 47 + 85 is [4, 7, 10, 8, 5] and [1, 3, 2].
    """
    _check_sizes(num_examples=num_examples, num_digits=num_digits)
    numbers = torch.randint(10, (num_examples, 2, num_digits), generator=generator)  # (N, 2, n)
    plus = torch.full((num_examples, 1), 10)
    carry = torch.zeros(num_examples, dtype=torch.int64)  # (N,)
    digits = []  # units first
    for place in reversed(range(num_digits)):
        column = numbers[:, 0, place] + numbers[:, 1, place] + carry
        digits.append(column % 10)
        carry = column // 10
    digits.append(carry)
    source = torch.cat((numbers[:, 0], plus, numbers[:, 1]), dim=1)  # (N, 2n+1)
    return source, torch.stack(digits if reverse_sum else digits[::-1], dim=1)  # (N, n+1)


def recall_task(
    num_examples: int,
    length: int,
    delay: int,
    num_symbols: int,
    *,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """See some symbols, wait, then repeat them on a signal: memory across `delay` steps.

    The problem on which Hochreiter and Schmidhuber (1997) showed what an LSTM is for. Id
    `num_symbols` is the blank, `num_symbols + 1` the signal; N examples, T = 2 * length + delay.
    Returns (inputs, targets), both (N, T): the symbols, `delay` blanks of which the last is the
    signal, `length` blanks; and -100 everywhere but at the last `length` places, which hold the
    symbols.
    """
    _check_sizes(num_examples=num_examples, length=length, delay=delay, num_symbols=num_symbols)
    symbols = torch.randint(num_symbols, (num_examples, length), generator=generator)
    T = 2 * length + delay
    inputs = torch.full((num_examples, T), num_symbols)  # (N, T)
    inputs[:, :length] = symbols
    inputs[:, length + delay - 1] = num_symbols + 1
    targets = torch.full((num_examples, T), _IGNORED)  # (N, T)
    targets[:, -length:] = symbols
    return inputs, targets


def induction_task(
    num_examples: int, num_pairs: int, num_symbols: int, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Pairs (key, value), then the same pairs in another order: look up each key's value.

    What induction heads do (Olsson et al. 2022): find where the current symbol stood before, and
    copy what came after it. The keys of an example are different; values are any symbols.
    Returns (inputs, targets), both (N, 4 * num_pairs): each key of the second half has its value
    as target, -100 stands elsewhere.
    """
    _check_sizes(num_examples=num_examples, num_pairs=num_pairs, num_symbols=num_symbols)
    if num_pairs > num_symbols:
        raise ValueError(f"{num_pairs} different keys need as many symbols, got {num_symbols}")

    def shuffled(count: int) -> Tensor:
        """A permutation of `count` numbers in each row, (N, count)."""
        return torch.rand(num_examples, count, generator=generator).argsort(dim=1)

    keys = shuffled(num_symbols)[:, :num_pairs]  # (N, P)
    values = torch.randint(num_symbols, (num_examples, num_pairs), generator=generator)  # (N, P)
    pairs = torch.stack((keys, values), dim=2)  # (N, P, 2)
    order = shuffled(num_pairs)[:, :, None].expand(-1, -1, 2)  # (N, P, 2)
    again = pairs.gather(1, order)  # (N, P, 2)
    inputs = torch.cat((pairs, again), dim=1).flatten(1)  # (N, 4P)
    targets = torch.full_like(inputs, _IGNORED)  # (N, 4P)
    targets[:, 2 * num_pairs :: 2] = again[:, :, 1]
    return inputs, targets


def as_language_model(
    source: Tensor, target: Tensor, *, separator_id: int
) -> tuple[Tensor, Tensor]:
    """A pair task as next-token prediction, for a decoder without an encoder.

    source (N, S), target (N, T) -> (inputs, targets), both (N, S + T): source, separator and all
    but the last of target; and, shifted by one, target after S ignored places. Raises ValueError
    unless both are two-dimensional with the same N, and T is at least 1.
    """
    if source.ndim != 2 or target.ndim != 2 or len(source) != len(target) or not target.shape[1]:
        raise ValueError(
            "source (N, S) and target (N, T) with T >= 1 are needed, "
            f"got {tuple(source.shape)} and {tuple(target.shape)}"
        )
    separator = torch.full((source.shape[0], 1), separator_id)
    inputs = torch.cat((source, separator, target[:, :-1]), dim=1)  # (N, S+T)
    return inputs, torch.cat((torch.full_like(source, _IGNORED), target), dim=1)  # (N, S+T)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be positive, got {size}")
