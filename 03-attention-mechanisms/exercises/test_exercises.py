"""Grades `exercises.py`, or with `--solutions` `solutions.py`."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attention import MultiHeadAttention, attention_weights, scaled_dot_product_attention
from lab import count_parameters
from masks import allowed_pairs, causal_mask, sliding_window_mask


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_1_attend(answers):
    """each output is the softmax-weighted mean of the values, with scores divided by √K."""
    q, k, v = random(5, 8), random(9, 8, seed=1), random(9, 3, seed=2)
    expected = scaled_dot_product_attention(q[None, None], k[None, None], v[None, None])[0, 0]
    torch.testing.assert_close(answers.attend(q, k, v), expected)


@pytest.mark.parametrize(("T", "S"), [(4, 4), (1, 6), (3, 7)])
def test_2_causal_keep(answers, T, S):
    """a key is visible exactly if it is no later than the query, the last query at the last key."""
    keep = answers.causal_keep(T, S)
    assert keep.dtype == torch.bool
    assert torch.equal(keep, causal_mask(T, S))


def test_3_variance(answers):
    """the variance of a sum of independent products, and the factor that makes it 1."""
    q, k = 2.0 * random(400_000, 64), 3.0 * random(400_000, 64, seed=1)
    assert pytest.approx(float((q * k).sum(-1).var()), rel=0.02) == answers.VARIANCE
    assert pytest.approx(1.0) == answers.SCALE**2 * answers.VARIANCE


def test_3_parameters_and_cache(answers):
    """the layer's own count, and two bytes for each number that it keeps."""
    with torch.device("meta"):
        layer = MultiHeadAttention(4096, 32, num_kv_heads=8, bias=False)
    assert count_parameters(layer) == answers.PARAMETERS
    kept = layer.k_proj.out_features + layer.v_proj.out_features
    assert kept * 8192 * 2 == answers.CACHE_BYTES


def test_3_window_pairs(answers):
    """the number of pairs is that of the mask."""
    assert allowed_pairs(sliding_window_mask(1024, 128)) == answers.WINDOW_PAIRS


@pytest.mark.parametrize("num_heads", [1, 2, 6])
def test_4_multi_head(answers, num_heads):
    """the result is that of the course's layer with the same four matrices."""
    layer = MultiHeadAttention(12, num_heads, bias=False).double()
    x = random(3, 7, 12)
    matrices = [getattr(layer, f"{n}_proj").weight.detach() for n in ("q", "k", "v", "out")]
    expected = layer(x, causal=True)
    torch.testing.assert_close(answers.multi_head(x, *matrices, num_heads), expected)


def test_5_split_heads(answers):
    """head h of position t holds columns h·K to (h+1)·K of position t, and nothing else."""
    x = random(2, 5, 12)
    result = answers.split_heads(x, 3)
    expected = torch.stack([x[:, :, 4 * h : 4 * h + 4] for h in range(3)], dim=1)
    assert result.shape == expected.shape
    torch.testing.assert_close(result, expected)


def test_6_masked_weights(answers):
    """rows sum to one over what is visible, and to zero where nothing is."""
    scores = random(2, 4, 6)
    keep = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    keep[..., 0] = True
    keep[0, 2] = False
    weights = answers.masked_weights(scores, keep)
    assert (weights[~keep] == 0).all()
    torch.testing.assert_close(weights.sum(-1), keep.any(-1).double())


def test_6_masked_weights_do_not_leak(answers):
    """a hidden score changes nothing and gets no gradient, and no gradient is NaN."""
    scores = random(3, 5).requires_grad_()
    keep = torch.ones(3, 5).tril().bool()
    keep[1] = False
    weights = answers.masked_weights(scores, keep)
    raised = answers.masked_weights(scores + 10.0 * (~keep), keep)
    torch.testing.assert_close(weights, raised)
    (gradient,) = torch.autograd.grad((weights * random(3, 5, seed=2)).sum(), scores)
    assert torch.isfinite(gradient).all()
    assert (gradient[~keep] == 0).all()


def test_7_predictions(answers):
    """each number is what the formulas give."""
    k = torch.ones(1, 1, 8, 4)
    assert pytest.approx(float(attention_weights(k[:, :, :1], k)[0, 0, 0, 0])) == (
        answers.WEIGHT_OF_EQUALS
    )
    scores = torch.tensor([0.7, 0.3]).log().requires_grad_()
    assert pytest.approx(float((scores + 5.0).softmax(0)[0].detach())) == answers.WEIGHT_AFTER_SHIFT
    (gradient,) = torch.autograd.grad(scores.softmax(0)[0], scores)
    assert pytest.approx(float(gradient[0]), abs=1e-6) == answers.GRADIENT_AT_SCORE


def test_7_order_and_memory(answers):
    """attention over the past is a sum over a set; weights are a square."""
    layer = MultiHeadAttention(8, 2).double()
    x = random(1, 6, 8)
    shuffled = x[:, [3, 0, 4, 1, 2, 5]]
    change = (layer(x, causal=True) - layer(shuffled, causal=True))[0, -1].abs().max()
    assert pytest.approx(float(change.detach()), abs=1e-12) == answers.CHANGE_AT_LAST
    assert answers.MEMORY_FACTOR == 128**2 / 64**2


def test_8_attention_gradients(answers):
    """each gradient is autograd's."""
    q, k, v = (random(n, 6, seed=n).requires_grad_() for n in (5, 8, 9))
    v = v[:8].detach()[:, :4].contiguous().requires_grad_()
    d_out = random(5, 4)
    out = scaled_dot_product_attention(q[None, None], k[None, None], v[None, None])[0, 0]
    expected = torch.autograd.grad(out, (q, k, v), d_out)
    with torch.no_grad():
        ours = answers.attention_gradients(q, k, v, d_out)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("spread", [1.0, 3000.0])
def test_9_merge_parts(answers, spread):
    """two halves joined equal attention over all keys, also where scores are in the thousands."""
    scores, v = spread * random(4, 10), random(10, 3, seed=1)
    halves = []
    for part in (slice(0, 4), slice(4, 10)):
        halves += [scores[:, part].softmax(-1) @ v[part], scores[:, part].logsumexp(-1)]
    out, log_sum = answers.merge_parts(*halves)
    torch.testing.assert_close(out, scores.softmax(-1) @ v)
    torch.testing.assert_close(log_sum, scores.logsumexp(-1))


class _LargestTensor(TorchDispatchMode):
    """Remember how many elements the largest result had."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return result


@pytest.mark.parametrize("window", [1, 4, 16, 64])
def test_10_window_attention(answers, window):
    """each query attends to itself and the window - 1 keys before it."""
    q, k, v = (random(2, 3, 64, 8, seed=i) for i in range(3))
    expected = scaled_dot_product_attention(q, k, v, keep=sliding_window_mask(64, window))
    torch.testing.assert_close(answers.window_attention(q, k, v, window), expected)


def test_10_window_attention_is_small(answers):
    """no tensor on the way grows with the square of the length."""
    q, k, v = (random(1, 2, 512, 8, seed=i) for i in range(3))
    with _LargestTensor() as seen:
        answers.window_attention(q, k, v, 16)
    assert seen.elements <= 4 * 2 * 512 * 16


@pytest.mark.parametrize("bias", [True, False])
def test_11_to_grouped(answers, bias):
    """where the heads of each group were equal the output stays; the original is untouched."""
    torch.manual_seed(0)
    layer = MultiHeadAttention(24, 6, bias=bias).double()
    with torch.no_grad():
        for name in ("k_proj", "v_proj"):
            projection = getattr(layer, name)
            for tensor in projection.parameters():
                tensor.normal_()
                heads = tensor.view(2, 3, 4, -1)
                heads.copy_(heads[:, :1].clone().expand_as(heads))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    x = random(2, 5, 24)
    grouped = answers.to_grouped(layer, 2)
    assert grouped.num_kv_heads == 2
    assert grouped.k_proj.weight.shape == (8, 24)
    torch.testing.assert_close(grouped(x, causal=True), layer(x, causal=True))
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())


def test_11_to_grouped_averages(answers):
    """each new head is the mean of the heads that it replaces."""
    layer = MultiHeadAttention(8, 4)
    grouped = answers.to_grouped(layer, 2)
    expected = layer.k_proj.weight.view(2, 2, 2, 8).mean(dim=1).reshape(4, 8)
    torch.testing.assert_close(grouped.k_proj.weight, expected)
