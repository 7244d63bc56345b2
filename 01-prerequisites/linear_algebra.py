"""The linear algebra that the course stands on, small enough to read: what an array's shape and
strides mean, what a matrix product does, what eigenvectors and singular values are for.

NumPy does all of it faster; the tests compare. README, "Arrays" and "Directions that matter".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def row_major_strides(shape: Sequence[int], itemsize: int = 1) -> tuple[int, ...]:
    """How many bytes lie between neighbours along each axis, the last axis being contiguous.

    Worked value: (2, 3, 4) with 8 bytes each gives (96, 32, 8). Raises ValueError for a negative
    size or an itemsize below 1.
    """
    if itemsize < 1 or any(n < 0 for n in shape):
        raise ValueError(f"sizes must not be negative, itemsize positive; got {shape}, {itemsize}")
    strides = []
    for size in reversed(shape):
        strides.append(itemsize)
        itemsize *= size
    return tuple(reversed(strides))


def broadcast_shapes(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape that arrays of these shapes have together: aligned at their *last* axes, sizes
    equal or 1, missing axes as 1. Raises ValueError where two sizes differ and none is 1.
    """
    ndim = max((len(shape) for shape in shapes), default=0)
    result = []
    for axis in range(-ndim, 0):
        sizes = {shape[axis] for shape in shapes if len(shape) >= -axis} - {1}
        if len(sizes) > 1:
            raise ValueError(f"shapes {shapes} do not broadcast: axis {axis} has {sorted(sizes)}")
        result.append(sizes.pop() if sizes else 1)
    return tuple(result)


def matmul_by_loops(
    a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]
) -> list[list[float]]:
    """C_ij = Σ_k A_ik B_kj on plain lists: (M, K), (K, N) -> (M, N), in 2·M·K·N FLOPs.

    Raises ValueError where the inner sizes differ, a matrix is empty, or its rows differ in length.
    """
    for rows in (a, b):
        if len({len(row) for row in rows}) > 1:
            raise ValueError(f"a matrix has rows of one length, got {[len(row) for row in rows]}")
    if not a or not b or len(a[0]) != len(b) or not b[0]:
        raise ValueError(f"cannot multiply ({len(a)}, …) by ({len(b)}, …): inner sizes must agree")
    columns = list(zip(*b, strict=True))
    return [[sum(x * y for x, y in zip(row, col, strict=True)) for col in columns] for row in a]


def power_iteration(
    matrix: NDArray[Any], *, steps: int = 200, seed: int = 0
) -> tuple[float, NDArray[np.float64]]:
    """The eigenvalue of largest magnitude of a symmetric matrix (n, n), and its unit eigenvector.

    Multiply any vector by the matrix again and again: its part along the largest eigenvalue grows
    fastest, by |λ₁ / λ₂| a step over the next. Raises ValueError unless the matrix is symmetric and
    `steps` at least 1; and where the walk has not settled, as between eigenvalues λ and -λ, of
    which neither outgrows the other.
    """
    matrix = np.asarray(matrix)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    square = matrix.ndim == 2 and matrix.size and matrix.shape[0] == matrix.shape[1]
    if not square or not np.allclose(matrix, matrix.T):
        raise ValueError(f"power iteration here needs a symmetric matrix, got {matrix.shape}")
    vector = np.random.default_rng(seed).normal(size=len(matrix))  # (n,)
    for _ in range(steps):
        image = matrix @ vector
        length = np.linalg.norm(image)
        if length == 0.0:
            return 0.0, vector / np.linalg.norm(vector)
        vector = image / length
    value = float(vector @ matrix @ vector)
    # |A v - λ v| bounds how far λ is from an eigenvalue.
    left = float(np.linalg.norm(matrix @ vector - value * vector))
    if not left <= 1e-3 * abs(value):
        raise ValueError(
            f"no direction has won after {steps} steps: |A v - λ v| = {left:.2g} at λ = {value:.4g}"
        )
    return value, vector


def low_rank(matrix: NDArray[Any], rank: int) -> NDArray[np.float64]:
    """The best approximation (M, N) of that rank in the Frobenius norm (Eckart and Young 1936).

    Keep the `rank` largest singular values; the squared error is the sum of the others' squares.
    Raises ValueError unless 0 <= rank <= min(M, N).
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or not 0 <= rank <= min(matrix.shape):
        raise ValueError(f"rank must lie in [0, min of {matrix.shape}], got {rank}")
    U, s, Vt = np.linalg.svd(matrix, full_matrices=False)  # (M, R), (R,), (R, N)
    return U[:, :rank] * s[:rank] @ Vt[:rank]
