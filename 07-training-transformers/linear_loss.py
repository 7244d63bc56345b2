"""Output layer and cross-entropy in one, without ever holding the logits.

With N tokens and a vocabulary of V the logits are N·V numbers, their gradient as many again: for
2,048 tokens and V = 50,257 that is 0.8 GB in fp32, more than the rest of a small model. But each
row's loss needs that row's logits only, and its gradient follows at once: softmax minus the
target. So take the rows a few hundred at a time: multiply, normalise, add up the loss, and
multiply on to the gradients of the hidden states and of the weight while the piece is still in
the cache. Nothing is computed twice; only the (n, V) piece of the moment exists.

README: "The loss without the logits".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from masks import document_mask
from token_dataset import PackedBatch
from training import IGNORE_INDEX

# Logits in a piece: 8 MB in fp32 stays in a processor's last cache; an accelerator wants more work
# at a time. Fewer rows than the least would leave the matrix products thin.
_PIECE_ON_CPU, _PIECE_ELSEWHERE, _LEAST_ROWS = 2**21, 2**26, 128


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    soft_cap: float | None = None,
    ignore_index: int = IGNORE_INDEX,
    label_smoothing: float = 0.0,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """`numerics.cross_entropy(hidden @ weight.T, targets)`, the logits never held.

    Args:
        hidden: (..., D), floating point; under autocast it is multiplied in autocast's dtype.
        weight: (V, D), the output layer's.
        targets: (...) integers in [0, V), or `ignore_index` for places that do not count.
        soft_cap: c of c·tanh(logits / c); None = no cap.
        label_smoothing: as in `numerics.cross_entropy`.
        reduction: "mean" over the places that count, or "sum".

    Returns:
        A scalar, at least fp32. Can be differentiated once. Softmax and loss are computed in at
        least fp32, and the pieces' shares of the weight's gradient are added up in it.

    Raises:
        ValueError: shapes that do not fit, targets out of range (checked on the CPU), a cap that
            is not positive, a smoothing outside [0, 1), or an unknown reduction.
    """
    _check(hidden, weight, targets, soft_cap, ignore_index, label_smoothing, reduction)
    keep = (targets != ignore_index).reshape(-1)  # (N,)
    safe = targets.reshape(-1).long().where(keep, 0)  # (N,)
    device = hidden.device.type
    dtype = hidden.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        total: Any = _LinearLoss.apply(
            hidden.reshape(-1, hidden.shape[-1]).to(dtype),
            weight,
            safe,
            keep,
            soft_cap,
            label_smoothing,
        )
        return total if reduction == "sum" else total / keep.sum()


def fused_next_token_loss(
    model: nn.Module, batch: Sequence[Tensor], *, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`training.next_token_loss` by `linear_cross_entropy`: a `LossFn` for `TrainingStep`.

    For models whose logits are `unembed(hidden_states(ids))`, with the soft cap that
    `config.logit_soft_cap` says if there is such a field: the course's `GPT` and `Llama`.

    Raises:
        TypeError: the model has no `hidden_states`, or its `unembed` is no linear layer without
            a bias.
    """
    head: Any = getattr(model, "unembed", None)
    hidden_states: Any = getattr(model, "hidden_states", None)
    if hidden_states is None or not isinstance(head, nn.Linear) or head.bias is not None:
        raise TypeError(
            f"{type(model).__name__} does not end in hidden_states and a linear unembed without "
            "bias; use training.next_token_loss"
        )
    ids, targets = batch[0], batch[1]
    if isinstance(batch, PackedBatch):
        keep = document_mask(batch.document_ids)  # (B, 1, T, T)
        hidden = hidden_states(ids, keep=keep, positions=batch.positions)  # (B, T, D)
    else:
        hidden = hidden_states(ids)  # (B, T, D)
    nats = linear_cross_entropy(
        hidden,
        head.weight,
        targets,
        soft_cap=getattr(getattr(model, "config", None), "logit_soft_cap", None),
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return nats, (targets != IGNORE_INDEX).sum()


class _LinearLoss(torch.autograd.Function):
    """The summed loss; its gradients are computed on the way and scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        keep: Tensor,
        cap: float | None,
        smoothing: float,
    ) -> Tensor:
        """x (N, D), weight (V, D), targets (N,) in range, keep (N,) bool -> scalar."""
        precise = torch.promote_types(x.dtype, torch.float32)
        w = weight.to(x.dtype)  # (V, D)
        wants_dx, wants_dw = ctx.needs_input_grad[:2]
        dx = torch.empty_like(x) if wants_dx else None
        dw = torch.zeros_like(weight, dtype=precise) if wants_dw else None
        total = x.new_zeros((), dtype=precise)
        for rows in _pieces(x, len(weight)):
            piece, target, counts = x[rows], targets[rows, None], keep[rows]
            logits = (piece @ w.T).to(precise)  # (n, V)
            slope = None
            if cap is not None:
                logits.div_(cap).tanh_()
                slope = torch.addcmul(torch.ones_like(logits), logits, logits, value=-1.0)
                logits.mul_(cap)
            picked = logits.gather(1, target).squeeze(1)  # (n,)
            if smoothing > 0.0:
                picked = (1.0 - smoothing) * picked + smoothing * logits.mean(dim=1)
            largest = logits.amax(dim=1, keepdim=True)  # (n, 1)
            terms = logits.sub_(largest).exp_()  # (n, V)
            normaliser = terms.sum(dim=1, keepdim=True)  # (n, 1)
            losses = normaliser.log().add_(largest).squeeze(1) - picked  # (n,)
            total += losses.where(counts, 0.0).sum()
            if dx is None and dw is None:
                continue
            # Softmax minus the target distribution, 0 in the rows that do not count.
            included = counts.to(precise).unsqueeze(1)  # (n, 1)
            gradient = terms.mul_(included / normaliser)  # (n, V)
            if smoothing > 0.0:
                gradient.sub_(included * (smoothing / len(weight)))
            gradient.scatter_add_(1, target, included * (smoothing - 1.0))
            if slope is not None:
                gradient.mul_(slope)
            gradient = gradient.to(x.dtype)
            if dx is not None:
                torch.mm(gradient, w, out=dx[rows])
            if dw is not None and dw.dtype == x.dtype:
                dw.addmm_(gradient.T, piece)
            elif dw is not None:
                dw += gradient.T @ piece
        ctx.weight_dtype = weight.dtype
        ctx.save_for_backward(dx, dw)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw = ctx.saved_tensors
        if dx is not None:
            dx = dx * grads[0].to(dx.dtype)
        if dw is not None:
            dw = (dw * grads[0]).to(ctx.weight_dtype)
        return dx, dw, None, None, None, None


def _pieces(x: Tensor, vocab_size: int) -> list[slice]:
    budget = _PIECE_ON_CPU if x.device.type == "cpu" else _PIECE_ELSEWHERE
    rows = max(_LEAST_ROWS, budget // vocab_size)
    return [slice(start, start + rows) for start in range(0, len(x), rows)]


def _check(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    cap: float | None,
    ignore_index: int,
    smoothing: float,
    reduction: str,
) -> None:
    if weight.dim() != 2 or hidden.dim() < 1 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            "hidden (..., D) and weight (V, D) must agree, "
            f"got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if hidden.shape[:-1] != targets.shape:
        raise ValueError(
            "hidden (..., D) and targets (...) must agree, "
            f"got {tuple(hidden.shape)} and {tuple(targets.shape)}"
        )
    if cap is not None and not cap > 0:
        raise ValueError(f"soft_cap must be positive, or None for none; got {cap}")
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {smoothing}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be mean or sum, got {reduction!r}")
    if targets.device.type == "cpu":
        wrong = (targets != ignore_index) & ((targets < 0) | (targets >= len(weight)))
        if bool(wrong.any()):
            raise ValueError(
                f"targets must lie in [0, {len(weight)}) or be ignore_index={ignore_index}, "
                f"got {int(targets[wrong].reshape(-1)[0])}"
            )
