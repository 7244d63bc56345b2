"""Reverse-mode differentiation of NumPy arrays: what `loss.backward()` does, in one file.

A `Variable` is an array that remembers which variables it was computed from and, for each of
them, a *rule*: given the gradient of the loss with respect to this array, what is its
contribution to the gradient with respect to that one? In the calculus of the README ("The chain
rule, backwards") the rule is multiplication with a transposed Jacobian, written so that the
Jacobian is never formed. `backward` walks from the loss to the leaves, each variable once and
only after all that used it, and adds up.

    x = Variable([1.0, 2.0], requires_grad=True)
    (x * x).sum().backward()
    x.grad                                    # array([2., 4.])

It computes in the arrays' own dtype, fp32 or fp64; numbers and lists become float64. Names,
broadcasting and what happens at kinks and ties follow PyTorch, with which the tests compare it on
thousands of random expressions. Linnainmaa (1970) described the method; Baydin et al. (2018),
arXiv:1502.05767, survey it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erf, expit

import numerics

_Array = NDArray[Any]
_Rule = Callable[[_Array], _Array]
_Axis = int | tuple[int, ...] | None


class Variable:
    """An array, its gradient, and where it came from.

    data: the values, floating point. grad: None, or the sum of all gradients that reached this
    leaf so far (like PyTorch it adds up until `zero_grad`); the same shape as data.
    requires_grad: whether `backward` shall reach it. A variable computed from one that requires
    a gradient requires one too, but only leaves keep theirs.
    """

    __slots__ = ("_links", "data", "grad", "requires_grad")
    __array_ufunc__ = None  # array * variable: NumPy shall leave it to Variable.__rmul__

    def __init__(self, data: ArrayLike, *, requires_grad: bool = False) -> None:
        """Raises TypeError for another Variable, and for what is no array of real numbers."""
        if isinstance(data, Variable):
            raise TypeError("data must be an array, not a Variable: use detach() for a copy")
        array = np.asarray(data)
        if array.dtype.kind in "iub":
            array = array.astype(np.float64)
        if array.dtype.kind != "f":
            raise TypeError(f"data must be real numbers, got dtype {array.dtype}")
        self.data: _Array = array
        self.grad: _Array | None = None
        self.requires_grad = requires_grad
        self._links: tuple[tuple[Variable, _Rule], ...] = ()

    shape = property(lambda self: self.data.shape)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)
    dtype = property(lambda self: self.data.dtype)
    T = property(lambda self: self.transpose())

    def __repr__(self) -> str:
        return f"Variable({self.data!r}, requires_grad={self.requires_grad})"

    def __len__(self) -> int:
        return len(self.data)

    def item(self) -> float:
        """The one number that it holds, as a float. Raises ValueError if there are more."""
        if self.size != 1:
            raise ValueError(f"item() needs one number, got shape {self.shape}")
        return float(self.data.reshape(()))

    def detach(self) -> Variable:
        """The same values without their history: a constant to whatever uses it."""
        return Variable(self.data)

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.grad = None

    def backward(self, gradient: ArrayLike | None = None) -> None:
        """Add d(self)/d(leaf) to the `grad` of every leaf that requires a gradient.

        gradient: what the loss's gradient with respect to self is, of self's shape. By default 1,
        which needs self to hold one number.

        Raises ValueError if nothing that self was computed from requires a gradient, if self
        holds several numbers and no gradient is given, or if its shape is another one.
        """
        if not self.requires_grad:
            raise ValueError("nothing that this was computed from requires a gradient")
        if gradient is None and self.size != 1:
            raise ValueError(f"backward from shape {self.shape} needs a gradient of that shape")
        seed = np.ones_like(self.data) if gradient is None else np.asarray(gradient, self.dtype)
        if seed.shape != self.shape:
            raise ValueError(f"the gradient must have shape {self.shape}, got {seed.shape}")
        arrived: dict[int, _Array] = {id(self): seed}
        for variable in reversed(_inputs_first(self)):
            total = arrived.pop(id(variable))
            if not variable._links:
                variable.grad = total.copy() if variable.grad is None else variable.grad + total
            for source, rule in variable._links:
                part = rule(total)
                known = arrived.get(id(source))
                arrived[id(source)] = part if known is None else known + part

    # --- arithmetic, with broadcasting -------------------------------------------------------

    def __add__(self, other: Any) -> Variable:
        a, b = self, self._operand(other)
        return _record(a.data + b.data, (a, lambda g: _sum_to(g, a)), (b, lambda g: _sum_to(g, b)))

    def __mul__(self, other: Any) -> Variable:
        a, b = self, self._operand(other)
        return _record(
            a.data * b.data,
            (a, lambda g: _sum_to(g * b.data, a)),
            (b, lambda g: _sum_to(g * a.data, b)),
        )

    def __truediv__(self, other: Any) -> Variable:
        a, b = self, self._operand(other)
        out = a.data / b.data
        return _record(
            out,
            (a, lambda g: _sum_to(g / b.data, a)),
            (b, lambda g: _sum_to(-g * out / b.data, b)),
        )

    def __pow__(self, exponent: float) -> Variable:
        """Raises TypeError unless the exponent is a plain number."""
        if not isinstance(exponent, (int, float)):
            raise TypeError(f"the exponent must be a number, got {type(exponent).__name__}")
        return self._map(
            self.data**exponent, lambda: exponent * self.data ** (exponent - 1) if exponent else 0.0
        )

    def __neg__(self) -> Variable:
        return self * -1.0

    def __sub__(self, other: Any) -> Variable:
        return self + -self._operand(other)

    def __rsub__(self, other: Any) -> Variable:
        return self._operand(other) + -self

    def __rtruediv__(self, other: Any) -> Variable:
        return self._operand(other) / self

    __radd__ = __add__
    __rmul__ = __mul__

    def maximum(self, other: Any) -> Variable:
        """The larger of the two, place by place; at a tie each gets half of the gradient."""
        a, b = self, self._operand(other)
        # The share of the gradient that a gets, in the numbers' own dtype.
        share = ((a.data > b.data) + 0.5 * (a.data == b.data)).astype(a.dtype)
        return _record(
            np.maximum(a.data, b.data),
            (a, lambda g: _sum_to(g * share, a)),
            (b, lambda g: _sum_to(g * (1.0 - share), b)),
        )

    def __matmul__(self, other: Any) -> Variable:
        """Matrix product (..., M, K) @ (..., K, N) -> (..., M, N), batches broadcast; a vector on
        the left is a row, on the right a column, as in NumPy.

        With C = A B: dA = dC Bᵀ, dB = Aᵀ dC (README, "The gradient of a matrix product").
        Raises ValueError for a scalar, or where K differs.
        """
        other = self._operand(other)
        if self.ndim == 0 or other.ndim == 0:
            raise ValueError(f"@ needs at least vectors, got {self.shape} and {other.shape}")
        a = self if self.ndim > 1 else self.reshape(1, -1)
        b = other if other.ndim > 1 else other.reshape(-1, 1)
        if a.shape[-1] != b.shape[-2]:
            raise ValueError(f"@ needs equal inner sizes, got {self.shape} and {other.shape}")
        out = _record(
            a.data @ b.data,
            (a, lambda g: _sum_to(g @ b.data.swapaxes(-1, -2), a)),
            (b, lambda g: _sum_to(a.data.swapaxes(-1, -2) @ g, b)),
        )
        rows = out.shape[-2:-1] if self.ndim > 1 else ()
        columns = out.shape[-1:] if other.ndim > 1 else ()
        return out.reshape(*out.shape[:-2], *rows, *columns)

    def __rmatmul__(self, other: Any) -> Variable:
        return self._operand(other) @ self

    # --- one number at a time ----------------------------------------------------------------

    def exp(self) -> Variable:
        out = np.exp(self.data)
        return self._map(out, lambda: out)

    def log(self) -> Variable:
        """Natural logarithm; -inf at 0 and NaN below, as in PyTorch."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._map(np.log(self.data), lambda: 1.0 / self.data)

    def sqrt(self) -> Variable:
        return self**0.5

    def abs(self) -> Variable:
        return self._map(np.abs(self.data), lambda: np.sign(self.data))

    def sin(self) -> Variable:
        return self._map(np.sin(self.data), lambda: np.cos(self.data))

    def tanh(self) -> Variable:
        out = np.tanh(self.data)
        return self._map(out, lambda: 1.0 - out**2)

    def sigmoid(self) -> Variable:
        """1 / (1 + e^-x), without overflow on either side."""
        out = expit(self.data)
        return self._map(out, lambda: out * (1.0 - out))

    def relu(self) -> Variable:
        """max(x, 0); its slope at 0 is taken as 0."""
        return self._map(np.maximum(self.data, 0), lambda: self.data > 0)

    def gelu(self, approximate: str = "none") -> Variable:
        """x Φ(x), Φ the normal distribution function (Hendrycks and Gimpel 2016, equation 1);
        "tanh" is their approximation, which GPT-2 uses. Raises ValueError for any other name.
        """
        x = self.data
        if approximate == "none":
            below = 0.5 * (1.0 + erf(x / math.sqrt(2.0)))  # Φ(x)
            density = np.exp(-0.5 * x**2) / math.sqrt(2.0 * math.pi)
            return self._map(x * below, lambda: below + x * density)
        if approximate != "tanh":
            raise ValueError(f'approximate must be "none" or "tanh", got {approximate!r}')
        scale = math.sqrt(2.0 / math.pi)
        t = np.tanh(scale * (x + 0.044715 * x**3))
        slope = scale * (1.0 + 3 * 0.044715 * x**2)
        return self._map(
            0.5 * x * (1.0 + t), lambda: 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t**2) * slope
        )

    def masked_fill(self, mask: ArrayLike, value: float) -> Variable:
        """`value` where the mask (bool, broadcast to self's shape) is True, and no gradient there.

        Raises TypeError unless the mask is bool.
        """
        mask = np.asarray(mask)
        if mask.dtype != bool:
            raise TypeError(f"mask must be bool, got {mask.dtype}")
        mask = np.broadcast_to(mask, self.shape)
        out = np.where(mask, np.asarray(float(value), self.dtype), self.data)
        return _record(out, (self, lambda g: np.where(mask, np.zeros_like(g), g)))

    # --- sums over axes ----------------------------------------------------------------------

    def sum(self, axis: _Axis = None, keepdims: bool = False) -> Variable:
        """Raises ValueError, as all reductions do, for an axis that is not there or named twice."""
        axes = self._axes(axis)
        out = self.data.sum(axis=axes, keepdims=keepdims)
        return _record(out, (self, lambda g: np.broadcast_to(_kept(g, axes, keepdims), self.shape)))

    def mean(self, axis: _Axis = None, keepdims: bool = False) -> Variable:
        """Raises ValueError for no numbers, as `var` does: there is no mean of nothing."""
        count = math.prod(self.shape[a] for a in self._axes(axis))
        if not count:
            raise ValueError(f"the mean of no numbers is undefined: axis {axis} of {self.shape}")
        return self.sum(axis, keepdims) * (1.0 / count)

    def var(self, axis: _Axis = None, keepdims: bool = False) -> Variable:
        """The mean squared distance from the mean (divided by n, not n - 1), in two passes."""
        return ((self - self.mean(axis, keepdims=True)) ** 2).mean(axis, keepdims)

    def max(self, axis: _Axis = None, keepdims: bool = False) -> Variable:
        """The largest; several that are largest share the gradient equally."""
        axes = self._axes(axis)
        largest = self.data.max(axis=axes, keepdims=True)
        share = (self.data == largest).astype(self.dtype)
        share /= share.sum(axis=axes, keepdims=True)
        out = largest if keepdims else largest.squeeze(axes)
        return _record(out, (self, lambda g: share * _kept(g, axes, keepdims)))

    def log_sum_exp(self, axis: int = -1, keepdims: bool = False) -> Variable:
        axes = self._axes(axis)
        out = np.expand_dims(numerics.log_sum_exp(self.data, axis), axes)
        p = np.exp(self.data - out)  # its gradient is the softmax
        out = out if keepdims else out.squeeze(axes)
        return _record(out, (self, lambda g: p * _kept(g, axes, keepdims)))

    # --- the same numbers in another shape ---------------------------------------------------

    def reshape(self, *shape: int) -> Variable:
        return _record(self.data.reshape(shape), (self, lambda g: g.reshape(self.shape)))

    def transpose(self, *axes: int) -> Variable:
        """Axes in the given order, as NumPy's; reversed without arguments.

        Raises ValueError unless each axis is named once.
        """
        order = axes or tuple(reversed(range(self.ndim)))
        if len(self._axes(order)) != self.ndim:
            raise ValueError(f"transpose needs all {self.ndim} axes, got {order}")
        back = np.argsort([a % self.ndim for a in order])
        return _record(self.data.transpose(order), (self, lambda g: g.transpose(back)))

    def broadcast_to(self, *shape: int) -> Variable:
        return _record(np.broadcast_to(self.data, shape), (self, lambda g: _sum_to(g, self)))

    def __getitem__(self, key: Any) -> Variable:
        """Slices, integer or bool arrays, as NumPy's; what is taken twice gets both gradients."""

        def scatter(g: _Array) -> _Array:
            whole = np.zeros_like(self.data)
            np.add.at(whole, key, g)  # and not whole[key] += g, which keeps one of several
            return whole

        return _record(self.data[key], (self, scatter))

    def embedding(self, ids: ArrayLike) -> Variable:
        """Rows of a table (V, D) by ids (...) -> (..., D): a lookup, or a product with one-hots.

        Raises TypeError for ids that are no integers, ValueError for a table of another
        dimension or ids outside [0, V).
        """
        rows = np.asarray(ids)
        if rows.dtype.kind not in "iu":
            raise TypeError(f"ids must be integers, got {rows.dtype}")
        if self.ndim != 2:
            raise ValueError(f"an embedding is a table (V, D), got shape {self.shape}")
        wrong = rows[(rows < 0) | (rows >= self.shape[0])]
        if wrong.size:
            raise ValueError(f"ids must lie in [0, {self.shape[0]}), got {wrong[0]}")
        return self[rows]

    @staticmethod
    def concatenate(parts: Sequence[Variable], axis: int = 0) -> Variable:
        """Several variables one after the other along an axis. Raises ValueError for none, or for
        an axis that is not there.
        """
        if not parts:
            raise ValueError("concatenate needs at least one variable")
        for part in parts:
            if not isinstance(part, Variable):
                raise TypeError(f"concatenate takes Variables, got {type(part).__name__}")
            part._axes(axis)
        ends = np.cumsum([part.shape[axis] for part in parts])

        def piece(part: Variable, end: int) -> tuple[Variable, _Rule]:
            where = np.arange(end - part.shape[axis], end)
            return part, lambda g: g.take(where, axis=axis)

        links = [piece(part, end) for part, end in zip(parts, ends, strict=True)]
        return _record(np.concatenate([part.data for part in parts], axis=axis), *links)

    # --- the parts of networks ---------------------------------------------------------------

    def softmax(self, axis: int = -1) -> Variable:
        """p = e^x / Σ e^x. dx = p ⊙ (g - Σ g p): README, "The softmax's Jacobian"."""
        p = numerics.softmax(self.data, axis)
        return _record(p, (self, lambda g: p * (g - (g * p).sum(axis=axis, keepdims=True))))

    def log_softmax(self, axis: int = -1) -> Variable:
        out = numerics.log_softmax(self.data, axis)
        p = np.exp(out)
        return _record(out, (self, lambda g: g - p * g.sum(axis=axis, keepdims=True)))

    def cross_entropy(
        self, targets: Any, *, ignore_index: int = -100, reduction: numerics.Reduction = "mean"
    ) -> Variable:
        """-log softmax(self)[target] in nats. self: logits (..., V); targets: integers (...).

        Arguments, defaults and errors are `numerics.cross_entropy`'s. The gradient with respect
        to the logits is softmax - one-hot.
        """
        targets = np.asarray(targets)
        losses = numerics.cross_entropy(
            self.data, targets, ignore_index=ignore_index, reduction=reduction
        )
        keep = targets != ignore_index  # (...)
        slope = numerics.softmax(self.data)  # (..., V)
        rows = np.where(keep, targets, 0)[..., None]  # (..., 1)
        at_target = np.take_along_axis(slope, rows, axis=-1) - 1.0
        np.put_along_axis(slope, rows, at_target, axis=-1)
        slope *= keep[..., None] / (keep.sum() if reduction == "mean" else 1)
        return _record(losses, (self, lambda g: slope * (g[..., None] if g.ndim else g)))

    def layer_norm(
        self, weight: Variable | None = None, bias: Variable | None = None, eps: float = 1e-5
    ) -> Variable:
        """(x - mean) / sqrt(var + eps) · weight + bias over the last axis (Ba et al. 2016).

        weight, bias: (D,) or None. Raises ValueError for eps <= 0, or another shape than (D,).
        """
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps}")
        for part in (weight, bias):
            if part is not None and part.shape != self.shape[-1:]:
                raise ValueError(
                    f"weight and bias must have shape {self.shape[-1:]}, got {part.shape}"
                )
        centred = self.data - self.data.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
        out = centred / scale  # (..., D)

        def rule(g: _Array) -> _Array:
            # Less its own mean, and less its part along the output: what the norm cannot pass on.
            along = (g * out).mean(axis=-1, keepdims=True)
            return (g - g.mean(axis=-1, keepdims=True) - out * along) / scale

        normed = _record(out, (self, rule))
        normed = normed if weight is None else normed * weight
        return normed if bias is None else normed + bias

    # --- helpers -----------------------------------------------------------------------------

    def _operand(self, other: Any) -> Variable:
        """The other side of an operation; a plain number takes this side's dtype."""
        if isinstance(other, Variable):
            return other
        return Variable(np.asarray(other, self.dtype) if isinstance(other, (int, float)) else other)

    def _map(self, out: _Array, slope: Callable[[], Any]) -> Variable:
        """A function applied to each number alone: its Jacobian is diagonal."""
        return _record(out, (self, lambda g: g * slope()))

    def _axes(self, axis: _Axis) -> tuple[int, ...]:
        one = not isinstance(axis, (tuple, type(None)))
        axes = range(self.ndim) if axis is None else (operator.index(axis),) if one else axis
        found = tuple(a % self.ndim for a in axes if -self.ndim <= a < self.ndim)
        if len(found) != len(axes) or len(set(found)) != len(found):
            raise ValueError(f"axis {axis} is not there, or twice, in shape {self.shape}")
        return found


def _record(data: _Array, *links: tuple[Variable, _Rule]) -> Variable:
    """A new variable, and how its gradient reaches those of its sources that want one."""
    out = Variable(data)
    out._links = tuple((source, rule) for source, rule in links if source.requires_grad)
    out.requires_grad = bool(out._links)
    return out


def _sum_to(gradient: _Array, source: Variable) -> _Array:
    """The transpose of broadcasting: one number was used in many places, so add up what they say.

    gradient: of the broadcast shape. Returns it summed to the source's shape.
    """
    new = gradient.ndim - source.ndim
    stretched = tuple(i + new for i, n in enumerate(source.shape) if n == 1)
    return gradient.sum(axis=(*range(new), *stretched), keepdims=True).reshape(source.shape)


def _kept(gradient: _Array, axes: tuple[int, ...], keepdims: bool) -> _Array:
    """The gradient of a reduction with the reduced axes back in place, of size 1."""
    return gradient if keepdims else np.expand_dims(gradient, axes)


def _inputs_first(output: Variable) -> list[Variable]:
    """All variables that the output was computed from and that require gradients, sources before
    results. A loop with its own stack: deep graphs exceed Python's recursion limit.
    """
    ordered: list[Variable] = []
    seen: set[int] = set()
    stack: list[tuple[Variable, bool]] = [(output, False)]
    while stack:
        variable, sources_done = stack.pop()
        if sources_done:
            ordered.append(variable)
        elif id(variable) not in seen:
            seen.add(id(variable))
            stack.append((variable, True))
            stack.extend((source, False) for source, _ in variable._links)
    return ordered
