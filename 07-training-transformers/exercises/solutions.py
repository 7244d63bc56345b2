"""Solutions of topic 07's exercises, with the reasons."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from training_recipes import Recipe

# 1 · implement ------------------------------------------------------------------------------------


def adamw_step(
    w: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    t: int,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Decay, moments, correction, step.

    The decay multiplies the weight and stays out of m and v: divided by sqrt(v) it would pull hard
    on weights with small gradients and hardly on those with large ones. The correction divides by
    the sum of the weights that the moving average has given out so far, 1 - beta^t.
    """
    w = w * (1 - lr * weight_decay)
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g * g
    m_hat = m / (1 - betas[0] ** t)
    v_hat = v / (1 - betas[1] ** t)
    return w - lr * m_hat / (v_hat.sqrt() + eps), m, v


# 2 · implement ------------------------------------------------------------------------------------


def warmup_stable_decay(step: int, total: int, warmup: int, decay: int) -> float:
    """The minimum of a rising line, 1, and a falling line, and never below 0.

    Written as a minimum the joints cannot be one step off: the lines meet where they meet.
    """
    rising = step / warmup if warmup else 1.0
    return max(0.0, min(rising, 1.0, (total - step) / decay))


# 3 · implement ------------------------------------------------------------------------------------


def clip(gradients: list[Tensor], max_norm: float) -> float:
    """One norm over everything, one factor for everything: the direction is kept.

    Clipping tensor by tensor would turn the step towards the layers with small gradients.
    """
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    if norm > max_norm:
        for g in gradients:
            g.mul_(max_norm / norm)
    return norm


# 4 · derive ---------------------------------------------------------------------------------------


# (1 - 0.9) / sqrt(1 - 0.99) = 0.1 / 0.1: with these betas the two biases happen to cancel. With
# beta2 = 0.999 it would be 3.2, with 0.95 it is 0.45.
FIRST_STEP: float = (1 - 0.9) / math.sqrt(1 - 0.99)
# Stage 2 cuts gradients (2 bytes) and optimiser (4 + 4 + 4) among the 16; the weights (2) stay.
STATE_GB: float = 13 * (2 + (2 + 12) / 16)
# 524,288 / 2,048 = 256 rows; 32 go through at once on 8 devices.
MICRO_BATCHES: int = 524_288 // (2_048 * 8 * 4)
# Cross-entropy is least where p = q, and is then the entropy of q: 0.9001 at the target and
# 0.0001 at 999 others. Being certain costs more than that, and being right cannot cost less.
SMOOTHED_FLOOR: float = -(0.9001 * math.log(0.9001) + 999 * 0.0001 * math.log(0.0001))
# Var = lr s^2 / (c (2 - lr c)) = 0.1 * 3 / (2 * 1.8) = 1/12; times c / 2 = 1.
NOISE_LOSS: float = 0.1 * 3 / (2 * (2 - 0.1 * 2)) * 2 / 2


# 5 · debug ----------------------------------------------------------------------------------------


def accumulated_loss(
    logits: Sequence[Tensor], targets: Sequence[Tensor], ignore_index: int = -100
) -> Tensor:
    """Add sums, divide once.

    The mean of means gives each micro-batch the same weight, so a token among 10 counts a hundred
    times as much as one among 1,000, and the result changes with how the step is cut.
    """
    total = sum(
        torch.nn.functional.cross_entropy(
            part.flatten(0, 1), target.flatten(), ignore_index=ignore_index, reduction="sum"
        )
        for part, target in zip(logits, targets, strict=True)
    )
    count = sum(int((target != ignore_index).sum()) for target in targets)
    return torch.as_tensor(total) / count


# 6 · debug ----------------------------------------------------------------------------------------


def batch_rows(step: int, *, batch_size: int, windows: int, seed: int) -> list[int]:
    """Number the draws from the very first; epoch and place follow, and the order from the epoch.

    There is no state, so there is nothing to save and nothing to restore wrongly, and any process
    can compute any batch.
    """
    rows = []
    for number in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(number, windows)
        rows.append(int(np.random.default_rng([seed, epoch]).permutation(windows)[place]))
    return rows


# 7 · debug ----------------------------------------------------------------------------------------


def scaled_step(
    gradients: list[Tensor], *, scale: float, max_norm: float
) -> tuple[list[Tensor], bool, float]:
    """Unscale, look, clip: the norm that is compared with max_norm must be the true one.

    An overflow is expected from time to time, since the scale is meant to be as large as it can be.
    """
    true = [g / scale for g in gradients]
    norm = math.sqrt(sum(float(g.square().sum()) for g in true))
    if not math.isfinite(norm):
        return [torch.zeros_like(g) for g in gradients], False, scale / 2
    factor = min(1.0, max_norm / norm) if norm else 1.0
    return [g * factor for g in true], True, scale


# 8 · implement ------------------------------------------------------------------------------------


def noise_scale(
    squares_small: Sequence[float], squares_big: Sequence[float], n_small: int, n_big: int
) -> float:
    """Two equations for two unknowns, with the averages put in before dividing.

    The ratio of two noisy numbers has a biased mean, and no mean at all if the denominator can be
    near 0; sums first.
    """
    small = sum(squares_small) / len(squares_small)
    big = sum(squares_big) / len(squares_big)
    signal = (n_big * big - n_small * small) / (n_big - n_small)
    noise = (small - big) / (1 / n_small - 1 / n_big)
    return noise / signal


# 9 · predict --------------------------------------------------------------------------------------


# (1 + 1) / (1 + 1/4) = 1.6: four times the tokens a step, and not even twice as few steps.
BATCH_SPEEDUP: float = 1.6
# exp(-0.1 * sum of rates) = exp(-0.1 * 6e-3 * 1000 / 2) = exp(-0.3).
DECAY_LEFT: float = math.exp(-0.3)
# Neighbours of w in [2^k, 2^(k+1)) are 2^(k-7) apart and an update below half of that is lost: a
# weight stays if 2^-10 < 2^(k-8), that is for k >= -1 (k = -2 is a tie, which rounds to even and
# moves every other weight): |w| > 0.5, 62 % of them, and about half of the 19 % in [0.25, 0.5).
STUCK_SHARE: float = 0.71


# 10 · implement -----------------------------------------------------------------------------------


def is_spike(history: Sequence[float], loss: float, *, threshold: float = 6.0) -> bool:
    """Median and median distance: half of the history could be spikes and both would stand.

    With mean and standard deviation one spike hides the next: it raises both.
    """
    if not math.isfinite(loss):
        return True
    middle = float(np.median(history))
    spread = 1.4826 * float(np.median(np.abs(np.asarray(history) - middle)))
    return loss > middle + threshold * spread


# 11 · extend --------------------------------------------------------------------------------------


def my_recipe() -> Recipe:
    """The ladder's last rung at half the steps: a matrix optimiser, a late decay, a higher rate for
    the embeddings, which is where so short a run is behind.
    """
    return Recipe(
        steps=100,
        batch_size=16,
        optimizer="muon",
        muon_lr=0.03,
        lr=1.2e-2,
        tie_embeddings=False,
        schedule="trapezoid",
        warmup=0.05,
    )
