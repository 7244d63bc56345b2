"""Rounding bit for bit as PyTorch's casts, and sums and variances that lose what theory says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from floating_point import (
    BF16,
    FORMATS,
    FP8_E4M3,
    FP8_E5M2,
    FP16,
    FP32,
    FloatFormat,
    compensated_sum,
    round_to_format,
    running_sum,
    stable_roots,
    textbook_roots,
    textbook_variance,
    two_pass_variance,
)

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8 E4M3": torch.float8_e4m3fn,
    "fp8 E5M2": torch.float8_e5m2,
}


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_every_size_is_rounded_as_torch_casts_it(fmt):
    """Normal, subnormal, too small, too large and negative; the casts start from float32."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=40_000) * 2.0 ** rng.uniform(-30, 30, size=40_000)).astype(np.float32)
    x = np.concatenate([x, [0.0, -0.0, np.inf, -np.inf]]).astype(np.float32)
    if not fmt.has_infinity:  # what is too large: NaN in some versions of PyTorch, 448 in others
        x = x[np.abs(x) <= fmt.largest]
    expected = torch.tensor(x).to(DTYPES[fmt.name]).to(torch.float64).numpy()
    np.testing.assert_array_equal(round_to_format(x, fmt), expected)


@pytest.mark.parametrize("fmt", [FP16, BF16, FP8_E4M3, FP8_E5M2], ids=lambda fmt: fmt.name)
def test_exact_ties_go_to_the_even_mantissa(fmt):
    for k in range(2**fmt.mantissa_bits):
        halfway = 1.0 + (k + 0.5) * fmt.epsilon
        expected = torch.tensor(halfway).to(DTYPES[fmt.name]).item()
        assert round_to_format(halfway, fmt) == expected


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_limits_are_torchs(fmt):
    info = torch.finfo(DTYPES[fmt.name])
    assert fmt.largest == info.max
    assert fmt.smallest_normal == info.tiny
    assert fmt.epsilon == info.eps
    assert fmt.bits == info.bits
    assert round_to_format(fmt.smallest_subnormal, fmt) == fmt.smallest_subnormal
    assert round_to_format(fmt.smallest_subnormal / 2, fmt) == 0.0


@given(st.floats(-1e4, 1e4))
def test_the_relative_error_is_at_most_half_epsilon(x):
    for fmt in (FP32, FP16, BF16):
        if abs(x) >= fmt.smallest_normal:
            assert abs(float(round_to_format(x, fmt)) - x) <= fmt.epsilon / 2 * abs(x)


def test_the_worked_values():
    assert round_to_format(0.1, BF16) == 0.10009765625
    assert round_to_format(70_000.0, FP16) == np.inf
    assert np.isnan(round_to_format(500.0, FP8_E4M3))
    assert round_to_format(257.0, BF16) == 256.0


def test_a_running_sum_in_16_bits_stops():
    """bf16 counts to 256 and no further: the next number after 256 is 258."""
    assert running_sum(np.ones(1000), BF16) == 256.0
    assert running_sum(np.ones(3000), FP16) == 2048.0
    assert compensated_sum(np.ones(1000), BF16) == 1000.0


def test_compensation_pays_for_itself():
    terms = np.random.default_rng(0).random(2000)
    exact = terms.sum()
    plain, carried = running_sum(terms, FP16), compensated_sum(terms, FP16)
    assert abs(carried - exact) < 0.51 < 2 < abs(plain - exact)


def test_the_variance_of_large_numbers():
    x = (10_000 + np.random.default_rng(0).normal(size=10_000)).astype(np.float32)
    exact = x.astype(np.float64).var()
    assert abs(two_pass_variance(x) - exact) < 1e-3
    assert abs(textbook_variance(x) - exact) > 0.5
    assert textbook_variance(x.astype(np.float64)) == pytest.approx(exact, abs=1e-5)


def test_roots():
    exact = np.roots([1.0, 200.0, 0.015])
    exact = sorted(exact, key=abs)
    naive, stable = textbook_roots(1.0, 200.0, 0.015), stable_roots(1.0, 200.0, 0.015)
    assert stable == pytest.approx(tuple(exact), rel=1e-6)
    assert abs(naive[0] / exact[0] - 1) > 1e-2
    assert textbook_roots(1.0, -3.0, 2.0) == pytest.approx((1.0, 2.0))
    assert stable_roots(1.0, -3.0, 2.0) == pytest.approx((1.0, 2.0))


BAD = {
    "bits": (lambda: FloatFormat(name="", exponent_bits=1, mantissa_bits=2), ValueError, "2 to 10"),
    "words": (lambda: round_to_format(["a"], FP16), TypeError, "real numbers"),
    "no numbers": (lambda: textbook_variance(np.zeros(0)), ValueError, "no numbers"),
    "no numbers here": (lambda: two_pass_variance(np.zeros(0)), ValueError, "no numbers"),
    "no roots": (lambda: stable_roots(1, 0, 1), ValueError, "two real roots"),
    "no square": (lambda: textbook_roots(0, 2, 1), ValueError, "two real roots"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_the_stated_error(case):
    call, error, words = BAD[case]
    with pytest.raises(error, match=words):
        call()
