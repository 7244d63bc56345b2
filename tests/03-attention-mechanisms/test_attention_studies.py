"""The studies and the costs: their formulas against direct computation, and their claims."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attention import scaled_dot_product_attention
from attention_costs import (
    attention_flops,
    measure_memory,
    peak_mebibytes,
    projection_flops,
    weights_bytes,
)
from attention_studies import (
    LookBackModel,
    count_masks,
    expected_places,
    mask_gallery,
    other_weights,
    saturation,
    softmax_jacobian_norm,
    train_look_back,
)
from shape_tracer import check_shapes


def test_the_jacobians_norm_equals_the_jacobians_norm():
    weights = torch.randn(5, 9, dtype=torch.float64).softmax(-1)
    for a, norm in zip(weights, softmax_jacobian_norm(weights), strict=True):
        jacobian = torch.diag(a) - torch.outer(a, a)
        torch.testing.assert_close(norm, torch.linalg.matrix_norm(jacobian))
    assert softmax_jacobian_norm(torch.tensor([0.5, 0.5])).item() == pytest.approx(0.5)
    assert softmax_jacobian_norm(torch.tensor([1.0, 0.0])).item() == 0.0
    uniform = softmax_jacobian_norm(torch.full((64,), 1 / 64))
    assert uniform.item() == pytest.approx(math.sqrt((1 - 1 / 64) / 64))


def test_the_variance_is_the_width_and_scaling_removes_it():
    for K in (16, 256):
        plain = saturation(K, num_keys=64, scale=1.0, rows=500, seed=0)
        scaled = saturation(K, num_keys=64, scale=1 / math.sqrt(K), rows=500, seed=0)
        assert plain["variance"] == pytest.approx(K, rel=0.05)
        assert scaled["places"] == pytest.approx(expected_places(1.0, 64), rel=0.06)
    assert plain["gradient"] < 0.25 * scaled["gradient"]
    assert plain["largest"] > 0.85 > 0.15 > scaled["largest"]


def test_expected_places():
    assert expected_places(0.0, 64) == 64
    assert expected_places(2 * math.log(64), 64) == pytest.approx(1.0)
    assert expected_places(100.0, 64) == 1.0
    # Scores of variance 1 over very many keys: the entropy by definition.
    scores = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = scores.softmax(0)
    places = math.exp(float(-(weights * weights.log()).sum()))
    assert places == pytest.approx(expected_places(1.0, 400_000), rel=0.01)


def test_masks_are_counted_from_the_masks():
    results = count_masks(32, block_size=8)
    rows = {row[0]: row for row in results["masks"]["rows"]}
    gallery = mask_gallery(32)
    assert rows.keys() == gallery.keys()
    for name, mask in gallery.items():
        assert mask.shape == (32, 32)
        assert rows[name][1] == mask.sum().item()
        empty = sum(
            not mask[i : i + 8, j : j + 8].any() for i in range(0, 32, 8) for j in range(0, 32, 8)
        )
        assert rows[name][3] == pytest.approx(100 * empty / 16)
    assert rows["causal"][1] == 32 * 33 // 2
    assert rows["documents, causal"][1] == 8 * 9 // 2 + 8 * 9 // 2 + 16 * 17 // 2


def test_another_map_with_the_same_output():
    generator = np.random.default_rng(0)
    weights = generator.dirichlet(np.ones(40))
    values = generator.standard_normal((40, 8))
    other = other_weights(weights, values)
    assert other is not None
    np.testing.assert_allclose(other @ values, weights @ values, atol=1e-9)
    assert other.sum() == pytest.approx(1.0)
    assert other.min() >= 0
    assert other[weights.argmax()] < 0.5 * weights.max()
    # With as many independent values as keys there is no room at all.
    few = other_weights(weights[:8] / weights[:8].sum(), values[:8])
    assert few is not None
    np.testing.assert_allclose(few, weights[:8] / weights[:8].sum(), atol=1e-8)


def test_four_heads_learn_what_one_cannot():
    options = {"d_model": 32, "length": 8, "offsets": (1, 2), "steps": 250, "vocab_size": 8}
    _, one = train_look_back(1, seed=0, lr=1e-2, **options)
    _, two = train_look_back(4, seed=0, lr=1e-2, **options)
    assert two > 0.97
    assert one < two - 0.1


def test_look_back_targets():
    model = LookBackModel(10, 5, 8, 2, (1, 3))
    ids = torch.tensor([[4, 5, 6, 7, 8]])
    assert model.targets(ids)[0].tolist() == [[-100] * 2, [4, -100], [5, -100], [6, 4], [7, 5]]
    with check_shapes(LookBackModel) as report:
        model(ids)
        model.targets(ids)
    assert report.checked >= 2


@pytest.mark.parametrize(("T", "S"), [(7, 7), (3, 11)])
def test_flops_by_formula_equal_flops_counted(T, S):
    q, k = torch.randn(2, 3, T, 8), torch.randn(2, 3, S, 8)
    with FlopCounterMode(display=False) as counter:
        scaled_dot_product_attention(q, k, k)
    assert counter.get_total_flops() == attention_flops(2, 3, T, S, 8)
    causal_pairs = sum(S - T + t + 1 for t in range(T))
    assert attention_flops(2, 3, T, S, 8, causal=True) == 4 * 2 * 3 * 8 * causal_pairs
    x, linear = torch.randn(2, T, 24), torch.nn.Linear(24, 24)
    with FlopCounterMode(display=False) as counter:
        [linear(x) for _ in range(4)]
    assert counter.get_total_flops() == projection_flops(2, T, 24)


def test_the_reference_holds_the_weights_and_the_fused_kernel_does_not():
    results = measure_memory((256, 1024), num_heads=4, head_width=16, device=torch.device("cpu"))
    _, reference, fused, _, weights = results["memory"]["rows"][-1]
    assert weights == weights_bytes(1, 4, 1024, 1024) / 2**20 == 16
    assert reference > 2 * weights
    assert fused < weights


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least as many keys"):
        attention_flops(1, 1, 5, 4, 8, causal=True)
    with pytest.raises(ValueError, match="lengths must rise"):
        peak_mebibytes("SDPA", [64, 32], 2, 8, "cpu")
