"""N-grams with interpolated modified Kneser-Ney smoothing (Chen and Goodman 1999).

An n-gram model predicts from the last n - 1 symbols by counting. What was never seen gets its
probability from the next shorter context, and shorter contexts count differently: not how often a
symbol occurred but *after how many different symbols* (Kneser and Ney 1995). "Francisco" is
frequent, yet follows one word only; a context that has never met it should not expect it.

Symbols are ids from 0: bytes, or a Vocabulary's word ids. README, "Counting".
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

_MAX_VOCAB = 0x10FFFF


class _Context:
    """What followed one context: discounted shares by symbol, and the share of the shorter one."""

    __slots__ = ("arrays", "backoff", "shares")

    def __init__(self, counts: dict[str, int], discounts: tuple[float, float, float]) -> None:
        total = sum(counts.values())
        taken = [discounts[min(count, 3) - 1] for count in counts.values()]
        self.shares = {
            symbol: (count - discount) / total
            for (symbol, count), discount in zip(counts.items(), taken, strict=True)
        }
        self.backoff = sum(taken) / total
        self.arrays: tuple[np.ndarray, np.ndarray] | None = None  # made when first needed


class NgramModel:
    """Interpolated modified Kneser-Ney of one order over ids in [0, vocab_size).

    p_k(w | c) = (count(c w) - D) / count(c) + backoff(c) p_{k-1}(w | c without its first symbol),
    with D = D1, D2 or D3 for counts 1, 2, 3 and more; p_0 is 1 / vocab_size, so every symbol has
    a probability. Orders below the highest use continuation counts.

    Raises ValueError for an id out of range, an order below 1, or no training symbols; TypeError
    for ids that are no integers.
    """

    def __init__(self, ids: Iterable[int], *, order: int, vocab_size: int) -> None:
        if order < 1:
            raise ValueError(f"order must be 1 or more, got {order}")
        if not 1 <= vocab_size <= _MAX_VOCAB:
            raise ValueError(f"vocab_size must lie in [1, {_MAX_VOCAB}], got {vocab_size}")
        self.order, self.vocab_size = order, vocab_size
        # One character a symbol: slices of a string are the fastest keys that Python has.
        text = self._as_text(ids)
        if not text:
            raise ValueError("there must be at least one symbol to count")
        self.discounts: list[tuple[float, float, float]] = []
        self._contexts: list[dict[str, _Context]] = []  # [k] of length k
        counts = Counter(text[i : i + order] for i in range(len(text) - order + 1))
        tables = [counts]
        for k in range(order - 1, 0, -1):
            longer, counts = counts, Counter()
            for gram in longer:  # each different left neighbour counts once
                counts[gram[1:]] += 1
            if len(text) >= k:
                counts[text[:k]] += 1  # the beginning of the text is a left neighbour too
            tables.append(counts)
        for grams in reversed(tables):
            discounts = modified_discounts(Counter(grams.values()))
            by_context: dict[str, dict[str, int]] = {}
            for gram, count in grams.items():
                by_context.setdefault(gram[:-1], {})[gram[-1]] = count
            self.discounts.append(discounts)
            self._contexts.append({c: _Context(s, discounts) for c, s in by_context.items()})

    def _as_text(self, ids: Iterable[int]) -> str:
        if isinstance(ids, (bytes, bytearray)) and self.vocab_size >= 256:
            return ids.decode("latin-1")
        try:
            numbers = [operator.index(i) for i in ids]  # and not int(i), which cuts 2.7 down to 2
        except TypeError as error:
            raise TypeError(f"ids must be integers: {error}") from error
        for i in numbers:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"ids must lie in [0, {self.vocab_size}), got {i}")
        return "".join(map(chr, numbers))

    @property
    def num_parameters(self) -> int:
        """How many shares and back-off weights are stored."""
        return sum(1 + len(c.shares) for table in self._contexts for c in table.values())

    def _probability(self, text: str, position: int) -> float:
        p, symbol = 1 / self.vocab_size, text[position]
        for k in range(min(self.order, position + 1)):
            context = self._contexts[k].get(text[position - k : position])
            if context is None:
                break  # a context that was never seen has no longer one that was
            p = context.shares.get(symbol, 0.0) + context.backoff * p
        return p

    def nats(self, ids: Iterable[int]) -> float:
        """-ln of the probability of all ids, each given those before it."""
        text = self._as_text(ids)
        return -math.fsum(math.log(self._probability(text, i)) for i in range(len(text)))

    def distribution(self, history: Sequence[int]) -> np.ndarray:
        """The probabilities (V,) of the next symbol after these, as many as there are."""
        text = self._as_text(history[-(self.order - 1) :] if self.order > 1 else ())
        p = np.full(self.vocab_size, 1 / self.vocab_size)
        for k in range(min(self.order, len(text) + 1)):
            context = self._contexts[k].get(text[len(text) - k :])
            if context is None:
                break
            if context.arrays is None:
                symbols = np.array([ord(symbol) for symbol in context.shares])
                context.arrays = symbols, np.array(list(context.shares.values()))
            symbols, shares = context.arrays
            p *= context.backoff
            p[symbols] += shares
        return p

    def coding_step(self, state: object, symbol: int | None) -> tuple[np.ndarray, object]:
        """The `step` of `arithmetic_coding.SteppingModel`: the state is the history."""
        history = () if symbol is None else (*state, symbol)[-max(self.order - 1, 1) :]  # type: ignore[misc]
        return self.distribution(history), history


def modified_discounts(counts_of_counts: Counter[int]) -> tuple[float, float, float]:
    """D1, D2, D3 from n1 to n4, how many n-grams occur once to four times (Chen and Goodman,
    eq. 17): Y = n1 / (n1 + 2 n2), D_i = i - (i + 1) Y n_{i+1} / n_i.

    Where a needed n_i is 0 (small data), D_i is i / 2, and 0 <= D_i <= i always holds.
    """
    n = [0] + [counts_of_counts.get(i, 0) for i in (1, 2, 3, 4)]
    y = n[1] / (n[1] + 2 * n[2]) if n[1] and n[2] else None
    found = []
    for i in (1, 2, 3):
        d = i / 2 if y is None or not n[i] or not n[i + 1] else i - (i + 1) * y * n[i + 1] / n[i]
        found.append(min(max(d, 0.0), float(i)))
    return found[0], found[1], found[2]
