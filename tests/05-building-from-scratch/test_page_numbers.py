"""The numbers that topic 05's README works out on the page, computed again."""

from __future__ import annotations

import math

import pytest
import torch

from gpt import GPTConfig, gpt_preset
from kv_cache import KVCache
from numerics import cross_entropy
from sampling import SamplingConfig, warp_logits

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)


def probabilities(**options) -> list[float]:
    return warp_logits(LOGITS, SamplingConfig(**options)).softmax(-1)[0].tolist()


def test_the_distribution_worked_by_hand():
    assert LOGITS.exp().sum().item() == pytest.approx(11.475, abs=5e-4)
    assert probabilities() == pytest.approx([0.644, 0.237, 0.087, 0.032], abs=5e-4)


def test_the_loss_and_its_gradient():
    logits = LOGITS.clone().requires_grad_()
    loss = cross_entropy(logits, torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(1.440, abs=5e-4)
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([0.644, -0.763, 0.087, 0.032], abs=5e-4)
    assert logits.grad.sum().item() == pytest.approx(0.0, abs=1e-12)


def test_temperature_and_the_two_cuts():
    assert probabilities(temperature=0.5) == pytest.approx([0.865, 0.117, 0.016, 0.002], abs=5e-4)
    assert probabilities(top_p=0.8) == pytest.approx([0.731, 0.269, 0, 0], abs=5e-4)
    assert probabilities(min_p=0.2) == pytest.approx([0.731, 0.269, 0, 0], abs=5e-4)
    flat = probabilities(temperature=2.0)
    assert flat == pytest.approx([0.455, 0.276, 0.167, 0.102], abs=5e-4)
    assert [p > 0 for p in probabilities(temperature=2.0, top_p=0.8)] == [True, True, True, False]
    assert all(p > 0 for p in probabilities(temperature=2.0, min_p=0.2))


def test_parameters_of_gpt2_small_by_the_formula():
    V, T, D, L = 50_257, 1024, 768, 12
    assert V * D == 38_597_376
    assert T * D == 786_432
    assert 12 * D**2 + 13 * D == 7_087_872
    total = V * D + T * D + L * (12 * D**2 + 13 * D) + 2 * D
    assert total == 124_439_808 == gpt_preset("gpt2").num_parameters
    assert gpt_preset("gpt2", tie_embeddings=False).num_parameters == 163_037_184


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_the_formula_holds_for_all_published_sizes(name):
    config: GPTConfig = gpt_preset(name)
    V, T, D, L = config.vocab_size, config.max_seq_len, config.d_model, config.num_layers
    assert config.num_parameters == V * D + T * D + L * (12 * D**2 + 13 * D) + 2 * D


def test_bytes_of_the_cache():
    cache = KVCache(12, 1, 12, 1024, 64)
    assert cache.nbytes == 75_497_472
    assert KVCache(12, 1, 12, 1024, 64, dtype=torch.float16).nbytes == 37_748_736


def test_table_of_shapes():
    T, D, V = 1024, 768, 50_257
    assert pytest.approx(196, abs=0.5) == T * V * 4 / 2**20
    assert 12 * T * T * 4 / 2**20 == 48
    assert pytest.approx(475, abs=0.5) == 124_439_808 * 4 / 2**20
    assert T * D * 4 == 3 * 2**20


def test_the_excess_of_gpt2s_initialisation():
    assert pytest.approx(0.026, abs=5e-4) == 128 * 0.02**2 / 2
    assert math.log(50_257) == pytest.approx(10.82, abs=5e-3)


def test_the_largest_of_many_independent_logits():
    assert math.sqrt(128) * math.sqrt(2 * math.log(4096)) == pytest.approx(46, abs=0.5)


def test_the_score_of_a_head_that_cannot_tell_copies_apart():
    """24 tokens drawn from 32: the token at place i has a copies before it, b after it."""

    def chance(places: int, copies: int) -> float:
        return math.comb(places, copies) * (1 / 32) ** copies * (31 / 32) ** (places - copies)

    score = sum(
        chance(i, a) * chance(23 - i, b) / (1 + 2 * a + b)
        for i in range(24)
        for a in range(i + 1)
        for b in range(24 - i)
    )
    assert score / 24 == pytest.approx(0.67, abs=0.005)
