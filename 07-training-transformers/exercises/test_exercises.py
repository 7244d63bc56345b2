"""Grades `exercises.py`, or with `--solutions` `solutions.py`."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training_memory import training_state_bytes
from training_recipes import prepare_lesson_data, train_recipe


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_1_adamw(answers):
    """30 steps follow torch.optim.AdamW."""
    p = torch.nn.Parameter(random(5, 3))
    reference = torch.optim.AdamW([p], lr=0.02, betas=(0.8, 0.97), eps=1e-3, weight_decay=0.3)
    w, m, v = p.detach().clone(), torch.zeros(5, 3), torch.zeros(5, 3)
    for t in range(1, 31):
        g = random(5, 3, seed=t) * 10.0 ** (t % 3 - 1)
        p.grad = g.clone()
        reference.step()
        w, m, v = answers.adamw_step(
            w, g, m, v, t, lr=0.02, betas=(0.8, 0.97), eps=1e-3, weight_decay=0.3
        )
    torch.testing.assert_close(w, p.detach(), rtol=1e-5, atol=1e-6)


def test_1_adamw_is_pure(answers):
    """the arguments are left as they were."""
    w, m, v = random(4), torch.zeros(4), torch.zeros(4)
    before = [x.clone() for x in (w, m, v)]
    answers.adamw_step(w, random(4, seed=1), m, v, 1, lr=0.1)
    assert all(torch.equal(a, b) for a, b in zip((w, m, v), before, strict=True))


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.0), (5, 0.5), (10, 1.0), (50, 1.0), (80, 1.0), (90, 0.5), (100, 0.0), (130, 0.0)],
)
def test_2_schedule(answers, step, expected):
    """up over the warm-up, level, down over the decay, 0 beyond."""
    assert answers.warmup_stable_decay(step, 100, 10, 20) == pytest.approx(expected)


def test_2_schedule_without_warmup(answers):
    """a warm-up of 0 steps begins at the peak."""
    assert answers.warmup_stable_decay(0, 100, 0, 20) == 1.0


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_3_clip(answers, max_norm):
    """the joint norm is bounded, the direction kept, short gradients untouched."""
    ours, theirs = ([random(3, 4), random(7, seed=1) * 5, torch.zeros(2)] for _ in range(2))
    parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in theirs]
    for p, g in zip(parameters, theirs, strict=True):
        p.grad = g
    expected = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    assert answers.clip(ours, max_norm) == pytest.approx(expected.item(), rel=1e-5)
    for g, p in zip(ours, parameters, strict=True):
        torch.testing.assert_close(g, p.grad, rtol=1e-4, atol=1e-7)


def test_4_first_step(answers):
    """m / sqrt(v) after one gradient, uncorrected."""
    assert pytest.approx(0.1 / math.sqrt(0.01), rel=1e-3) == answers.FIRST_STEP


def test_4_state_gb(answers):
    """two bytes stay whole, fourteen are shared."""
    expected = training_state_bytes(13_000_000_000, zero_stage=2, world_size=16).total / 1e9
    assert pytest.approx(expected, rel=1e-3) == answers.STATE_GB


def test_4_micro_batches(answers):
    """tokens a step over tokens at once."""
    assert answers.MICRO_BATCHES == 8


def test_4_smoothed_floor(answers):
    """the least cross-entropy against a distribution is that distribution's entropy."""
    q = torch.full((1000,), 1e-4, dtype=torch.float64)
    q[0] += 0.9
    assert pytest.approx(-(q * q.log()).sum().item(), rel=1e-3) == answers.SMOOTHED_FLOOR


def test_4_noise_loss(answers):
    """simulated: 4,000 weights after 400 steps."""
    rng = np.random.default_rng(0)
    w = np.zeros(4000)
    for _ in range(400):
        w -= 0.1 * (2 * w + math.sqrt(3) * rng.standard_normal(4000))
    assert pytest.approx(np.mean(w**2), rel=0.1) == answers.NOISE_LOSS


def _micro_batches():
    logits = [random(2, 5, 11, seed=n).requires_grad_() for n in range(3)]
    targets = [
        torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(n)) for n in (3, 4, 5)
    ]
    targets[0][:, 1:] = -100
    targets[1][0] = -100
    return logits, targets


def test_5_accumulated_loss(answers):
    """the loss and its gradients are those of one big batch."""
    logits, targets = _micro_batches()
    loss = answers.accumulated_loss(logits, targets)
    whole = torch.cat([part.detach() for part in logits]).requires_grad_()
    expected = F.cross_entropy(whole.flatten(0, 1), torch.cat(targets).flatten(), ignore_index=-100)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(torch.cat([part.grad for part in logits]), whole.grad)


def test_6_batch_rows_visit_everything_once(answers):
    """each epoch is a permutation, and epochs differ."""
    rows = [r for s in range(10) for r in answers.batch_rows(s, batch_size=3, windows=10, seed=1)]
    epochs = [rows[:10], rows[10:20], rows[20:30]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_6_batch_rows_after_a_crash(answers):
    """a step's rows do not depend on which steps were asked for before."""
    arguments = {"batch_size": 4, "windows": 9, "seed": 7}
    late = answers.batch_rows(5, **arguments)
    for step in range(6):
        again = answers.batch_rows(step, **arguments)
    assert again == late
    assert answers.batch_rows(5, **{**arguments, "seed": 8}) != late


def test_7_scaled_step(answers):
    """the true gradients come out, clipped by their true norm."""
    gradients = [random(3) * 65536, random(2, 2, seed=1) * 65536]
    before = [g.clone() for g in gradients]
    out, take, scale = answers.scaled_step(gradients, scale=65536.0, max_norm=0.5)
    assert take
    assert scale == 65536.0
    assert math.sqrt(sum(float(g.square().sum()) for g in out)) == pytest.approx(0.5, rel=1e-4)
    torch.testing.assert_close(out[0] / out[0].norm(), before[0] / before[0].norm())
    free, _, _ = answers.scaled_step(gradients, scale=65536.0, max_norm=1e9)
    torch.testing.assert_close(free[1], before[1] / 65536)
    assert all(torch.equal(a, b) for a, b in zip(gradients, before, strict=True))


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_7_overflow(answers, bad):
    """an overflow skips the step and halves the scale."""
    _, take, scale = answers.scaled_step([torch.tensor([1.0, bad])], scale=1024.0, max_norm=1.0)
    assert not take
    assert scale == 512.0


def test_8_noise_scale(answers):
    """found again from gradients whose noise scale is known: |G|^2 = 4, tr(S) = 800."""
    rng = np.random.default_rng(0)
    squares = {n: [] for n in (8, 256)}
    for n, found in squares.items():
        for _ in range(400):
            mean = 0.2 + rng.standard_normal(100) * math.sqrt(8 / n)
            found.append(float((mean**2).sum()))
    assert answers.noise_scale(squares[8], squares[256], 8, 256) == pytest.approx(200, rel=0.15)


def test_9_batch_speedup(answers):
    """S is proportional to 1 + B_noise / B."""
    assert abs(answers.BATCH_SPEEDUP - (1 + 1) / (1 + 4096 / 16384)) <= 0.05


def test_9_decay_left(answers):
    """run: a thousand steps of decay alone."""
    w = 1.0
    for step in range(1000):
        w *= 1 - 0.1 * 6e-3 * (1 - step / 1000)
    assert abs(answers.DECAY_LEFT - w) <= 0.02


def test_9_stuck_share(answers):
    """run: 100,000 weights."""
    weights = random(100_000).bfloat16()
    updates = random(100_000, seed=1).sign() * 2.0**-10
    stuck = ((weights.float() + updates).bfloat16() == weights).float().mean().item()
    assert abs(answers.STUCK_SHARE - stuck) <= 0.08


def test_10_spikes(answers):
    """far above the median is a spike, near it or below is none, however wild the past."""
    history = list(2.0 + 0.1 * random(40).numpy())
    assert answers.is_spike(history, 3.5)
    assert not answers.is_spike(history, 2.2)
    assert not answers.is_spike(history, 0.1)
    assert answers.is_spike(history, math.nan)
    assert answers.is_spike(history, math.inf)
    assert answers.is_spike([*history, 100.0, 100.0, 100.0], 3.5)


def test_11_recipe(answers, tmp_path):
    """at most 100 steps of 1,024 tokens on the base's model, below 0.68 bits per byte."""
    recipe = answers.my_recipe()
    assert recipe.steps <= 100
    assert recipe.tokens_per_step <= 1024
    assert (recipe.d_model, recipe.num_layers) == (64, 2)
    data = prepare_lesson_data(tmp_path)
    bits = [train_recipe(recipe, data, seed=seed).bits_per_byte for seed in (0, 1)]
    assert statistics.fmean(bits) < 0.68, bits
