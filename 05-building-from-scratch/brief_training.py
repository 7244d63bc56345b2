"""Train a small language model for a few seconds: what this topic's experiments have in common.

Topic 07 builds the production step; this is the least that trains honestly: AdamW, a warm-up, a
decay to zero, clipping, and held-out text scored in bits per byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from corpora import Document, load_corpus, split_corpus
from debugging import LossFunction, shifted_loss
from numerics import bits_per_byte, cross_entropy
from train_loop import fit


@dataclass(frozen=True, kw_only=True)
class Texts:
    """A training text and a held-out text, as ids, with the bytes that the held-out ids stand for.

    train, held_out: int64 (N,). Byte by byte, an id is a byte and `vocab_size` 256.
    """

    train: Tensor
    held_out: Tensor
    held_out_bytes: int
    vocab_size: int


def byte_texts(*, max_bytes: int, held_out_bytes: int, seed: int = 0) -> Texts:
    """The standard library byte by byte: at most so many bytes to train on and to score.

    Source code is nearly all ASCII, so a byte is a character here, and none is unknown.
    """
    train, held_out = corpus_bytes(max_bytes=max_bytes, held_out_bytes=held_out_bytes, seed=seed)
    return Texts(
        train=_byte_ids(train),
        held_out=_byte_ids(held_out),
        held_out_bytes=len(held_out),
        vocab_size=256,
    )


def corpus_bytes(*, max_bytes: int, held_out_bytes: int, seed: int = 0) -> tuple[bytes, bytes]:
    """(training text, held-out text) of the standard library, split by document, UTF-8.

    The documents come in an order drawn from the seed, so that a part is a fair sample.
    """
    train, held_out = split_corpus(load_corpus("stdlib"), fraction=0.1, seed=seed)
    return _joined(train, max_bytes, seed), _joined(held_out, held_out_bytes, seed)


def next_token_windows(
    ids: Tensor, *, batch_size: int, seq_len: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Random windows without end: (ids, targets), each (B, T), targets one token later."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(seq_len + 1)
    while True:
        starts = torch.randint(len(ids) - seq_len, (batch_size, 1), generator=generator)  # (B, 1)
        windows = ids[starts + offsets]  # (B, T + 1)
        yield windows[:, :-1], windows[:, 1:]


def train_briefly(
    model: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    *,
    steps: int,
    lr: float = 2e-3,
    loss_of: LossFunction = shifted_loss,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Take `steps` steps of AdamW: warm-up over a tenth, then down to zero. Returns the losses.

    Args:
        on_step: called with the step's number, from 1, and its loss.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
    warmup = max(1, steps // 10)
    losses: list[float] = []

    def step(batch: tuple[Tensor, Tensor]) -> dict[str, float]:
        number = len(losses)
        factor = min((number + 1) / warmup, (steps - number) / max(1, steps - warmup))
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, factor)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model, *batch)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if on_step is not None:
            on_step(len(losses), losses[-1])
        return {"loss": losses[-1]}

    model.train()
    fit(step, batches, max_steps=steps)
    model.eval()
    return losses


@torch.no_grad()
def held_out_bits(model: nn.Module, texts: Texts, *, seq_len: int, batch_size: int = 64) -> float:
    """Bits per byte of the held-out text: every token but the first is scored once."""
    ids = texts.held_out
    nats = 0.0
    starts = list(range(0, len(ids) - 1, seq_len))
    for first in range(0, len(starts), batch_size):
        rows = [ids[start : start + seq_len + 1] for start in starts[first : first + batch_size]]
        for same in _by_length(rows):
            windows = torch.stack(same)  # (B, T + 1)
            loss = cross_entropy(model(windows[:, :-1]), windows[:, 1:], reduction="sum")
            nats += float(loss)
    return float(bits_per_byte(nats, texts.held_out_bytes))


def unigram_nats(ids: Tensor, vocab_size: int) -> float:
    """Entropy of the token frequencies: the loss of knowing only how common each token is."""
    shares = np.bincount(ids.numpy(), minlength=vocab_size) / len(ids)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def _by_length(rows: Sequence[Tensor]) -> list[list[Tensor]]:
    """Full windows together, and the short last one by itself."""
    full = [row for row in rows if len(row) == len(rows[0])]
    short = [row for row in rows if len(row) != len(rows[0])]
    return [full, short] if short else [full]


def _byte_ids(text: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(text, dtype=np.uint8).astype(np.int64))


def _joined(documents: Iterable[Document], limit: int, seed: int) -> bytes:
    ordered = list(documents)
    order = np.random.default_rng(seed).permutation(len(ordered))
    text = bytearray()
    for place in order:
        text += ordered[place].text.encode("utf-8")
        if len(text) >= limit:
            break
    return bytes(text[:limit])


def expected_initial_loss(vocab_size: int, logit_std: float) -> float:
    """ln V + σ²/2: the mean loss of logits drawn from N(0, σ²), for σ² well below 2 ln V."""
    return math.log(vocab_size) + logit_std**2 / 2
