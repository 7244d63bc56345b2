"""Induction heads: what two layers of attention can do and one cannot (Olsson et al. 2022).

Give a model random tokens and then the same tokens again. Nothing in the first half can be
predicted; in the second, everything: look where the present token stood before, and copy what
came after it. That takes two steps. One head must write into each position *which token came
before it*; a later head can then look for the position whose "token before" is the present one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from attention import attention_weights
from gpt import GPT
from numerics import cross_entropy


def repeated_batches(
    *, batch_size: int, half: int, vocab_size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Random tokens over and over, without end: (ids, targets), each (B, 2·half - 1).

    The length of what is repeated varies from half/3 to half, so that the distance to look back
    cannot be learned as a number. What has no answer is not asked: in the first repetition the
    targets are -100, which the loss leaves out. Asked there too, the model spends
    its steps on fitting noise.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows, asked = [], []
        for _ in range(batch_size):
            period = int(torch.randint(half // 3, half + 1, (1,), generator=generator))
            tokens = torch.randint(vocab_size, (period,), generator=generator)
            row = tokens.repeat(2 * half // period + 1)[: 2 * half]
            target = row[1:].clone()
            target[: period - 1] = -100
            rows.append(row)
            asked.append(target)
        yield torch.stack(rows)[:, :-1], torch.stack(asked)


@torch.no_grad()
def repetition_loss(model: GPT, *, half: int, seed: int, rows: int = 64) -> float:
    """Mean nats a token in the second half of an exact repetition; guessing costs ln V."""
    ids = _exact_repetition(model, half=half, seed=seed, rows=rows)
    nats = cross_entropy(model(ids[:, :-1]), ids[:, 1:], reduction="none")  # (B, 2·half - 1)
    return float(nats[:, half:].mean())


@torch.no_grad()
def head_maps(model: GPT, ids: Tensor) -> list[Tensor]:
    """The attention weights of every layer, each (B, H, T, T)."""
    maps: list[Tensor] = []

    def recording(q, k, v, *, causal=False, **options):
        weights = attention_weights(q, k, causal=causal, keep=options.get("keep"))
        maps.append(weights)
        return weights @ v

    attentions: list[Any] = [block.attention for block in model.blocks]
    before = [attention.attend for attention in attentions]
    try:
        for attention in attentions:
            attention.attend = recording
        model(ids)
    finally:
        for attention, attend in zip(attentions, before, strict=True):
            attention.attend = attend
    return maps


@torch.no_grad()
def induction_scores(model: GPT, *, half: int, seed: int, rows: int = 16) -> Tensor:
    """(L, H): how much each head attends, in the second half, to the token after the last time.

    1 is a perfect induction head; attention spread evenly has about 1/(1.5·half).
    """
    ids = _exact_repetition(model, half=half, seed=seed, rows=rows)
    scores = []
    for weights in head_maps(model, ids):
        # Query t in the second half; its token stood at t - half, the one after it at t - half + 1.
        diagonal = weights.diagonal(offset=1 - half, dim1=-2, dim2=-1)  # (B, H, half + 1)
        scores.append(diagonal[..., 1:].mean(dim=(0, 2)))  # (H,)
    return torch.stack(scores)  # (L, H)


def _exact_repetition(model: GPT, *, half: int, seed: int, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(model.config.vocab_size, (rows, half), generator=generator)
    return tokens.repeat(1, 2)  # (B, 2·half)
