"""Small linear algebra against NumPy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linear_algebra import (
    broadcast_shapes,
    low_rank,
    matmul_by_loops,
    power_iteration,
    row_major_strides,
)

SHAPES = st.lists(st.integers(1, 4), max_size=4).map(tuple)


@given(SHAPES, st.sampled_from([np.int8, np.float32, np.float64]))
def test_strides_are_numpys(shape, dtype):
    array = np.zeros(shape, dtype)
    assert row_major_strides(shape, array.itemsize) == array.strides


@given(st.lists(SHAPES, min_size=1, max_size=4))
def test_broadcasting_is_numpys(shapes):
    try:
        expected = np.broadcast_shapes(*shapes)
    except ValueError:
        with pytest.raises(ValueError, match="do not broadcast"):
            broadcast_shapes(*shapes)
    else:
        assert broadcast_shapes(*shapes) == expected


def test_loops_multiply():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 3)), rng.normal(size=(3, 5))
    np.testing.assert_allclose(matmul_by_loops(a.tolist(), b.tolist()), a @ b)


def test_power_iteration_finds_the_largest():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(6, 6))
    matrix = a @ a.T
    value, vector = power_iteration(matrix)
    values, vectors = np.linalg.eigh(matrix)
    assert value == pytest.approx(values[-1])
    assert abs(vector @ vectors[:, -1]) == pytest.approx(1.0)
    assert power_iteration(-matrix)[0] == pytest.approx(-values[-1])
    assert power_iteration(np.zeros((2, 2)))[0] == 0.0


def test_eckart_young():
    """The error is the discarded singular values', and no matrix of that rank does better."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(7, 5))
    s = np.linalg.svd(matrix, compute_uv=False)
    for rank in range(6):
        best = low_rank(matrix, rank)
        assert np.linalg.matrix_rank(best) == rank
        error = ((matrix - best) ** 2).sum()
        assert error == pytest.approx((s[rank:] ** 2).sum(), abs=1e-12)
        if rank:
            other = low_rank(matrix + 0.1 * rng.normal(size=matrix.shape), rank)
            assert ((matrix - other) ** 2).sum() > error


BAD = {
    "negative size": (lambda: row_major_strides((2, -1)), "must not be negative"),
    "itemsize": (lambda: row_major_strides((2,), 0), "itemsize"),
    "inner sizes": (lambda: matmul_by_loops([[1.0]], [[1.0], [2.0]]), "inner sizes"),
    "no rows": (lambda: matmul_by_loops([], [[1.0]]), "inner sizes"),
    "not symmetric": (lambda: power_iteration(np.array([[0.0, 1], [0, 0]])), "symmetric"),
    "not square": (lambda: power_iteration(np.zeros((1, 2))), "symmetric"),
    "rank": (lambda: low_rank(np.zeros((2, 3)), 3), "rank must lie"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_the_stated_error(case):
    call, words = BAD[case]
    with pytest.raises(ValueError, match=words):
        call()
