"""The KV cache: keep each position's keys and values, so that decoding never repeats work.

Without it, writing token t runs the whole model over t positions again, and n tokens cost
1 + 2 + … + n = n(n+1)/2 of them. But under a causal mask position s's keys and values depend only
on positions up to s, so they never change once computed. Keep them, and each new token is one
position's work plus one row of attention. The price is memory: 2·L·G·K numbers a position.

The space is allocated once and written in place. Appending with `torch.cat` would copy everything
so far at every step, which is quadratic again.

Ragged prompts are padded on the *left*, so that every row's next token lands in the same column:
`starts[b]` says in which column row b's text begins. Positions count from there, and no query
attends to what lies before it.

README, "The KV cache". Letters: L layers, B batch, T new positions, S all positions so far,
G key/value heads, K head width.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer, preallocated for `max_seq_len` positions.

    A model's forward reads `positions(T)` and `keep(T)`, gives `layer(i)` to layer i's attention,
    and calls `advance(T)` once at the end. The cache holds numbers, not graphs: run the model
    under `torch.no_grad()` or `torch.inference_mode()`.

    Args:
        num_layers, batch_size, num_kv_heads, max_seq_len, head_dim: the sizes L, B, G, S, K.
        dtype: of the stored numbers; what is appended is converted to it.
        device: where they are stored.

    Raises:
        ValueError: a size below 1, or a dtype that is not floating point.

    Example: GPT-2 small (L = 12, G = 12, K = 64) at S = 1024 in fp32 needs
    2·12·12·1024·64 numbers of 4 bytes = 75.5 MB a row; see `nbytes`.
    """

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        num_kv_heads: int,
        max_seq_len: int,
        head_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        sizes = {
            "num_layers": num_layers,
            "batch_size": batch_size,
            "num_kv_heads": num_kv_heads,
            "max_seq_len": max_seq_len,
            "head_dim": head_dim,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}; it must be at least 1")
        if not dtype.is_floating_point:
            raise ValueError(f"dtype is {dtype}; keys and values are floating point")
        shape = tuple(sizes.values())
        # Born outside inference mode, so that it can be used on both sides of it.
        with torch.inference_mode(False):
            self._keys = torch.empty(shape, dtype=dtype, device=device)  # (L, B, G, S, K)
            self._values = torch.empty(shape, dtype=dtype, device=device)  # (L, B, G, S, K)
        self._length = 0
        self._starts: Tensor | None = None
        self._layers = tuple(_LayerView(self, index) for index in range(num_layers))
        # Each layer's views of where to write and what to return are cut once a forward, for all
        # layers together: four slices a forward in place of four a layer.
        self._cut_for = 0
        self._slots: list[tuple[Tensor, Tensor]] = []
        self._filled: list[tuple[Tensor, Tensor]] = []

    @property
    def num_layers(self) -> int:
        """How many layers it serves."""
        return self._keys.shape[0]

    @property
    def batch_size(self) -> int:
        """How many rows it holds."""
        return self._keys.shape[1]

    @property
    def max_seq_len(self) -> int:
        """How many positions there is room for."""
        return self._keys.shape[3]

    @property
    def length(self) -> int:
        """How many positions are stored, padding included."""
        return self._length

    @property
    def nbytes(self) -> int:
        """Bytes allocated: 2·L·B·G·S·K times the size of a number."""
        return self._keys.nbytes + self._values.nbytes

    @property
    def starts(self) -> Tensor | None:
        """Where each row's text begins: (B,) int64, or None where every row begins at 0.

        Set it before anything is stored. Raises ValueError for another shape, a negative start,
        or a cache that already holds something.
        """
        return self._starts

    @starts.setter
    def starts(self, starts: Tensor | None) -> None:
        if self._length:
            raise ValueError(
                f"starts must be set while the cache is empty; it holds {self._length}"
            )
        if starts is None:
            self._starts = None
            return
        if starts.shape != (self.batch_size,) or starts.dtype != torch.int64:
            raise ValueError(
                f"starts is {tuple(starts.shape)} {starts.dtype}; it must be "
                f"({self.batch_size},) int64, one a row"
            )
        if bool((starts < 0).any()):
            raise ValueError(f"starts is {starts.tolist()}; none may be negative")
        starts = starts.to(self._keys.device)
        self._starts = starts if bool(starts.any()) else None

    def layer(self, index: int) -> _LayerView:
        """Return layer `index`'s part: a `LayerKVCache`, to be given to its attention."""
        return self._layers[index]

    def positions(self, T: int) -> Tensor:
        """Return the positions of the next T tokens: (T,), or (B, T) where rows are ragged.

        Positions count from each row's start; padding gets 0, which nobody looks at.
        """
        device = self._keys.device
        columns = torch.arange(self._length, self._length + T, device=device)  # (T,)
        if self._starts is None:
            return columns
        return (columns - self._starts[:, None]).clamp(min=0)  # (B, T)

    def keep(self, T: int) -> Tensor | None:
        """Return which of the S = length + T keys each of the next T queries may attend.

        None where causality says it all (attention is then called with `causal=True`); for ragged
        rows (B, 1, T, S) bool: not before the row's start, not after the query.
        """
        if self._starts is None:
            return None
        columns = torch.arange(self._length + T, device=self._keys.device)  # (S,)
        begun = columns >= self._starts[:, None, None, None]  # (B, 1, 1, S)
        past = columns <= columns[self._length :, None]  # (T, S)
        return begun & past  # (B, 1, T, S)

    def advance(self, T: int) -> None:
        """Count the T positions that every layer has just appended. Once a forward, at its end.

        Raises ValueError if that is not what the layers appended.
        """
        if self._cut_for != T:
            raise ValueError(
                f"cannot advance by {T}: the layers appended {self._cut_for} positions"
            )
        self._length += T
        self._forget_cuts()

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` positions (speculative decoding takes tokens back).

        Raises ValueError if fewer are stored.
        """
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot truncate to {length}: {self._length} positions are stored")
        self._length = length
        self._forget_cuts()

    def reorder(self, index: Tensor) -> None:
        """Make row i the old row index[i]: a beam search keeps some rows and copies others.

        `index` may be longer or shorter than the batch, which then changes size (one prompt's row
        becomes a row for each beam).

        Args:
            index: (new batch,) int64.

        Raises:
            ValueError: an index that is not one-dimensional, empty or out of range.
        """
        if index.dim() != 1 or index.numel() == 0:
            raise ValueError(f"index has shape {tuple(index.shape)}; it must be (new batch,)")
        if bool((index < 0).any()) or bool((index >= self.batch_size).any()):
            raise ValueError(f"index {index.tolist()} goes beyond {self.batch_size} rows")
        self._forget_cuts()
        self._starts = None if self._starts is None else self._starts[index]
        with torch.inference_mode(False):
            self._keys = self._moved(self._keys, index)
            self._values = self._moved(self._values, index)

    def _moved(self, old: Tensor, index: Tensor) -> Tensor:
        """Return the storage with rows taken by index; only what is filled is copied."""
        filled = old[:, index, :, : self._length]  # (L, new batch, G, S, K), a copy
        L, B, G, capacity, K = old.shape
        new = old if len(index) == B else old.new_empty(L, len(index), G, capacity, K)
        new[:, :, :, : self._length] = filled
        return new

    def _cut(self, T: int) -> None:
        """Cut every layer's views for a forward of T new positions."""
        total = self._length + T
        if total > self.max_seq_len:
            raise ValueError(
                f"{self._length} positions stored and {T} new ones are more than the cache's "
                f"max_seq_len {self.max_seq_len}"
            )
        new = (self._keys.narrow(3, self._length, T), self._values.narrow(3, self._length, T))
        filled = (self._keys.narrow(3, 0, total), self._values.narrow(3, 0, total))
        self._slots = list(zip(*(view.unbind(0) for view in new), strict=True))
        self._filled = list(zip(*(view.unbind(0) for view in filled), strict=True))
        self._cut_for = T

    def _forget_cuts(self) -> None:
        """Drop the views of the last forward."""
        self._cut_for = 0
        self._slots, self._filled = [], []


class _LayerView:
    """One layer's part of a `KVCache`."""

    __slots__ = ("_cache", "_index")

    def __init__(self, cache: KVCache, index: int) -> None:
        self._cache = cache
        self._index = index

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values (B, G, T, K); return all so far (B, G, S, K).

        What is returned are views: valid until the cache is written again.

        Raises:
            ValueError: shapes that do not fit, no room, or tensors that carry a graph.
        """
        cache = self._cache
        if k.shape[2] != cache._cut_for:
            cache._cut(k.shape[2])
        key_slot, value_slot = cache._slots[self._index]
        if k.shape != key_slot.shape or v.shape != value_slot.shape:
            raise ValueError(
                f"k {tuple(k.shape)} and v {tuple(v.shape)} must both be {tuple(key_slot.shape)}"
            )
        if k.requires_grad or v.requires_grad:
            raise ValueError(
                "the cache holds numbers, not graphs: run the model under torch.no_grad() or "
                "torch.inference_mode()"
            )
        key_slot.copy_(k)
        value_slot.copy_(v)
        return cache._filled[self._index]
