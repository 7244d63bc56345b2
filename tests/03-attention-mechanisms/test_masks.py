"""Masks against their definitions, pair by pair, and against their counts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention import scaled_dot_product_attention, sdpa_attention
from masks import (
    allowed_pairs,
    bigbird_mask,
    block_sparse_mask,
    causal_mask,
    combine_masks,
    dilated_mask,
    document_mask,
    keep_over_keys,
    padding_mask,
    prefix_mask,
    sliding_window_mask,
    strided_mask,
)

LENGTHS = st.tuples(st.integers(1, 12), st.integers(1, 12))
STEPS = st.integers(1, 6)


def _by_rule(T, S, rule):
    """Ask the rule about every pair: is this key, so far behind the query, allowed?"""
    rows = [[rule(query + S - T - key, key) for key in range(S)] for query in range(T)]
    return torch.tensor(rows, dtype=torch.bool)


def _equal(mask, expected):
    assert mask.dtype == torch.bool
    assert torch.equal(mask, expected), f"\n{mask.int()}\n{expected.int()}"


def test_drawn_by_hand():
    assert causal_mask(2, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert causal_mask(3, 2).int().tolist() == [[0, 0], [1, 0], [1, 1]]
    assert sliding_window_mask(3, 2).int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert sliding_window_mask(3, 2, causal=False).int().tolist() == [
        [1, 1, 0],
        [1, 1, 1],
        [0, 1, 1],
    ]
    assert dilated_mask(1, 2, 3, 5).int().tolist() == [[0, 1, 0, 0, 1]]
    assert strided_mask(1, 3, 8).int().tolist() == [[0, 1, 0, 0, 1, 1, 1, 1]]
    assert prefix_mask(2, 4).int().tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [1, 1, 1, 1],
    ]


@settings(max_examples=60, deadline=None)
@given(LENGTHS, STEPS, STEPS, st.integers(0, 14))
def test_every_pair_follows_the_rule(lengths, a, b, prefix):
    T, S = lengths
    near = range(0, a * b, b)
    for S_given in (S, None):
        S = T if S_given is None else S_given
        _equal(causal_mask(T, S_given), _by_rule(T, S, lambda d, _: d >= 0))
        _equal(sliding_window_mask(T, a, S_given), _by_rule(T, S, lambda d, _: 0 <= d < a))
        _equal(
            sliding_window_mask(T, a, S_given, causal=False),
            _by_rule(T, S, lambda d, _: abs(d) < a),
        )
        _equal(dilated_mask(T, a, b, S_given), _by_rule(T, S, lambda d, _: d in near))
        _equal(
            dilated_mask(T, a, b, S_given, causal=False),
            _by_rule(T, S, lambda d, _: abs(d) in near),
        )
        _equal(
            strided_mask(T, a, S_given),
            _by_rule(T, S, lambda d, _: d >= 0 and (d < a or d % a == 0)),
        )
        _equal(
            prefix_mask(prefix, T, S_given), _by_rule(T, S, lambda d, key: d >= 0 or key < prefix)
        )


@settings(max_examples=40, deadline=None)
@given(LENGTHS, STEPS, STEPS)
def test_aligned_to_the_end(lengths, a, b):
    """Fewer queries than keys are the last rows of the square mask; more have empty rows first."""
    T, S = lengths
    for make in (
        causal_mask,
        lambda T, S=None: sliding_window_mask(T, a, S),
        lambda T, S=None: dilated_mask(T, a, b, S),
        lambda T, S=None: strided_mask(T, a, S),
    ):
        mask = make(T, S)
        shared = min(T, S)
        _equal(mask[T - shared :], make(S)[S - shared :])
        assert not mask[: T - shared].any()


@pytest.mark.parametrize("T", [1, 2, 7, 64])
def test_counts(T):
    assert allowed_pairs(causal_mask(T)) == T * (T + 1) // 2
    for window in range(1, T + 1):
        expected = window * T - window * (window - 1) // 2
        assert allowed_pairs(sliding_window_mask(T, window)) == expected
    assert allowed_pairs(sliding_window_mask(T, T + 5)) == T * (T + 1) // 2
    half = T // 2
    assert allowed_pairs(prefix_mask(half, T)) == T * (T + 1) // 2 + half * (half - 1) // 2
    ids = torch.tensor([[0] * half + [1] * (T - half)])
    assert allowed_pairs(document_mask(ids)) == half**2 + (T - half) ** 2


def test_strided_pairs_grow_like_three_halves():
    """With stride √T, about 2 T √T pairs less edges: between T √T and 2 T √T."""
    for root in (8, 16, 32):
        T = root**2
        count = allowed_pairs(strided_mask(T, root))
        assert T * root < count < 2 * T * root
        local = T * root - root * (root - 1) // 2
        summary = sum(position // root for position in range(T))
        assert count == local + summary


def test_strided_attention_joins_every_pair_in_two_steps():
    T = 49
    one = strided_mask(T, 7).float()
    _equal((one @ one) > 0, causal_mask(T))


def test_padding():
    lengths = torch.tensor([3, 0, 5])
    mask = padding_mask(lengths, 5)
    assert mask.shape == (3, 1, 1, 5)
    assert mask[:, 0, 0].int().tolist() == [[1, 1, 1, 0, 0], [0] * 5, [1] * 5]
    left = padding_mask(lengths, 5, side="left")
    assert left[:, 0, 0].int().tolist() == [[0, 0, 1, 1, 1], [0] * 5, [1] * 5]
    assert allowed_pairs(mask) == 8
    assert allowed_pairs(mask, (3, 1, 4, 5)) == 32


def test_prefixes_of_a_batch():
    mask = prefix_mask(torch.tensor([0, 2, 9]), 4, 5)
    assert mask.shape == (3, 1, 4, 5)
    _equal(mask[0, 0], causal_mask(4, 5))
    _equal(mask[1, 0], prefix_mask(2, 4, 5))
    _equal(mask[2, 0], torch.ones(4, 5, dtype=torch.bool))


def test_documents_are_apart():
    """Packed documents under the mask give what they give alone."""
    torch.manual_seed(1)
    lengths = [4, 1, 3]
    ids = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    mask = document_mask(ids)
    assert mask.shape == (1, 1, 8, 8)
    q, k, v = torch.randn(3, 1, 2, 8, 4)
    packed = sdpa_attention(q, k, v, keep=mask, causal=True)
    parts = zip(*(tensor.split(lengths, dim=2) for tensor in (q, k, v)), strict=True)
    alone = torch.cat([sdpa_attention(*part, causal=True) for part in parts], dim=2)
    torch.testing.assert_close(packed, alone, atol=1e-6, rtol=1e-5)


def test_blocks():
    layout = torch.tensor([[True, False, True], [False, True, False]])
    mask = block_sparse_mask(layout, 2)
    _equal(mask, torch.kron(layout.int(), torch.ones(2, 2, dtype=torch.int)).bool())
    assert allowed_pairs(mask) == 3 * 4
    _equal(block_sparse_mask(layout, 2, 3, 5), mask[:3, :5])
    with pytest.raises(ValueError, match="T is 2, but blocks of 2"):
        block_sparse_mask(layout, 2, 2, 5)
    with pytest.raises(ValueError, match="S is 7, but blocks of 2"):
        block_sparse_mask(layout, 2, 3, 7)


@pytest.mark.parametrize(("T", "block_size"), [(48, 4), (50, 4), (9, 1), (5, 8)])
@pytest.mark.parametrize(
    ("num_global", "num_window", "num_random"), [(1, 3, 2), (0, 1, 3), (2, 5, 0), (1, 3, 99)]
)
def test_bigbird(T, block_size, num_global, num_window, num_random):
    def make(seed):
        return bigbird_mask(
            T,
            block_size=block_size,
            num_global_blocks=num_global,
            num_window_blocks=num_window,
            num_random_blocks=num_random,
            generator=torch.Generator().manual_seed(seed),
        )

    mask = make(0)
    assert mask.shape == (T, T)
    assert torch.equal(mask, make(0))
    # Back to one element a block: each block is uniform.
    blocks = math.ceil(T / block_size)
    layout = mask[::block_size, ::block_size]
    _equal(mask, block_sparse_mask(layout, block_size, T, T))
    place = torch.arange(blocks)
    distance = (place[:, None] - place).abs()
    structural = (distance <= num_window // 2) | (place < num_global)
    structural |= (place < num_global)[:, None]
    assert layout[structural].all()
    for row in range(blocks):  # the exact count: structure, and so many random ones
        others = int((~structural[row]).sum())
        extra = int(layout[row].sum() - structural[row].sum())
        assert extra == min(num_random, others)


def test_bigbird_draws_other_blocks_for_another_seed():
    masks = [
        bigbird_mask(64, block_size=2, generator=torch.Generator().manual_seed(seed))
        for seed in range(2)
    ]
    assert not torch.equal(*masks)
    assert allowed_pairs(masks[0]) == allowed_pairs(masks[1])


def test_combining():
    both = combine_masks(causal_mask(3), padding_mask(torch.tensor([2, 3]), 3))
    assert both.shape == (2, 1, 3, 3)
    assert both[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 0]]
    assert both[1, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    _equal(combine_masks(causal_mask(3)), causal_mask(3))


@pytest.mark.parametrize("attend", [scaled_dot_product_attention, sdpa_attention])
def test_attention_takes_these_masks(attend):
    torch.manual_seed(2)
    q, k, v = torch.randn(2, 2, 5, 4), torch.randn(2, 2, 9, 4), torch.randn(2, 2, 9, 4)
    causal = attend(q, k, v, causal=True)
    torch.testing.assert_close(
        attend(q, k, v, keep=causal_mask(5, 9)), causal, atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(
        attend(q, k, v, keep=sliding_window_mask(5, 20, 9)), causal, atol=1e-6, rtol=1e-5
    )
    short = attend(q, k, v, keep=padding_mask(torch.tensor([6, 6]), 9))
    torch.testing.assert_close(short, attend(q, k[:, :, :6], v[:, :, :6]), atol=1e-6, rtol=1e-5)


def test_on_the_device_that_is_asked_for():
    for mask in (
        causal_mask(3, device=torch.device("meta")),
        strided_mask(3, 2, device=torch.device("meta")),
        prefix_mask(1, 3, device=torch.device("meta")),
        padding_mask(torch.ones(2, dtype=torch.long, device="meta"), 3),
    ):
        assert mask.device.type == "meta"


def _generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: causal_mask(0), "T is 0"),
        (lambda: causal_mask(3, 0), "S is 0"),
        (lambda: sliding_window_mask(3, 0), "window is 0"),
        (lambda: dilated_mask(3, 1, 0), "dilation is 0"),
        (lambda: strided_mask(3, -1), "stride is -1"),
        (lambda: padding_mask(torch.ones(2, 2), 3), "lengths have shape"),
        (lambda: padding_mask(torch.ones(2), 0), "S is 0"),
        (lambda: padding_mask(torch.ones(2), 3, side="up"), "side is 'up'"),
        (lambda: prefix_mask(-1, 3), "prefix is -1"),
        (lambda: prefix_mask(torch.ones(2, 2), 3), "prefix has shape"),
        (lambda: document_mask(torch.ones(3)), "document_ids have shape"),
        (lambda: padding_mask(torch.tensor([2, 4]), 3), r"lengths holds 4; each must lie in 0 … 3"),
        (lambda: padding_mask(torch.tensor([-1, 2]), 3), "lengths holds -1"),
        (lambda: prefix_mask(torch.tensor([1, -2]), 3), "prefix holds -2; each must not be neg"),
        (lambda: block_sparse_mask(torch.ones(3, dtype=torch.bool), 2), "two-dimensional"),
        (lambda: block_sparse_mask(torch.ones(0, 2, dtype=torch.bool), 2), "with a block"),
        (lambda: block_sparse_mask(torch.ones(3, 3, dtype=torch.bool), 0), "block_size is 0"),
        (lambda: bigbird_mask(0, block_size=2, generator=_generator()), "T is 0"),
        (
            lambda: bigbird_mask(8, block_size=2, num_window_blocks=2, generator=_generator()),
            "num_window_blocks is 2; it must be odd",
        ),
        (
            lambda: bigbird_mask(8, block_size=2, num_random_blocks=-1, generator=_generator()),
            "num_random_blocks -1",
        ),
        (combine_masks, "at least one mask"),
        (lambda: combine_masks(causal_mask(3), causal_mask(4)), r"\(3, 3\), \(4, 4\) do not br"),
        (lambda: allowed_pairs(causal_mask(3), (2, 2)), r"\(3, 3\) does not broadcast to \(2, 2\)"),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: combine_masks(causal_mask(3), torch.ones(3, 3)),
        lambda: allowed_pairs(torch.ones(3, 3)),
        lambda: block_sparse_mask(torch.ones(3, 3), 2),
    ],
)
def test_masks_are_bool(call):
    with pytest.raises(TypeError, match=r"dtype torch\.float32; it must be bool"):
        call()


def test_a_batchs_keep_takes_the_shape_of_the_scores() -> None:
    keep = torch.tensor([[True, False, True], [True, True, False]])
    for source in (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, 8)):
        mask = keep_over_keys("keep", keep, source)
        assert mask is not None
        assert torch.equal(mask.expand(2, 4, 5, 3)[:, 1, 2], keep)
    assert keep_over_keys("keep", None, keep) is None
    with pytest.raises(ValueError, match=r"src_keep has shape \(2, 2\); it must be \(2, 3\)"):
        keep_over_keys("src_keep", keep[:, 1:], keep)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: causal_mask(2.5), "T is 2.5; it must be a whole number"),  # type: ignore
        (lambda: causal_mask("3"), "T is '3'"),  # type: ignore
        (lambda: sliding_window_mask(4, None), "window is None"),  # type: ignore
        (lambda: dilated_mask(4, 2, 1.5), "dilation is 1.5"),  # type: ignore
        (lambda: strided_mask(4, 2.5), "stride is 2.5"),  # type: ignore
        (lambda: prefix_mask(1.5, 4), "prefix is 1.5"),  # type: ignore
        (lambda: prefix_mask(torch.tensor([1.5]), 4), "prefix has dtype"),
        (lambda: padding_mask(torch.tensor([1.5]), 4), "lengths has dtype"),
        (lambda: padding_mask(torch.tensor([True, False]), 4), "lengths has dtype"),
        (lambda: padding_mask([1, 2], 4), "lengths is a list; it must be a torch.Tensor"),  # type: ignore
        (lambda: block_sparse_mask(None, 2), "layout is a NoneType"),  # type: ignore
        (lambda: document_mask([[1, 1]]), "document_ids is a list"),  # type: ignore
        (lambda: combine_masks(None), "a mask is a NoneType"),  # type: ignore
        (lambda: allowed_pairs(None), "mask is a NoneType"),  # type: ignore
    ],
)
def test_counts_are_whole_numbers(call, message):
    """A mask handed in for its lengths, or a half window, would give some mask without a word."""
    with pytest.raises(TypeError, match=message):
        call()
