"""Grades `exercises.py`, or with `--solutions` `solutions.py`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from attention import scaled_dot_product_attention
from gpt import GPT, GPTConfig, gpt_preset
from text_generation import generate


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model() -> GPT:
    config = GPTConfig(vocab_size=37, d_model=24, num_heads=3, num_layers=2, max_seq_len=32)
    model = GPT(config, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in model.parameters():  # large weights: no two tokens are nearly tied
            parameter.mul_(8.0)
    return model.eval()


def test_1_causal_mean(answers):
    """position t is the mean of positions 0 to t, for every batch row and width."""
    x = random(3, 7, 5)
    expected = torch.stack([x[:, : t + 1].mean(dim=1) for t in range(7)], dim=1)
    torch.testing.assert_close(answers.causal_mean(x), expected)


def test_1_causal_mean_sees_no_future(answers):
    """changing the last position changes nothing before it."""
    x = random(1, 6, 4)
    changed = x.clone()
    changed[:, -1] += 10.0
    torch.testing.assert_close(answers.causal_mean(x)[:, :-1], answers.causal_mean(changed)[:, :-1])


@pytest.mark.parametrize(
    ("p", "kept"), [(0.1, [1]), (0.5, [1]), (0.500001, [1, 3]), (0.8, [1, 3]), (1.0, [0, 1, 2, 3])]
)
def test_2_nucleus(answers, p, kept):
    """the smallest set of the likeliest tokens that reaches p is kept and sums to one."""
    probabilities = torch.tensor([0.15, 0.5, 0.05, 0.3], dtype=torch.float64)
    result = answers.nucleus(probabilities, p)
    expected = torch.zeros(4, dtype=torch.float64)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()
    torch.testing.assert_close(result, expected)


def test_3_parameters(answers):
    """the count is that of the published model."""
    assert gpt_preset("gpt2-medium").num_parameters == answers.PARAMETERS


def test_3_cache_bytes(answers):
    """keys and values of all layers and positions, two bytes each."""
    assert answers.CACHE_BYTES == 2 * 24 * 1024 * 1024 * 2


def test_3_flops(answers):
    """six for each weight of the blocks' matrices and of the output layer."""
    config = gpt_preset("gpt2-medium")
    assert config.flops_per_token(0) == answers.FLOPS


def test_4_decode_step(answers):
    """step by step, outputs and caches equal full causal attention's."""
    q, k, v = random(2, 3, 6, 5, seed=1), random(2, 3, 6, 5, seed=2), random(2, 3, 6, 5, seed=3)
    expected = scaled_dot_product_attention(q, k, v, causal=True)
    keys, values = k[:, :, :0], v[:, :, :0]
    for t in range(6):
        one = slice(t, t + 1)
        out, keys, values = answers.decode_step(
            q[:, :, one], k[:, :, one], v[:, :, one], keys, values
        )
        torch.testing.assert_close(out, expected[:, :, one])
    torch.testing.assert_close(keys, k)
    torch.testing.assert_close(values, v)


def test_5_next_token_batch(answers):
    """each target is the token after its id, and ids are the window that was asked for."""
    tokens = torch.arange(100, 140)
    ids, targets = answers.next_token_batch(tokens, torch.tensor([0, 7, 31]), 8)
    assert ids.shape == targets.shape == (3, 8)
    assert torch.equal(ids[:, 0], torch.tensor([100, 107, 131]))
    assert torch.equal(targets, ids + 1)


def test_6_greedy_with_cache(answers, model):
    """the tokens are those of decoding without a cache."""
    ids = torch.tensor([[5, 20, 3, 3, 17]])
    expected = generate(model, ids, max_new_tokens=12, use_cache=False)
    assert answers.greedy_with_cache(model, ids, 12)[0, 5:].tolist() == expected[0]


def _loss_of_noise(std: float, vocabulary: int) -> float:
    logits = std * random(4000, vocabulary, seed=4)
    return F.cross_entropy(logits, torch.zeros(4000, dtype=torch.long)).item()


def test_7_loss_at_half(answers):
    """the prediction is within 0.02 nats of what is measured."""
    assert abs(answers.LOSS_AT_STD_HALF - _loss_of_noise(0.5, 1_000)) < 0.03


def test_7_loss_at_one(answers):
    """the prediction is within 0.02 nats of what is measured."""
    assert abs(answers.LOSS_AT_STD_ONE - (math.log(50_000) + 0.5)) < 0.02


def test_7_embedding_std(answers):
    """logits of vectors of mean square one then have the variance that costs half a nat."""
    hidden = F.rms_norm(random(200, 768, seed=5), (768,))
    logits = hidden @ (answers.EMBEDDING_STD * random(768, 4000, seed=6))
    assert abs(logits.var().item() / 2 - 0.5) < 0.01


def test_8_split_fused_attention(answers):
    """the three layers compute what the fused one does, and own their memory."""
    weight, bias, x = random(6, 18, seed=7), random(18, seed=8), random(2, 6, seed=9)
    parts = answers.split_fused_attention(weight, bias)
    expected = (x @ weight + bias).chunk(3, dim=1)
    for name, columns in zip(("q_proj", "k_proj", "v_proj"), expected, strict=True):
        layer = parts[f"{name}.weight"]
        assert layer.shape == (6, 6)
        assert layer.is_contiguous()
        assert layer.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr()
        torch.testing.assert_close(F.linear(x, layer, parts[f"{name}.bias"]), columns)


def test_9_tied_bigram_gradient(answers):
    """the formula agrees with automatic differentiation, repeated tokens included."""
    generator = np.random.default_rng(0)
    embedding = generator.normal(size=(9, 4))
    ids, targets = generator.integers(6, size=20), generator.integers(9, size=20)
    table = torch.tensor(embedding, requires_grad=True)
    F.cross_entropy(table[ids] @ table.T, torch.tensor(targets)).backward()
    np.testing.assert_allclose(
        answers.tied_bigram_gradient(embedding.copy(), ids, targets), table.grad, atol=1e-12
    )


@pytest.mark.parametrize("mass", [0.2, 0.6, 0.9])
def test_10_typical(answers, mass):
    """the tokens kept are those that transformers' TypicalLogitsWarper keeps."""
    from transformers import TypicalLogitsWarper

    logits = 3.0 * random(5, 50, seed=10)
    expected = TypicalLogitsWarper(mass=mass)(torch.zeros(5, 1, dtype=torch.long), logits)
    torch.testing.assert_close(answers.typical(logits, mass), expected)


def test_11_continue_all(answers, model, monkeypatch):
    """every prompt gets the tokens that it gets alone, in at most num_new calls of the model."""
    prompts = [[3], [7, 7, 1, 30], [12, 5], [9] * 9]
    alone = [generate(model, [prompt], max_new_tokens=8)[0] for prompt in prompts]
    calls = []
    forward = GPT.forward
    monkeypatch.setattr(
        GPT, "forward", lambda *args, **options: calls.append(1) or forward(*args, **options)
    )
    assert answers.continue_all(model, prompts, 8) == alone
    assert len(calls) <= 8
