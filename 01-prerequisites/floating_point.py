"""What a computer's numbers can and cannot hold: formats measured, rounding done by hand.

A floating-point number is ±1.m × 2^e: a sign, some bits of exponent, some of mantissa. All formats
of deep learning differ only in how many bits go where, so one function rounds to any of them, and
the tests compare it bit for bit with what PyTorch's casts do. README, "Floating point".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, kw_only=True)
class FloatFormat:
    """A binary format: 1 sign bit, `exponent_bits`, `mantissa_bits` (without the leading 1).

    has_infinity: IEEE 754 keeps the highest exponent for infinity and NaN. fp8 E4M3 does not: it
    uses those codes for numbers, all but one, and what is too large becomes NaN (Micikevicius et
    al. 2022, arXiv:2209.05433, table 1).

    Raises ValueError for fewer than 2 exponent bits or 1 mantissa bit, or for more than 10 and 51:
    numbers are rounded in float64, which must hold all of the format's with room to spare.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    has_infinity: bool = True

    def __post_init__(self) -> None:
        if not (2 <= self.exponent_bits <= 10 and 1 <= self.mantissa_bits <= 51):
            raise ValueError(
                "a format needs 2 to 10 exponent bits and 1 to 51 mantissa bits, got "
                f"{self.exponent_bits} and {self.mantissa_bits}"
            )

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def epsilon(self) -> float:
        """The gap between 1 and the next number."""
        return 2.0**-self.mantissa_bits

    @property
    def largest(self) -> float:
        if self.has_infinity:
            return (2.0 - self.epsilon) * 2.0**self.bias
        return (2.0 - 2 * self.epsilon) * 2.0 ** (self.bias + 1)

    @property
    def smallest_normal(self) -> float:
        return 2.0 ** (1 - self.bias)

    @property
    def smallest_subnormal(self) -> float:
        """Below the normal numbers the spacing stays, down to this and then to 0."""
        return self.smallest_normal * self.epsilon

    @property
    def decimal_digits(self) -> float:
        return (self.mantissa_bits + 1) * math.log10(2.0)


FP32 = FloatFormat(name="fp32", exponent_bits=8, mantissa_bits=23)
FP16 = FloatFormat(name="fp16", exponent_bits=5, mantissa_bits=10)
BF16 = FloatFormat(name="bf16", exponent_bits=8, mantissa_bits=7)
FP8_E4M3 = FloatFormat(name="fp8 E4M3", exponent_bits=4, mantissa_bits=3, has_infinity=False)
FP8_E5M2 = FloatFormat(name="fp8 E5M2", exponent_bits=5, mantissa_bits=2)
FORMATS = (FP32, BF16, FP16, FP8_E4M3, FP8_E5M2)


def round_to_format(x: ArrayLike, to: FloatFormat) -> NDArray[np.float64]:
    """The nearest number that the format has, ties to the even mantissa; as float64, x's shape.

    Too large becomes infinity, or NaN where the format has no infinity. Worked value: 0.1 in bf16
    is 0.10009765625. Raises TypeError for what is no real number.
    """
    values = np.asarray(x)
    if values.dtype.kind not in "fiub":
        raise TypeError(f"x must be real numbers, got dtype {values.dtype}")
    values = values.astype(np.float64)
    _, exponent = np.frexp(values)  # |x| = m · 2^exponent with m in [1/2, 1)
    exponent = np.maximum(exponent - 1, 1 - to.bias)  # below it: subnormal, the same spacing
    spacing = np.ldexp(1.0, exponent - to.mantissa_bits)
    with np.errstate(invalid="ignore"):
        rounded = np.rint(values / spacing) * spacing  # rint: halves to even
    overflow = math.inf if to.has_infinity else math.nan
    return np.where(np.abs(rounded) > to.largest, np.copysign(overflow, values), rounded)


def running_sum(terms: ArrayLike, to: FloatFormat) -> float:
    """Add the terms (n,) one by one, rounding the total to the format after each.

    What happens to a weight kept in 16 bits when every step wants to change it by a little: once
    a term is below half the spacing at the total, nothing moves any more.
    """
    total = 0.0
    for term in np.asarray(terms, dtype=np.float64).reshape(-1):
        total = float(round_to_format(total + term, to))
    return total


def compensated_sum(terms: ArrayLike, to: FloatFormat) -> float:
    """The same, carrying what each rounding lost into the next addition (Kahan 1965).

    Every intermediate result is rounded to the format: two numbers are kept instead of one, and
    no wider format is used. A total that overflows stays infinite, as in `running_sum`.
    """
    total = lost = 0.0
    for term in np.asarray(terms, dtype=np.float64).reshape(-1):
        wanted = float(round_to_format(term - lost, to))
        new = float(round_to_format(total + wanted, to))
        if not math.isfinite(new):
            total, lost = new, 0.0  # inf - inf would be NaN
            continue
        lost = float(round_to_format(float(round_to_format(new - total, to)) - wanted, to))
        total = new
    return total


def textbook_variance(x: NDArray[Any]) -> float:
    """E[x²] - E[x]², in x's own dtype: right on paper, and a subtraction of two nearly equal
    numbers where the mean is large beside the deviation. It can be negative.

    x: (n,). Raises ValueError for no numbers, TypeError for what is no floating-point array.
    """
    _check_some(x)
    return float((x * x).mean(dtype=x.dtype) - x.mean(dtype=x.dtype) ** 2)


def two_pass_variance(x: NDArray[Any]) -> float:
    """E[(x - E[x])²], in x's own dtype: the same number on paper, and accurate.

    x: (n,). Raises ValueError for no numbers, TypeError for what is no floating-point array.
    """
    _check_some(x)
    return float(((x - x.mean(dtype=x.dtype)) ** 2).mean(dtype=x.dtype))


def _check_some(x: NDArray[Any]) -> None:
    # "In x's own dtype" would cut the mean of integers down to an integer.
    if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
        raise TypeError(f"x must be a floating-point array, got {getattr(x, 'dtype', type(x))}")
    if not x.size:
        raise ValueError("the variance of no numbers is undefined")


def textbook_roots(a: float, b: float, c: float, dtype: Any = np.float32) -> tuple[float, float]:
    """Roots of a x² + b x + c by (-b ± √(b² - 4ac)) / 2a, each step in the dtype; the smaller in
    magnitude first. Where b² is much larger than 4ac one numerator cancels.

    Raises ValueError unless there are two real roots.
    """
    a, b, c = (np.dtype(dtype).type(value) for value in (a, b, c))
    root = np.sqrt(_discriminant(a, b, c))
    pair = sorted((float((-b + root) / (2 * a)), float((-b - root) / (2 * a))), key=abs)
    return pair[0], pair[1]


def stable_roots(a: float, b: float, c: float, dtype: Any = np.float32) -> tuple[float, float]:
    """The same roots: the one whose numerator adds, and the other from their product c / a.

    Raises ValueError unless there are two real roots.
    """
    a, b, c = (np.dtype(dtype).type(value) for value in (a, b, c))
    q = -(b + np.copysign(np.sqrt(_discriminant(a, b, c)), b)) / 2
    pair = sorted((float(q / a), float(c / q)), key=abs)
    return pair[0], pair[1]


def _discriminant(a: Any, b: Any, c: Any) -> Any:
    discriminant = b * b - 4 * a * c
    if a == 0 or not 0 < discriminant < math.inf:
        raise ValueError(
            f"{a} x² + {b} x + {c} does not have two real roots within {np.asarray(b).dtype}"
        )
    return discriminant
