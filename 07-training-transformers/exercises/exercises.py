"""Exercises of topic 07, in order of difficulty. Grade yourself:

    pytest 07-training-transformers/exercises

Replace each `raise NotImplementedError` by your answer, and each `...` by a number. What you leave
untouched counts as not attempted. Hints stand at the end of the docstrings, the gentlest first;
read one, try again, then read the next. `solutions.py` explains why, not only what.

Letters: B rows, T positions, N parameters, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    """One step of AdamW, the t-th (the first is 1), as a pure function.

    Args: w weights, g gradient, m and v the moments so far, all of one shape.
    Returns: the new (w, m, v); the arguments stay as they are.

    Hints: (a) Decay first, and decoupled. (b) Both moments are corrected by 1 - beta^t, in copies:
    what you return are the uncorrected ones. (c) eps is added to the root, not under it.
    """
    raise NotImplementedError


# 2 · implement ------------------------------------------------------------------------------------


def warmup_stable_decay(step: int, total: int, warmup: int, decay: int) -> float:
    """The share of the peak rate after `step` steps: linear from 0 over `warmup` steps, level at
    1, then linear to 0 over the last `decay` of `total`; 0 beyond.

    Hints: (a) Three straight lines; at each step the lowest of them is the answer. (b) The falling
    one is (total - step) / decay. (c) Nothing is below 0; and a warm-up of 0 steps is no division.
    """
    raise NotImplementedError


# 3 · implement ------------------------------------------------------------------------------------


def clip(gradients: list[Tensor], max_norm: float) -> float:
    """Scale all gradients, in place and by one factor, so that their joint L2 norm is at most
    `max_norm`. Returns the norm before.

    Hints: (a) The joint norm is the root of the sum of all squares, not the largest norm. (b) One
    factor for all keeps the direction. (c) Short gradients are left alone, a zero one too.
    """
    raise NotImplementedError


# 4 · derive ---------------------------------------------------------------------------------------


# On paper, then here.

FIRST_STEP: float = ...  # type: ignore[assignment]  # Adam without bias correction, betas (0.9, 0.99),
# eps 0: how many learning rates long is the first step of a weight?
STATE_GB: float = ...  # type: ignore[assignment]  # 13e9 parameters, mixed precision, AdamW, ZeRO stage 2
# on 16 devices: GB (1e9 bytes) of weights, gradients and optimiser states on each
MICRO_BATCHES: int = ...  # type: ignore[assignment]  # 524,288 tokens a step, 2,048 a row, 8 devices, 4
# rows at once on each: micro-batches that each device adds up
SMOOTHED_FLOOR: float = ...  # type: ignore[assignment]  # the least mean loss, in nats, under label
# smoothing 0.1 with V = 1000, for a model that is certain of the target and right
NOISE_LOSS: float = ...  # type: ignore[assignment]  # one weight, curvature 2, gradient noise of variance
# 3, constant rate 0.1: the excess loss, (curvature / 2) Var(w), once it has settled


# 5 · debug ----------------------------------------------------------------------------------------


def accumulated_loss(
    logits: Sequence[Tensor], targets: Sequence[Tensor], ignore_index: int = -100
) -> Tensor:
    """The loss of a step from its micro-batches: the mean over all target tokens of the step.

    Args: logits, one (B, T, V) a micro-batch; targets, one (B, T) each, `ignore_index` where there
        is nothing to predict. Returns: a scalar to call `backward` on.

    This is what a popular trainer did; find what is wrong with it, and write it right:

        losses = [
            torch.nn.functional.cross_entropy(l.flatten(0, 1), t.flatten(), ignore_index=-100)
            for l, t in zip(logits, targets)
        ]
        return sum(losses) / len(losses)

    Hints: (a) Two micro-batches, one with 10 targets and one with 1,000: how much does one token of
    each weigh? (b) Sums can be added; means cannot. (c) Divide once, by the number of all targets.
    """
    raise NotImplementedError


# 6 · debug ----------------------------------------------------------------------------------------


def batch_rows(step: int, *, batch_size: int, windows: int, seed: int) -> list[int]:
    """The windows that optimiser step `step` (from 0) reads: each epoch visits every window once in
    a random order of its own, and a batch may reach over the end of an epoch.

    A colleague keeps one generator, shuffles at the start of every epoch, and hands out batches one
    after the other. After a crash he seeds it again and goes on at step 4,000 with the *first*
    batch's windows: some text is seen twice, some never. Write it as a function of its arguments.

    Hints: (a) Row r of step s is the (s * batch_size + r)-th window ever drawn. (b) `divmod` by the
    number of windows gives its epoch and its place there. (c) `np.random.default_rng([seed,
    epoch]).permutation(windows)` is an order that depends on nothing else.
    """
    raise NotImplementedError


# 7 · debug ----------------------------------------------------------------------------------------


def scaled_step(
    gradients: list[Tensor], *, scale: float, max_norm: float
) -> tuple[list[Tensor], bool, float]:
    """From gradients of a loss that was multiplied by `scale`: what the optimiser should get.

    Returns: (the true gradients, clipped to the joint norm max_norm; whether to take the step; the
    next scale). A step with an infinite or undefined number is not taken and halves the scale; a
    good one leaves the scale as it is. The arguments stay as they are.

    The bug to avoid is in the order: clip first and unscale after, and every gradient comes out
    `scale` times too small; the run trains, slowly, and no error is raised.

    Hints: (a) Unscale, look, clip. (b) `torch.isfinite`. (c) Where the step is not taken the
    gradients do not matter; return zeros.
    """
    raise NotImplementedError


# 8 · implement ------------------------------------------------------------------------------------


def noise_scale(
    squares_small: Sequence[float], squares_big: Sequence[float], n_small: int, n_big: int
) -> float:
    """The critical batch from measured squared gradient norms: tr(S) / |G|^2, in tokens.

    Args: squared norms of mean gradients over n_small tokens, and over n_big, from several batches.

    Hints: (a) A mean over n tokens has the expected square |G|^2 + tr(S) / n. (b) Two sizes, two
    equations, two unknowns. (c) Average the squares over batches first; a mean of ratios is biased.
    """
    raise NotImplementedError


# 9 · predict --------------------------------------------------------------------------------------


# Commit to numbers, then run what the tests run. (A guess within the stated tolerance is right.)

BATCH_SPEEDUP: float = ...  # type: ignore[assignment]  # the noise scale is 4,096 tokens and you go from
# 4,096 to 16,384 tokens a step: by what factor does the number of steps fall? (± 0.05)
DECAY_LEFT: float = ...  # type: ignore[assignment]  # a weight that never gets a gradient, weight decay 0.1,
# 1,000 steps, rate linear from 6e-3 to 0: what share of it is left? (± 0.02)
STUCK_SHARE: float = ...  # type: ignore[assignment]  # bf16 weights from N(0, 1), every update 2^-10 in size
# with a random sign: about which share of the weights does not move at all? (± 0.08)


# 10 · implement -----------------------------------------------------------------------------------


def is_spike(history: Sequence[float], loss: float, *, threshold: float = 6.0) -> bool:
    """Whether a loss lies more than `threshold` robust deviations above the median of `history`.

    A robust deviation is 1.4826 times the median distance from the median: for normal noise it is
    the standard deviation, and a few earlier spikes in the history do not widen it. What is not
    finite is a spike. A loss far below the median is none.

    Hints: (a) `statistics.median` twice. (b) Why not mean and standard deviation? Put one value of
    100 into a history of 2's, and see what they allow next time. (c) Only upwards.
    """
    raise NotImplementedError


# 11 · extend --------------------------------------------------------------------------------------


def my_recipe() -> Recipe:
    """A recipe of at most 100 steps of 1,024 tokens, with a model of the base's sizes, that ends
    below 0.68 bits per byte of the held-out stories in the mean of two seeds. The base needs 200
    steps for about 0.70.

    Hints: (a) The ablations and the ladder of the README tell what each knob is worth. (b) At a
    hundred steps the schedule's shape and the optimiser matter most. (c) `lr_range_test` finds a
    rate in seconds.
    """
    raise NotImplementedError
