"""Grades `exercises.py`, or with `--solutions` `solutions.py`."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attention import MultiHeadAttention
from bleu import corpus_bleu
from positional_encoding import alibi_bias, relative_position_bucket, sinusoidal_encoding
from sublayers import GatedFeedForward, LayerNorm, RMSNorm
from transformer import TransformerBlock


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_1_normalise(answers, eps):
    """it is torch's layer_norm, a large eps included."""
    x, weight, bias = random(2, 3, 7), random(7, seed=1), random(7, seed=2)
    expected = F.layer_norm(x, (7,), weight, bias, eps)
    torch.testing.assert_close(answers.normalise(x, weight, bias, eps), expected)


def test_2_layer_norm_gradient(answers):
    """the formula agrees with automatic differentiation for all three gradients."""
    x, weight, g = random(5, 6), random(6, seed=1), random(5, 6, seed=2)
    bias = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    x.requires_grad_(True)
    weight.requires_grad_(True)
    F.layer_norm(x, (6,), weight, bias, 1e-3).backward(g)
    found = answers.layer_norm_gradient(
        x.detach().numpy(), weight.detach().numpy(), g.numpy(), 1e-3
    )
    for ours, parameter in zip(found, (x, weight, bias), strict=True):
        assert parameter.grad is not None
        np.testing.assert_allclose(ours, parameter.grad.numpy(), atol=1e-12)


def test_3_block_parameters(answers):
    """the count is that of the block when it is built."""
    with torch.device("meta"):
        block = TransformerBlock(
            attention=MultiHeadAttention(4096, 32, num_kv_heads=8, bias=False),
            feed_forward=GatedFeedForward(4096, 14_336),
            norm=lambda: RMSNorm(4096),
        )
    assert sum(p.numel() for p in block.parameters()) == answers.BLOCK_PARAMETERS


def test_3_crossover(answers):
    """at that length scores cost as much as matrices, and one position before it less."""
    weights = 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14_336
    T = answers.CROSSOVER
    assert 2 * T * weights <= 4 * T * T * 4096
    assert 2 * weights > 4 * (T - 1) * 4096


def test_4_rotate_depends_on_distance(answers):
    """lengths are kept, position 0 stays, and scores depend on the distance alone."""
    x = random(2, 3, 5, 8)
    turned = answers.rotate(x, torch.arange(5))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(turned[:, :, 0], x[:, :, 0])
    q, k = random(1, 1, 5, 8, seed=3), random(1, 1, 5, 8, seed=4)
    scores = [
        answers.rotate(q, torch.arange(5) + s) @ answers.rotate(k, torch.arange(5) + s).mT
        for s in (0, 100)
    ]
    torch.testing.assert_close(scores[0], scores[1])


def test_4_rotate_speeds(answers):
    """pair i is a complex number turned by position times base to the -2i/K."""
    x = random(1, 1, 3, 6)
    positions = torch.tensor([0, 7, 40])
    speeds = 50.0 ** (-torch.arange(0, 6, 2, dtype=torch.float64) / 6)
    angles = positions[:, None] * speeds
    z = torch.view_as_complex(x.view(1, 1, 3, 3, 2))
    expected = torch.view_as_real(z * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    torch.testing.assert_close(answers.rotate(x, positions, base=50.0), expected)


@pytest.mark.parametrize("n", [1, 5, -3])
def test_5_shift_matrix(answers, n):
    """one matrix moves every position by n."""
    table = sinusoidal_encoding(30, 10, dtype=torch.float64).numpy()
    for t in (3, 11, 24):
        np.testing.assert_allclose(answers.shift_matrix(n, 10) @ table[t], table[t + n], atol=1e-12)


def test_6_post_norm_block(answers):
    """it is the post-norm block of this topic, each norm where it belongs."""
    block = TransformerBlock(
        attention=MultiHeadAttention(8, 2),
        feed_forward=nn.Sequential(nn.Linear(8, 8), nn.Tanh()),
        norm=lambda: LayerNorm(8),
        pre_norm=False,
    ).double()
    with torch.no_grad():
        block.attention_norm.weight.mul_(2.0)  # type: ignore[operator, union-attr]
        block.feed_forward_norm.bias.add_(1.0)  # type: ignore[operator, union-attr]
    x = random(2, 4, 8)
    norms = [block.attention_norm, block.feed_forward_norm]
    found = answers.post_norm_block(x, block.attention, block.feed_forward, norms)
    torch.testing.assert_close(found, block(x))


@pytest.mark.parametrize("n", [1, 2])
def test_7_bleu_precision(answers, n):
    """a run is credited as often as the reference has it, and no more."""
    hypotheses = [s.split() for s in ("the the the", "a b a b a b", "x y z")]
    references = [s.split() for s in ("the cat", "a b c a b", "x y w")]
    expected = corpus_bleu(hypotheses, references).precisions[n - 1] / 100
    assert answers.bleu_precision(hypotheses, references, n) == pytest.approx(expected)


def test_8_short_bleu(answers):
    """a translation that is right and one third too short."""
    score = corpus_bleu(["a b c d e f"], ["a b c d e f g h i"]).score
    assert score == pytest.approx(answers.SHORT_BLEU, abs=0.1)


def test_8_bucket(answers):
    """T5's function at distance 40."""
    bucket = relative_position_bucket(torch.tensor(-40), bidirectional=False)
    assert int(bucket) == answers.BUCKET_OF_40


def test_8_alibi(answers):
    """the ratio of two weights of the first head."""
    bias = alibi_bias(8, 20)[0, 0, -1]
    assert math.exp(float(bias[-3] - bias[-13])) == pytest.approx(answers.ALIBI_FACTOR, rel=0.01)


def test_8_last_norm(answers):
    """the root of the variance of 37 independent terms."""
    assert pytest.approx(37, rel=0.02) == answers.LAST_NORM_DIVIDES_BY**2


def _language(seed: int, vocabulary: int = 4):
    """Log-probabilities that depend on the last two ids, drawn once."""
    table: dict[tuple[int, ...], np.ndarray] = {}

    def step(ids):
        key = tuple(ids[-2:])
        if key not in table:
            generator = np.random.default_rng([seed, len(key), *key])
            table[key] = np.log(generator.dirichlet(np.ones(vocabulary) * 0.7))
        return table[key]

    return step


def _best(step, max_length):
    found = (-math.inf, ())
    for length in range(1, max_length + 1):
        for ids in product(range(4), repeat=length):
            ends = [i for i, token in enumerate(ids) if token == 0]
            if (ends and ends[0] < length - 1) or (not ends and length < max_length):
                continue
            total = sum(float(step(ids[:i])[token]) for i, token in enumerate(ids))
            found = max(found, (total, ids))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_9_beam_search(answers, seed):
    """one beam is greedy, and a beam as wide as all beginnings finds the best sequence."""
    step = _language(seed)
    greedy: tuple[int, ...] = ()
    while len(greedy) < 5 and (not greedy or greedy[-1] != 0):
        greedy = (*greedy, int(step(greedy).argmax()))
    ids, total = answers.beam_search(step, end=0, num_beams=1, max_length=5)
    assert tuple(ids) == greedy
    best_total, best_ids = _best(step, 5)
    ids, wide = answers.beam_search(step, end=0, num_beams=4**5, max_length=5)
    assert tuple(ids) == best_ids
    assert wide == pytest.approx(best_total)
    assert wide >= total - 1e-12
