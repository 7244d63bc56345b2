"""The numbers that topic 07's README works out on the page, computed again."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gpt import GPTConfig
from numerics import cross_entropy
from optimizers import AdamW, newton_schulz
from training_memory import block_activation_numbers, training_state_bytes


def test_two_steps_of_adamw() -> None:
    w = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = AdamW([w], lr=0.1, betas=(0.9, 0.95), eps=0.0, weight_decay=0.1)
    m, v, seen = 0.0, 0.0, []
    for t, g in enumerate((0.5, -0.1), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        decayed = 0.99 * w.item()
        w.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.95**t)
        seen.append([decayed, m, v, m_hat, v_hat, m_hat / math.sqrt(v_hat), w.item()])
    assert seen[0] == pytest.approx([0.99, 0.05, 0.0125, 0.5, 0.25, 1.0, 0.89], abs=5e-5)
    expected = [0.8811, 0.035, 0.012375, 0.1842, 0.1269, 0.5171, 0.8294]
    assert seen[1] == pytest.approx(expected, abs=5e-5)


def test_one_round_of_newton_and_schulz() -> None:
    out = newton_schulz(torch.diag(torch.tensor([3.0, 4.0])), steps=1, dtype=torch.float32)
    assert out.diag().tolist() == pytest.approx([1.193, 0.976], abs=5e-4)


def test_the_first_step_without_bias_correction() -> None:
    assert (1 - 0.9) / math.sqrt(1 - 0.999) == pytest.approx(3.2, abs=0.05)


def test_adams_step_in_pure_noise() -> None:
    """sqrt((1 - b) / (1 + b)) = 0.23: the deviation of a moving average of unit noise."""
    assert math.sqrt(0.1 / 1.9) == pytest.approx(0.23, abs=0.005)
    noise = torch.randn(20_000, 60, generator=torch.Generator().manual_seed(0))
    weights = 0.1 * 0.9 ** torch.arange(59, -1, -1)
    assert (noise @ weights).std().item() == pytest.approx(0.23, abs=0.005)


def test_the_gap_that_label_smoothing_asks_for() -> None:
    """At a gap of ln 9217 = 9.13 the gradient of the smoothed loss is 0."""
    assert math.log((0.9 + 0.1 / 1024) / (0.1 / 1024)) == pytest.approx(9.13, abs=5e-3)
    logits = torch.zeros(1, 1024, dtype=torch.float64)
    logits[0, 7] = math.log(9217)
    logits.requires_grad_()
    cross_entropy(logits, torch.tensor([7]), label_smoothing=0.1).backward()
    assert logits.grad is not None
    assert logits.grad.abs().max().item() < 1e-12


def test_the_stationary_variance() -> None:
    """Var = rate · noise / (curvature (2 - rate · curvature)) solves its own equation."""
    rate, curvature, noise = 0.3, 1.7, 2.0
    variance = rate * noise / (curvature * (2 - rate * curvature))
    again = (1 - rate * curvature) ** 2 * variance + rate**2 * noise
    assert again == pytest.approx(variance, rel=1e-12)


def test_rank_one_estimate_keeps_row_and_column_sums() -> None:
    v = torch.rand(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    estimate = torch.outer(v.sum(1), v.sum(0)) / v.sum()
    torch.testing.assert_close(estimate.sum(0), v.sum(0))
    torch.testing.assert_close(estimate.sum(1), v.sum(1))


def test_memory_on_the_page() -> None:
    assert training_state_bytes(7_000_000_000).total == 112e9
    config = GPTConfig(vocab_size=2, d_model=128, num_heads=4, num_layers=1, max_seq_len=2)
    assert block_activation_numbers(config) == 16 * 128 + 4 + 4
    # Self-check 5: states of 1B parameters; activations of 24 layers, 8,192 tokens.
    assert training_state_bytes(1_000_000_000, precision="fp32").total == 16e9
    block = (16 * 2048 + 16 + 4) * 4 * 8192
    assert 24 * block / 1e9 == pytest.approx(25.8, abs=0.05)
    assert block / 1e9 == pytest.approx(1.1, abs=0.05)
    assert pytest.approx(1.6, abs=0.05) == 24 * 2048 * 4 * 8192 / 1e9


def test_bf16_loses_small_updates() -> None:
    """Below 2^-9 of the weight an update is rounded away; a little above it is not."""
    one = torch.ones((), dtype=torch.bfloat16)
    assert (one.float() - 2.0**-9 * 0.99).bfloat16() == one
    assert (one.float() - 2.0**-9 * 1.01).bfloat16() != one
    assert torch.finfo(torch.bfloat16).eps == 2.0**-7
    assert torch.tensor(2.0**-24).half() > 0
    assert torch.tensor(2.0**-26).half() == 0


def test_the_decays_horizon() -> None:
    assert pytest.approx(1700, rel=0.02) == 1 / (0.006 * 0.1)


def test_self_check_4() -> None:
    steps = (1 + 100 / 500) / (1 + 100 / 1000)
    assert steps == pytest.approx(1.09, abs=0.005)
    assert 1 - steps / 2 == pytest.approx(0.45, abs=0.01)
