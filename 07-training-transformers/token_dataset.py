"""The batches that training draws from a token stream on disk (`token_shards`).

`TokenBatches` cuts the stream into windows and shuffles them anew each epoch. Its `batch(step)` is
a pure function of the step, so resuming a run needs no data state at all, and two processes share
a batch without a word between them.

    stream    a b c | d e f | g h i | j ...      windows of seq_len = 3
    ids       a b c      targets    b c d        every window reads one token further

README: "The data pipeline".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from token_shards import ShardFile, ShardsInfo, TokenShards, write_shards

__all__ = [
    "PackedBatch",
    "ShardFile",
    "ShardsInfo",
    "TokenBatches",
    "TokenShards",
    "document_ids",
    "document_positions",
    "write_shards",
]


class PackedBatch(NamedTuple):
    """A batch whose windows hold several documents, with what keeps these apart; all (B, T)."""

    ids: Tensor
    targets: Tensor
    document_ids: Tensor
    positions: Tensor


class TokenBatches:
    """Shuffled windows of a token stream. `batch(step)` depends on nothing but its arguments.

    An epoch visits each window once, in an order drawn from (seed, epoch). The stream is taken as
    a ring and its cut into windows begins at a place drawn likewise, so that no token is always
    the first of its window; the fewer than `seq_len` tokens left over differ from epoch to epoch.
    A batch may reach over the end of an epoch into the next.

    Args:
        batch_size: windows in a batch over all ranks together; each rank gets
            `batch_size / world_size` of them, rank 0 the first. The ranks' batches one after the
            other are the batch of a single process.
        document_masks: iterate over `PackedBatch`es instead of (ids, targets).

    An epoch's order is held in memory: 8 bytes a window, 0.4 % of the data at 1024 tokens.

    Raises:
        ValueError: a number below 1, a batch that the ranks cannot share evenly, or a corpus that
            is too small for one window, or for one batch.
    """

    def __init__(
        self,
        shards: TokenShards,
        *,
        batch_size: int,
        seq_len: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        document_masks: bool = False,
    ) -> None:
        if min(batch_size, seq_len, world_size) < 1 or not 0 <= rank < world_size or seed < 0:
            raise ValueError(
                "batch_size, seq_len and world_size must be at least 1, seed at least 0 and rank "
                f"below world_size; got {batch_size=}, {seq_len=}, {seed=}, {rank=}, {world_size=}"
            )
        if batch_size % world_size:
            raise ValueError(f"{world_size} ranks cannot share a batch of {batch_size} evenly")
        self.num_windows = len(shards) // seq_len if len(shards) > seq_len else 0
        if self.num_windows < batch_size:
            raise ValueError(
                f"the corpus in {shards.directory} is too small: its {len(shards)} tokens make "
                f"{self.num_windows} windows of {seq_len} (+ 1), and a batch needs {batch_size}"
            )
        self.shards, self.batch_size, self.seq_len, self.seed = shards, batch_size, seq_len, seed
        self.rank, self.world_size, self.document_masks = rank, world_size, document_masks
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """(ids, targets), each (batch_size / world_size, seq_len) int64, of optimiser step `step`
        (0 is the first): targets are ids one token later.
        """
        if step < 0:
            raise ValueError(f"step must be at least 0; got {step}")
        local = self.batch_size // self.world_size
        first = step * self.batch_size + self.rank * local
        rows = np.stack([self._window(number) for number in range(first, first + local)])
        windows = torch.from_numpy(rows)  # (B, T + 1)
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()  # (B, T) each

    def packed_batch(self, step: int) -> PackedBatch:
        """`batch(step)` with the documents that its tokens belong to and positions within them."""
        ids, targets = self.batch(step)
        documents = document_ids(ids, self.shards.eos_id)
        return PackedBatch(ids, targets, documents, document_positions(documents))

    def iterate(self, start_step: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Batches of steps `start_step`, `start_step` + 1, … without end."""
        make = self.packed_batch if self.document_masks else self.batch
        while True:
            yield make(start_step)
            start_step += 1

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self.iterate()

    @property
    def tokens_per_batch(self) -> int:
        """Tokens in the batch of one step, over all ranks."""
        return self.batch_size * self.seq_len

    def epoch(self, step: int) -> float:
        """How often the stream has been gone through before step `step`."""
        return step * self.batch_size / self.num_windows

    def _window(self, number: int) -> np.ndarray:
        """The seq_len + 1 tokens of the `number`th window ever drawn, over all epochs."""
        epoch, place = divmod(number, self.num_windows)
        cut, order = self._order(epoch)
        start = (cut + int(order[place]) * self.seq_len) % len(self.shards)
        stop = start + self.seq_len + 1
        if stop <= len(self.shards):
            return self.shards.read(start, stop)
        tail = self.shards.read(start, len(self.shards))
        return np.concatenate([tail, self.shards.read(0, stop - len(self.shards))])

    def _order(self, epoch: int) -> tuple[int, np.ndarray]:
        """Where the ring is cut in this epoch, and the order of its windows."""
        if epoch not in self._orders:
            generator = np.random.default_rng([self.seed, epoch])
            cut = int(generator.integers(len(self.shards)))
            # Two epochs are kept, since a batch can reach from one into the next.
            self._orders = {e: self._orders[e] for e in self._orders if e == epoch - 1}
            self._orders[epoch] = cut, generator.permutation(self.num_windows)
        return self._orders[epoch]


def document_ids(ids: Tensor, eos_id: int) -> Tensor:
    """Number the documents in each row from 0, (B, T) int64.

    An end-of-text token, once it is an input, begins the document that follows it: it is what the
    model sees before the first word, in training as in generation from nothing.

    `document_ids(tensor([[5, 6, 0, 7]]), eos_id=0)` is [[0, 0, 1, 1]].
    """
    return (ids == eos_id).cumsum(dim=1)


def document_positions(document_ids: Tensor) -> Tensor:
    """Each token's position within its own document in the window, (B, T) int64.

    `document_positions(tensor([[0, 0, 1, 1]]))` is [[0, 1, 0, 1]].
    """
    place = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    # The latest beginning up to each place: places only grow, so a running maximum finds it.
    return place - (place * begins).cummax(dim=1).values
