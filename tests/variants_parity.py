"""Comparing this topic's models with `transformers`' of the same weights, on padded batches.

Both run in fp64, where nothing hides behind rounding: the right answers differ by 1e-14 or so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from weight_rules import Family, export_state


def random_ids(*shape: int, low: int = 3, high: int = 101, seed: int = 1) -> Tensor:
    """Ids in [low, high), so that no special id stands there by chance."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def padded(ids: Tensor, lengths: list[int], pad_id: int, side: str = "right") -> Tensor:
    """Return which positions are real (B, T), and write pad_id into the others."""
    T = ids.shape[1]
    place = torch.arange(T) if side == "right" else torch.arange(T).flip(0)
    keep = place < torch.tensor(lengths)[:, None]
    ids[~keep] = pad_id
    return keep


def gaps(
    ours: Any,
    theirs: Any,
    family: Family,
    outputs: Callable[[], list[tuple[Tensor, Tensor]]],
) -> tuple[float, float]:
    """Return the largest differences of outputs and of gradients, each relative to its own size.

    A key's bias shifts all scores of a query alike, so its gradient is 0 but for rounding: sizes
    below 1e-3 count as 1e-3.

    `outputs` gives pairs (ours, theirs). The loss is the sum of each output times fixed random
    numbers, so that every element has a gradient of its own.
    """
    ours.double()
    theirs.double()
    pairs = outputs()
    output_gap = 0.0
    for model, side in ((ours, 0), (theirs, 1)):
        model.zero_grad()
        generator = torch.Generator().manual_seed(5)
        loss = torch.zeros((), dtype=torch.float64)
        for pair in pairs:
            weights = torch.randn(pair[side].shape, generator=generator, dtype=torch.float64)
            loss = loss + (pair[side] * weights).sum()
        loss.backward()
    for mine, reference in pairs:
        assert mine.shape == reference.shape
        mine, reference = mine.detach(), reference.detach()
        output_gap = max(output_gap, float((mine - reference).abs().max() / reference.abs().max()))
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad}
    missing = [name for name, gradient in gradients.items() if gradient is None]
    assert not missing, missing
    exported = export_state(gradients, family, ours.config, strict=False)
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert exported.keys() == expected.keys(), exported.keys() ^ expected.keys()
    gradient_gap = max(
        float((exported[name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-3))
        for name, gradient in expected.items()
    )
    return output_gap, gradient_gap
