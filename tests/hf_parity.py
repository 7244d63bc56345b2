"""Comparing a model of ours with `transformers`' model of the same weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from weight_rules import Family, export_state, import_state


@torch.no_grad()
def fill_with_fan_in(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Give every matrix N(0, 1/fan_in), every norm's weight and every bias their own values.

    With the usual N(0, 0.02²) and zero biases, activations are so small that leaving out RoPE, a
    bias or a norm's weight changes the logits by less than a careless tolerance.
    """
    generator = torch.Generator().manual_seed(seed)
    conv1d = {id(m.weight) for m in model.modules() if type(m).__name__ == "Conv1D"}
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in model.named_parameters():
        draw = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            centre = 0.0 if name.endswith("bias") else 1.0
            parameter.copy_(centre + 0.3 * draw)
        elif id(parameter) in embeddings:
            parameter.copy_(draw / math.sqrt(parameter.shape[1]))
        else:
            fan_in = parameter.shape[0] if id(parameter) in conv1d else parameter.shape[1]
            parameter.copy_(draw / math.sqrt(fan_in))
    return model


def from_transformers(theirs: Any, family: Family) -> Any:
    """Build our model with the weights of theirs, without the detour over a disk."""
    config = family.config_from_hf(theirs.config.to_dict())
    model = family.build(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    state = import_state(theirs.state_dict(), family, config, shapes)
    parameters = dict(model.named_parameters())
    assert state.keys() == parameters.keys()
    with torch.no_grad():
        for name, tensor in state.items():
            parameters[name].copy_(tensor)
    return model.eval()


def left_padding(lengths: list[int], T: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return attention_mask (B, T) int64, positions (B, T) and our keep (B, 1, 1, T)."""
    columns = torch.arange(T)
    starts = torch.tensor([T - length for length in lengths])[:, None]
    mask = columns >= starts  # (B, T)
    return mask.long(), (columns - starts).clamp(min=0), mask[:, None, None, :]


def compare(
    ours: Any, theirs: Any, family: Family, ids: Tensor, lengths: list[int] | None = None
) -> tuple[float, float]:
    """Return the largest differences of logits and of gradients, each relative to its own size.

    The loss is next-token cross-entropy over the real positions. `lengths` makes the batch ragged,
    padded on the left.
    """
    B, T = ids.shape
    mask, positions, keep = left_padding(lengths or [T] * B, T)
    real = mask.bool()
    targets = ids.roll(-1, 1)

    def run(model: Any, logits: Tensor) -> Tensor:
        model.zero_grad()
        nn.functional.cross_entropy(logits[real], targets[real]).backward()
        return logits[real].detach()

    if lengths is None:
        our_logits = run(ours, ours(ids))
        their_logits = run(theirs, theirs(ids).logits)
    else:
        our_logits = run(ours, ours(ids, keep=keep, positions=positions))
        their_logits = run(theirs, theirs(ids, attention_mask=mask, position_ids=positions).logits)
    logit_gap = float((our_logits - their_logits).abs().max() / their_logits.abs().max())

    gradients = {name: p.grad for name, p in ours.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    exported = export_state(gradients, family, ours.config)
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    assert exported.keys() == expected.keys()
    gradient_gap = max(
        float((exported[name] - gradient).abs().max() / gradient.abs().max())
        for name, gradient in expected.items()
    )
    return logit_gap, gradient_gap
