"""Probability in floating point: stable softmax and losses, entropy and its relatives.

Every function takes NumPy arrays and torch tensors alike and gives back the same kind, on the
same device. Half precision (bf16, fp16) is computed, summed and returned in fp32; fp64 stays
fp64. Information is in nats (natural logarithms) unless a name says bits.

The one idea: exp overflows (fp32 at 88.7) and log(0) is -inf, but softmax does not change when a
constant is subtracted from all its inputs. Subtract the largest, and the largest exponential
is exactly 1.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

Array = TypeVar("Array", NDArray[Any], Tensor)
Reduction = Literal["mean", "sum", "none"]

# Logits that a pass of `cross_entropy` works on at a time: 1 MiB of fp32 stays in a core's cache,
# an accelerator wants fewer, larger launches.
_CHUNK_ON_CPU = 2**18
_CHUNK_ELSEWHERE = 2**26


def log_sum_exp(x: Array, axis: int = -1) -> Array:
    """log Σ exp(x) along `axis`, which disappears; -inf where every x is -inf.

    = m + log Σ exp(x - m) with m = max x. Worked value: log_sum_exp([1000, 1000]) is
    1000 + ln 2 = 1000.6931, where the formula as written overflows.
    """
    xp, x = _precise(x)
    largest = _largest(xp, x, axis)
    total = xp.sum(xp.exp(x - largest), axis=axis)
    with _quietly():
        return xp.log(total) + xp.squeeze(largest, axis)


def softmax(x: Array, axis: int = -1) -> Array:
    """exp(x) / Σ exp(x) along `axis`: positive, sums to 1. NaN where every x is -inf."""
    xp, x = _precise(x)
    exponentials = xp.exp(x - _largest(xp, x, axis))
    total = xp.sum(exponentials, axis=axis, keepdims=True)
    with _quietly():
        return exponentials / total


def log_softmax(x: Array, axis: int = -1) -> Array:
    """x - log Σ exp(x) along `axis`: exact where log(softmax(x)) would be log(0)."""
    xp, x = _precise(x)
    shifted = x - _largest(xp, x, axis)
    with _quietly():
        return shifted - xp.log(xp.sum(xp.exp(shifted), axis=axis, keepdims=True))


def cross_entropy(
    logits: Array,
    targets: Array,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Array:
    """-log softmax(logits)[target] in nats: the surprise at each target, as training loss.

    logits: (..., V), floating point. targets: (...), integers in [0, V), or `ignore_index` for
    places that do not count.
    label_smoothing ε: the target distribution is (1-ε) · one-hot + ε/V (Szegedy et al. 2016).
    reduction: "mean" over the places that count (NaN if there are none), "sum", or "none", which
    has the targets' shape and 0 in ignored places.

    Returns fp32 (fp64 for fp64 logits). The gradient with respect to the logits, derived in the
    README, is softmax(logits) - target distribution. For tensors it is written by hand: computed
    from the logits a cache-sized piece at a time, it needs no second tensor of the logits' size
    between the passes. It can be differentiated once.

    Raises ValueError for shapes that do not fit, targets out of range (checked on the CPU; an
    accelerator's own index check stands in elsewhere), or an unknown reduction; TypeError for
    targets that are no integers or are no array of the logits' kind.

    Example: logits [0, 0] and target 1 give ln 2 = 0.6931.
    """
    _check_loss(logits, targets, ignore_index, label_smoothing, reduction)
    compute = _tensor_losses if isinstance(logits, Tensor) else _array_losses
    losses, counted = compute(logits, targets, ignore_index, label_smoothing)
    if reduction == "none":
        return losses
    total = losses.sum()
    with _quietly():
        return total if reduction == "sum" else total / counted.sum()


def entropy(p: Array, axis: int = -1) -> Array:
    """H(p) = -Σ p log p along `axis`, in nats, with 0 log 0 = 0.

    The least average code length for draws from p. Worked value: a fair coin has ln 2 = 0.6931
    nats, 1 bit. Raises ValueError unless p is non-negative and sums to 1 along `axis`.
    """
    xp, p = _distribution(p, "p", axis)
    return -xp.sum(p * xp.log(xp.where(p > 0, p, xp.ones_like(p))), axis=axis)


def kl_divergence(p: Array, q: Array, axis: int = -1) -> Array:
    """KL(p ‖ q) = Σ p log(p/q) along `axis`, in nats: what coding p with q's code costs extra.

    Never negative, 0 only for p = q, and inf where q excludes what p allows. Not symmetric.
    Raises ValueError unless both are distributions along `axis`.
    """
    xp, p = _distribution(p, "p", axis)
    _, q = _distribution(q, "q", axis)
    possible = p > 0
    one = xp.ones_like(p)
    with _quietly():
        ratio = xp.log(xp.where(possible, p, one)) - xp.log(xp.where(possible, q, one))
    return xp.sum(p * ratio, axis=axis)


def mutual_information(joint: Array) -> Array:
    """I(X; Y) of a joint distribution p(x, y), (X, Y): how much one tells about the other.

    = KL(p(x, y) ‖ p(x) p(y)) in nats: 0 for independent variables, H(X) where Y determines X.
    Raises ValueError unless `joint` is two-dimensional, non-negative and sums to 1.
    """
    _, joint = _precise(joint)
    if joint.ndim != 2:
        raise ValueError(f"joint must be (X, Y), got shape {tuple(joint.shape)}")
    independent = joint.sum(1)[:, None] * joint.sum(0)[None, :]  # (X, Y)
    return kl_divergence(joint.reshape(-1), independent.reshape(-1))


def nats_to_bits(nats: Any) -> Any:
    """Nats to bits: divided by ln 2. Floats, arrays and tensors."""
    return nats / math.log(2.0)


def bits_per_byte(total_nats: Any, num_bytes: int) -> Any:
    """A text's whole cross-entropy in bits for each of its UTF-8 bytes.

    Unlike loss per token it does not depend on the tokenizer, and it is what a compressor driven
    by the model would reach: 8 bits are no compression, English text is near 1.
    """
    if num_bytes <= 0:
        raise ValueError(f"num_bytes must be positive, got {num_bytes}")
    return nats_to_bits(total_nats) / num_bytes


def perplexity(mean_nats: Any) -> Any:
    """exp of the mean cross-entropy: the number of equally likely choices that is as hard."""
    return torch.exp(mean_nats) if isinstance(mean_nats, Tensor) else np.exp(mean_nats)


class _RowLosses(torch.autograd.Function):
    """Each row's cross-entropy; its gradient softmax(x) - target distribution by hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, targets: Tensor, keep: Tensor, smoothing: float) -> Tensor:
        """x (N, V), targets (N,) in range, keep (N,) bool -> losses (N,), at least fp32."""
        precise = torch.promote_types(x.dtype, torch.float32)
        picked = x.gather(1, targets[:, None]).squeeze(1).to(precise)  # (N,)
        if smoothing > 0.0:
            picked = (1.0 - smoothing) * picked + smoothing * x.mean(dim=1, dtype=precise)
        normaliser = torch.empty_like(picked)  # log Σ exp of each row, (N,)
        for rows in _chunks(x):
            piece = x[rows].to(precise)  # (n, V)
            largest = piece.amax(dim=1, keepdim=True)  # (n, 1)
            largest = largest.where(largest.isfinite(), 0.0)  # inf - inf would be NaN
            total = torch.sub(piece, largest).exp_().sum(dim=1)  # (n,)
            normaliser[rows] = total.log_().add_(largest.squeeze(1))
        ctx.save_for_backward(x, targets, keep, normaliser)
        ctx.smoothing = smoothing
        return (normaliser - picked).where(keep, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        x, targets, keep, normaliser = ctx.saved_tensors
        upstream = grads[0].where(keep, 0.0)[:, None]  # (N, 1)
        on_target = -(1.0 - ctx.smoothing) * upstream
        gradient = torch.empty_like(x)
        for rows in _chunks(x):
            piece = torch.sub(x[rows], normaliser[rows, None]).exp_()  # softmax, (n, V)
            if ctx.smoothing > 0.0:
                piece.sub_(ctx.smoothing / x.shape[1])
            piece.mul_(upstream[rows])
            piece.scatter_add_(1, targets[rows, None], on_target[rows])
            gradient[rows] = piece
        return gradient, None, None, None


def _tensor_losses(
    logits: Any, targets: Any, ignore_index: int, smoothing: float
) -> tuple[Any, Any]:
    keep = (targets != ignore_index).reshape(-1)  # (N,)
    safe = targets.reshape(-1).long().where(keep, 0)  # (N,)
    x = logits.reshape(-1, logits.shape[-1])  # (N, V)
    losses: Any = _RowLosses.apply(x, safe, keep, smoothing)  # (N,)
    return losses.reshape(targets.shape), keep


def _array_losses(
    logits: Any, targets: Any, ignore_index: int, smoothing: float
) -> tuple[Any, Any]:
    keep = targets != ignore_index
    log_p = log_softmax(logits)
    safe = np.where(keep, targets, 0).astype(np.int64)
    picked = np.take_along_axis(log_p, safe[..., None], axis=-1)[..., 0]
    if smoothing > 0.0:
        picked = (1.0 - smoothing) * picked + smoothing * log_p.mean(axis=-1)
    # The count in the losses' dtype: fp32 divided by an int64 would be fp64.
    return np.where(keep, -picked, np.zeros_like(picked)), keep.astype(picked.dtype)


def _chunks(x: Tensor) -> list[slice]:
    budget = _CHUNK_ON_CPU if x.device.type == "cpu" else _CHUNK_ELSEWHERE
    rows = max(1, budget // max(1, x.shape[1]))
    return [slice(start, start + rows) for start in range(0, x.shape[0], rows)]


def _check_loss(
    logits: Any, targets: Any, ignore_index: int, smoothing: float, reduction: str
) -> None:
    kind: Any = Tensor if isinstance(logits, Tensor) else (np.ndarray, np.generic)
    if not (isinstance(logits, kind) and isinstance(targets, kind)):
        raise TypeError(
            "logits and targets must both be tensors or both be arrays, "
            f"got {type(logits).__name__} and {type(targets).__name__}"
        )
    if logits.ndim < 1 or logits.shape[-1] < 1 or logits.shape[:-1] != targets.shape:
        raise ValueError(
            "logits (..., V) and targets (...) must agree, "
            f"got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    if isinstance(targets, Tensor):
        integral = not (targets.is_floating_point() or targets.dtype == torch.bool)
    else:
        integral = np.issubdtype(targets.dtype, np.integer)
    if not integral:
        raise TypeError(f"targets must be integers, got {targets.dtype}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be mean, sum or none, got {reduction!r}")
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {smoothing}")
    if isinstance(targets, Tensor) and targets.device.type != "cpu":
        return
    V = logits.shape[-1]
    wrong = (targets != ignore_index) & ((targets < 0) | (targets >= V))
    if bool(wrong.any()):
        raise ValueError(
            f"targets must lie in [0, {V}) or be ignore_index={ignore_index}, "
            f"got {int(targets[wrong].reshape(-1)[0])}"
        )


def _precise(x: Any) -> tuple[ModuleType, Any]:
    """The library that x belongs to, and x in at least fp32."""
    if isinstance(x, Tensor):
        if x.is_complex():
            raise TypeError(f"real numbers are needed, got dtype {x.dtype}")
        wanted = x.dtype if x.dtype == torch.float64 else torch.float32
        return torch, x.to(wanted)
    x = np.asarray(x)
    if x.dtype.kind in "cOSUmM":
        raise TypeError(f"real numbers are needed, got dtype {x.dtype}")
    if x.dtype == np.float16:
        return np, x.astype(np.float32)
    return np, x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float64)


def _quietly() -> np.errstate:
    # torch says nothing about log(0) = -inf, which is often the right answer; nor shall NumPy.
    return np.errstate(divide="ignore", invalid="ignore")


def _largest(xp: ModuleType, x: Any, axis: int) -> Any:
    """The maximum along `axis`, kept; 0 where it is infinite, since inf - inf is NaN.

    No gradient flows through it: softmax does not depend on the constant that is subtracted.
    """
    if isinstance(x, Tensor):
        x = x.detach()
    if 0 in x.shape and -x.ndim <= axis < x.ndim and x.shape[axis] == 0:
        raise ValueError(f"there is no number along axis {axis} of shape {tuple(x.shape)}")
    largest = xp.amax(x, axis=axis, keepdims=True)
    return xp.where(xp.isfinite(largest), largest, xp.zeros_like(largest))


def _distribution(p: Any, name: str, axis: int) -> tuple[ModuleType, Any]:
    xp, p = _precise(p)
    # Loose enough for a large fp32 softmax, tight enough for one that was never normalised.
    # Asked so that NaN, of which nothing is true, is refused too.
    if not (bool((p >= 0).all()) and bool((abs(p.sum(axis) - 1.0) <= 1e-4).all())):
        raise ValueError(f"{name} must be non-negative and sum to 1 along axis {axis}")
    return xp, p
