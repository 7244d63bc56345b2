"""Two data sets that fit on any machine: XOR, and 1,797 handwritten digits.

The digits are scikit-learn's bundled copy of the test part of Alpaydin and Kaynak's *Optical
Recognition of Handwritten Digits* (UCI, 1998): 8 x 8 pixels, each the count of dark points in a
4 x 4 field, 0 to 16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class DigitsSplit:
    """Images (N, 64) of mean near 0, and classes (N,) 0 to 9, apart for training and testing.

    mean: (64,), what was subtracted; an image plus it is ink, 0 to 1.
    """

    train_x: NDArray[np.float64]
    train_y: NDArray[np.int64]
    test_x: NDArray[np.float64]
    test_y: NDArray[np.int64]
    mean: NDArray[np.float64]


def load_digit_images(*, seed: int = 0, test_share: float = 0.2) -> DigitsSplit:
    """The digits in an order drawn from the seed; the last `test_share` of them are for testing.

    Pixels are divided by 16 and the *training* images' mean is subtracted from all: what the test
    images look like must not be known. Raises ValueError unless 0 < test_share < 1 and both sides
    get an image.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must lie between 0 and 1, got {test_share}")
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    order = np.random.default_rng(seed).permutation(len(bunch.target))
    x, y = bunch.data[order] / 16.0, bunch.target[order].astype(np.int64)
    cut = round(len(y) * (1 - test_share))
    if not 0 < cut < len(y):
        raise ValueError(f"test_share {test_share} of {len(y)} images leaves a side empty")
    mean = x[:cut].mean(axis=0)
    return DigitsSplit(
        train_x=x[:cut] - mean,
        train_y=y[:cut],
        test_x=x[cut:] - mean,
        test_y=y[cut:],
        mean=mean,
    )


def xor_examples() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The four inputs (4, 2), as -1 and 1, and whether they differ (4,)."""
    x = np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    return x, np.array([0, 1, 1, 0])


def minibatches(
    x: NDArray[Any], y: NDArray[Any], *, batch_size: int, seed: int
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Batches without end: each epoch goes through all examples once, in a new order.

    An epoch's last batch is smaller if the size does not divide. Raises ValueError for a batch
    size below 1, no examples, or x and y of different length.
    """
    if batch_size < 1 or not len(x) or len(x) != len(y):
        raise ValueError(
            f"need a batch size of 1 or more and equally many x and y, got {batch_size}, "
            f"{len(x)}, {len(y)}"
        )
    return _minibatches(x, y, batch_size, np.random.default_rng(seed))


def _minibatches(
    x: NDArray[Any], y: NDArray[Any], batch_size: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    while True:
        order = rng.permutation(len(x))
        for start in range(0, len(x), batch_size):
            chosen = order[start : start + batch_size]
            yield x[chosen], y[chosen]
