"""The numbers that topic 08's README works out on the page, computed again."""

from __future__ import annotations

import math

import pytest
import torch

from bert_config import bert_preset
from gpt import GPTConfig
from span_denoising import span_corruption


def test_the_share_of_visible_tokens_that_are_wrong():
    assert pytest.approx(0.017, abs=5e-4) == 0.015 / (0.85 + 0.015 + 0.015)


def test_the_mean_of_spanberts_lengths():
    q, n = 0.8, 10
    direct = sum(i * 0.2 * q ** (i - 1) for i in range(1, n + 1)) / (1 - q**n)
    assert q**n == pytest.approx(0.1074, abs=5e-5)
    assert 1 / 0.2 - n * q**n / (1 - q**n) == pytest.approx(direct)
    assert direct == pytest.approx(3.80, abs=5e-3)


def test_the_best_discriminator():
    """By simulation: the share of replaced among the places that show each token."""
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    g = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    rho, count = 0.4, 400_000
    generator = torch.Generator().manual_seed(0)
    true = torch.multinomial(p, count, replacement=True, generator=generator)
    guess = torch.multinomial(g, count, replacement=True, generator=generator)
    chosen = torch.rand(count, generator=generator) < rho
    shown = torch.where(chosen, guess, true)
    replaced = shown != true
    for v in range(3):
        formula = rho * g[v] * (1 - p[v]) / (rho * g[v] + (1 - rho) * p[v])
        found = replaced[shown == v].double().mean()
        assert found.item() == pytest.approx(formula.item(), abs=0.01)
    # With g = p it is rho (1 - p).
    same = rho * p * (1 - p) / (rho * p + (1 - rho) * p)
    torch.testing.assert_close(same, rho * (1 - p))


def test_t5s_lengths():
    example = span_corruption(
        list(range(568)), sentinels=range(1000, 1100), generator=torch.Generator().manual_seed(0)
    )
    assert len(example.inputs) + 1 == 568 - 85 + 28 + 1 == 512
    assert len(example.targets) + 1 == 85 + 28 + 1 == 114


def test_alberts_table():
    V, E, D = 30_000, 128, 4096
    assert pytest.approx(4.4e6, rel=0.01) == V * E + E * D
    assert pytest.approx(123e6, rel=0.01) == V * D


def test_rollout_by_hand():
    first = torch.tensor([[0.2, 0.8], [0.4, 0.6]])
    second = torch.tensor([[0.6, 0.4], [0.0, 1.0]])
    half = [(a + torch.eye(2)) / 2 for a in (first, second)]
    torch.testing.assert_close(half[1], torch.tensor([[0.8, 0.2], [0.0, 1.0]]))
    torch.testing.assert_close(half[1] @ half[0], torch.tensor([[0.52, 0.48], [0.2, 0.8]]))


def test_linear_attention_by_hand():
    keys, values = torch.tensor([0.0, 1.0]), torch.tensor([10.0, 40.0])
    phi = torch.nn.functional.elu(keys) + 1
    assert phi.tolist() == [1.0, 2.0]
    assert (phi @ values / phi.sum()).item() == pytest.approx(30.0)
    for q, answer in ((3.0, 38.6), (-3.0, 11.4)):
        weights = (q * keys).softmax(0)
        assert (weights @ values).item() == pytest.approx(answer, abs=0.05)


def test_performers_variance():
    """At a size where it can be simulated: |q + k|² = 1."""
    q = torch.tensor([0.3, 0.4], dtype=torch.float64)
    omega = torch.randn(
        2_000_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    draws = torch.exp(2 * (omega @ q) - q.square().sum())
    assert draws.mean().item() == pytest.approx(math.exp(q.square().sum()), rel=0.01)
    ratio = draws.square().mean() / draws.mean() ** 2
    assert ratio.item() == pytest.approx(math.exp((2 * q).square().sum()), rel=0.03)
    assert math.exp(16) - 1 == pytest.approx(9e6, rel=0.02)


def test_clip_and_the_patches():
    assert math.log(32_768) == pytest.approx(10.4, abs=0.05)
    assert (224 // 16) ** 2 == 14**2 == 196


def test_table_of_shapes():
    B, T, D, H, V = 32, 128, 64, 4, 500
    assert B * T * D * 4 == 2**20
    assert B * H * T * T * 4 == 8 * 2**20
    assert pytest.approx(7.8, abs=0.05) == B * T * V * 4 / 2**20
    assert pytest.approx(1.2, abs=0.05) == 0.15 * B * T * V * 4 / 2**20
    assert pytest.approx(0.6, abs=0.05) == 197 * 768 * 4 / 2**20
    assert pytest.approx(1.9, abs=0.05) == 32 * 512 * 30_522 * 4 / 2**30


def test_flops_of_the_objectives():
    config = bert_preset("bert-base")
    D, L, V, T = 768, 12, 30_522, 128
    layers = L * 12 * D * D
    masked = 6 * (layers + 0.15 * (D * D + V * D)) + 12 * L * D * T
    assert config.flops_per_token(T, predicted=0.15) == pytest.approx(masked, rel=1e-6)
    decoder = GPTConfig(vocab_size=V, d_model=D, num_heads=12, num_layers=L, max_seq_len=T)
    assert decoder.flops_per_token(T) == 6 * (layers + V * D) + 12 * L * D * T


def test_a_conversation_of_twenty_turns():
    assert sum(range(1, 21)) / 20 == 10.5
