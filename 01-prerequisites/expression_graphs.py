"""Random expressions, computed by our engine and by PyTorch: how we know our gradients are right.

A hand-picked test checks the cases that its author thought of. This module makes up programs: some
leaves of random shapes, then a dozen operations drawn from `OPERATIONS`, each applied to earlier
results wherever its shapes allow. The same program runs on `Variable`s and on torch tensors in
float64; results and the gradients of all leaves must agree. Broadcasting, repeated use of one
value, empty paths and odd axes all occur without anybody having thought of them.

`numeric_gradient` is the second opinion, which knows no calculus at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from autograd_engine import Variable

Ours = Callable[..., Variable]
Theirs = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of both libraries, and how to make up its settings.

    arity: how many earlier results it takes. settings: (rng, the inputs' arrays) -> keyword
    arguments for both, or None where the inputs do not suit. smooth: whether it has no kinks,
    which finite differences need.
    """

    arity: int
    ours: Ours
    theirs: Theirs
    settings: Callable[..., dict[str, Any] | None] = lambda rng, *inputs: {}
    smooth: bool = True


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """Apply an operation to the results with these numbers; leaves come first."""

    name: str
    inputs: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ExpressionGraph:
    """Leaves, instructions, and the weights whose product with the unused results is the loss."""

    leaves: tuple[NDArray[np.float64], ...]
    instructions: tuple[Instruction, ...]
    weights: dict[int, NDArray[np.float64]]


def _axis(rng: np.random.Generator, x: NDArray[Any]) -> dict[str, Any] | None:
    return {"axis": int(rng.integers(-x.ndim, x.ndim))} if x.ndim else None


def _some_axes(rng: np.random.Generator, x: NDArray[Any]) -> dict[str, Any] | None:
    if not x.ndim:
        return None
    axes = rng.permutation(x.ndim)[: rng.integers(1, x.ndim + 1)]
    return {"axis": tuple(int(a) for a in axes), "keepdims": bool(rng.integers(2))}


def _positive(rng: np.random.Generator, *inputs: NDArray[Any]) -> dict[str, Any] | None:
    return {} if inputs[-1].min() > 0.1 else None


def _broadcastable(rng: np.random.Generator, *inputs: NDArray[Any]) -> dict[str, Any] | None:
    try:
        np.broadcast_shapes(*(x.shape for x in inputs))
    except ValueError:
        return None
    return {}


def _divisible(rng: np.random.Generator, a: NDArray[Any], b: NDArray[Any]) -> dict[str, Any] | None:
    return _broadcastable(rng, a, b) if np.abs(b).min() > 0.1 else None


def _matrices(rng: np.random.Generator, a: NDArray[Any], b: NDArray[Any]) -> dict[str, Any] | None:
    if not (a.ndim and b.ndim) or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        return None
    return _broadcastable(rng, a[..., :1, :1], b[..., :1, :1]) if min(a.ndim, b.ndim) > 1 else {}


def _order(rng: np.random.Generator, x: NDArray[Any]) -> dict[str, Any]:
    return {"axes": tuple(int(a) for a in rng.permutation(x.ndim))}


def _new_shape(rng: np.random.Generator, x: NDArray[Any]) -> dict[str, Any]:
    sizes = [n for n in x.shape if n > 1]
    cut = int(rng.integers(0, len(sizes) + 1))
    merged = [int(np.prod(sizes[:cut], dtype=int)), *sizes[cut:]]
    return {"shape": tuple(merged)}


def _wider(rng: np.random.Generator, x: NDArray[Any]) -> dict[str, Any] | None:
    if x.ndim > 3:
        return None
    return {"shape": (int(rng.integers(1, 4)), *(n if n > 1 else 3 for n in x.shape))}


def _rows(rng: np.random.Generator, x: NDArray[Any]) -> dict[str, Any] | None:
    if not x.ndim:
        return None
    shape = (3,) if x.ndim > 3 else tuple(int(n) for n in rng.integers(1, 4, size=2))
    return {"key": rng.integers(0, x.shape[0], size=shape)}


def _slice(rng: np.random.Generator, x: NDArray[Any]) -> dict[str, Any] | None:
    return {"stop": max(1, x.shape[-1] - int(rng.integers(2)))} if x.ndim else None


def _mask(rng: np.random.Generator, x: NDArray[Any]) -> dict[str, Any]:
    return {"mask": rng.random(x.shape[-2:]) < 0.3, "value": float(rng.normal())}


def _same_but(rng: np.random.Generator, *inputs: NDArray[Any]) -> dict[str, Any] | None:
    same = inputs[0].ndim and len({x.shape for x in inputs}) == 1
    return {"axis": int(rng.integers(inputs[0].ndim))} if same else None


def _targets(rng: np.random.Generator, x: NDArray[Any]) -> dict[str, Any] | None:
    if x.ndim < 2:
        return None
    targets = rng.integers(0, x.shape[-1], size=x.shape[:-1])
    targets[rng.random(targets.shape) < 0.2] = -100
    targets.flat[0] = 0  # one counts at least: the mean over none is NaN
    return {"targets": targets, "reduction": str(rng.choice(["mean", "sum", "none"]))}


def _norm_inputs(rng: np.random.Generator, *inputs: NDArray[Any]) -> dict[str, Any] | None:
    x, weight, bias = inputs
    fits = x.ndim and x.shape[-1] > 1 and weight.shape == bias.shape == x.shape[-1:]
    return {"eps": 10.0 ** -float(rng.integers(1, 4))} if fits else None


def _their_cross_entropy(x: Tensor, targets: NDArray[Any], reduction: str) -> Tensor:
    wanted = torch.as_tensor(targets)
    return F.cross_entropy(x.movedim(-1, 1), wanted, reduction=reduction)


def _operations() -> dict[str, Operation]:
    return {
        "neg": Operation(arity=1, ours=lambda x: -x, theirs=lambda x: -x),
        "exp": Operation(arity=1, ours=Variable.exp, theirs=torch.exp),
        "log": Operation(arity=1, ours=Variable.log, theirs=torch.log, settings=_positive),
        "sqrt": Operation(arity=1, ours=Variable.sqrt, theirs=torch.sqrt, settings=_positive),
        "sin": Operation(arity=1, ours=Variable.sin, theirs=torch.sin),
        "tanh": Operation(arity=1, ours=Variable.tanh, theirs=torch.tanh),
        "sigmoid": Operation(arity=1, ours=Variable.sigmoid, theirs=torch.sigmoid),
        "relu": Operation(arity=1, ours=Variable.relu, theirs=torch.relu, smooth=False),
        "abs": Operation(arity=1, ours=Variable.abs, theirs=torch.abs, smooth=False),
        "gelu": Operation(arity=1, ours=Variable.gelu, theirs=F.gelu),
        "gelu by tanh": Operation(
            arity=1,
            ours=lambda x: x.gelu("tanh"),
            theirs=lambda x: F.gelu(x, approximate="tanh"),
        ),
        "square": Operation(arity=1, ours=lambda x: x**2, theirs=lambda x: x**2),
        "cube": Operation(arity=1, ours=lambda x: x**3, theirs=lambda x: x**3),
        "inverse": Operation(
            arity=1, ours=lambda x: 1.0 / x, theirs=lambda x: 1.0 / x, settings=_positive
        ),
        "add": Operation(
            arity=2, ours=lambda a, b: a + b, theirs=lambda a, b: a + b, settings=_broadcastable
        ),
        "sub": Operation(
            arity=2, ours=lambda a, b: a - b, theirs=lambda a, b: a - b, settings=_broadcastable
        ),
        "mul": Operation(
            arity=2, ours=lambda a, b: a * b, theirs=lambda a, b: a * b, settings=_broadcastable
        ),
        "div": Operation(
            arity=2, ours=lambda a, b: a / b, theirs=lambda a, b: a / b, settings=_divisible
        ),
        "maximum": Operation(
            arity=2,
            ours=Variable.maximum,
            theirs=torch.maximum,
            settings=_broadcastable,
            smooth=False,
        ),
        "matmul": Operation(
            arity=2, ours=lambda a, b: a @ b, theirs=lambda a, b: a @ b, settings=_matrices
        ),
        "sum": Operation(arity=1, ours=Variable.sum, theirs=torch.sum, settings=_some_axes),
        "mean": Operation(arity=1, ours=Variable.mean, theirs=torch.mean, settings=_some_axes),
        "var": Operation(
            arity=1,
            ours=Variable.var,
            theirs=lambda x, axis, keepdims: x.var(axis, correction=0, keepdim=keepdims),
            settings=_some_axes,
        ),
        "max": Operation(
            arity=1,
            ours=Variable.max,
            theirs=lambda x, axis, keepdims: x.amax(axis, keepdim=keepdims),
            settings=_some_axes,
            smooth=False,
        ),
        "log_sum_exp": Operation(
            arity=1,
            ours=Variable.log_sum_exp,
            theirs=lambda x, axis: x.logsumexp(axis),
            settings=_axis,
        ),
        "reshape": Operation(
            arity=1,
            ours=lambda x, shape: x.reshape(*shape),
            theirs=lambda x, shape: x.reshape(shape),
            settings=_new_shape,
        ),
        "transpose": Operation(
            arity=1,
            ours=lambda x, axes: x.transpose(*axes),
            theirs=lambda x, axes: x.permute(axes),
            settings=_order,
        ),
        "broadcast": Operation(
            arity=1,
            ours=lambda x, shape: x.broadcast_to(*shape),
            theirs=lambda x, shape: x.broadcast_to(shape),
            settings=_wider,
        ),
        "rows": Operation(
            arity=1,
            ours=lambda x, key: x[key],
            theirs=lambda x, key: x[torch.as_tensor(key)],
            settings=_rows,
        ),
        "slice": Operation(
            arity=1,
            ours=lambda x, stop: x[..., :stop],
            theirs=lambda x, stop: x[..., :stop],
            settings=_slice,
        ),
        "masked_fill": Operation(
            arity=1,
            ours=Variable.masked_fill,
            theirs=lambda x, mask, value: x.masked_fill(torch.as_tensor(mask), value),
            settings=_mask,
        ),
        "concatenate": Operation(
            arity=2,
            ours=lambda a, b, axis: Variable.concatenate([a, b], axis),
            theirs=lambda a, b, axis: torch.cat([a, b], axis),
            settings=_same_but,
        ),
        "softmax": Operation(arity=1, ours=Variable.softmax, theirs=torch.softmax, settings=_axis),
        "log_softmax": Operation(
            arity=1, ours=Variable.log_softmax, theirs=torch.log_softmax, settings=_axis
        ),
        "cross_entropy": Operation(
            arity=1, ours=Variable.cross_entropy, theirs=_their_cross_entropy, settings=_targets
        ),
        "layer_norm": Operation(
            arity=3,
            ours=Variable.layer_norm,
            theirs=lambda x, w, b, eps: F.layer_norm(x, x.shape[-1:], w, b, eps),
            settings=_norm_inputs,
        ),
    }


OPERATIONS: dict[str, Operation] = _operations()


def random_graph(seed: int, *, length: int = 12, smooth: bool = False) -> ExpressionGraph:
    """A program of `length` operations; of those without kinks alone, if `smooth`.

    A result that leaves [-50, 50] is not used: there an honest difference in the last digit
    would grow past any tolerance. Raises ValueError for a length below 1.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    rng = np.random.default_rng(seed)
    base = rng.integers(1, 5, size=rng.integers(1, 4))
    shapes = [tuple(base)]
    for _ in range(3):  # shapes that broadcast with the first: some axes 1, some left out
        ones = np.where(rng.random(len(base)) < 0.4, 1, base)
        shapes.append(tuple(ones[rng.integers(0, len(base)) :]))
    shapes += [(base[-1], int(rng.integers(1, 5))), (base[-1],), (base[-1],)]
    leaves = tuple(rng.normal(size=shape) for shape in shapes)
    values = list(leaves)
    names = [name for name, operation in OPERATIONS.items() if operation.smooth or not smooth]
    program: list[Instruction] = []
    while len(program) < length:
        name = names[rng.integers(len(names))]
        operation = OPERATIONS[name]
        inputs = tuple(int(i) for i in rng.integers(0, len(values), size=operation.arity))
        settings = operation.settings(rng, *(values[i] for i in inputs))
        if settings is None:
            continue
        result = operation.ours(*(Variable(values[i]) for i in inputs), **settings).data
        if result.size > 400 or not np.abs(result).max() < 50:
            continue
        program.append(Instruction(name=name, inputs=inputs, settings=settings))
        values.append(result)
    used = {i for instruction in program for i in instruction.inputs}
    unused = [i for i in range(len(leaves), len(values)) if i not in used]
    weights = {i: rng.normal(size=values[i].shape) for i in unused}
    return ExpressionGraph(leaves=leaves, instructions=tuple(program), weights=weights)


def engine_loss(graph: ExpressionGraph, leaves: list[Variable]) -> Variable:
    """The graph's loss, one number, on our engine."""
    values = list(leaves)
    for step in graph.instructions:
        inputs = (values[i] for i in step.inputs)
        values.append(OPERATIONS[step.name].ours(*inputs, **step.settings))
    parts = [(values[i] * weight).sum() for i, weight in graph.weights.items()]
    return sum(parts[1:], parts[0])


def torch_loss(graph: ExpressionGraph, leaves: list[Tensor]) -> Tensor:
    """The same loss on torch tensors."""
    values = list(leaves)
    for step in graph.instructions:
        inputs = (values[i] for i in step.inputs)
        values.append(OPERATIONS[step.name].theirs(*inputs, **step.settings))
    parts = [(values[i] * torch.as_tensor(weight)).sum() for i, weight in graph.weights.items()]
    return sum(parts[1:], parts[0])


def disagreement(graph: ExpressionGraph) -> float:
    """The largest difference between both libraries' losses and leaf gradients, each divided by
    1 + the size of what it belongs to.
    """
    ours = [Variable(leaf, requires_grad=True) for leaf in graph.leaves]
    theirs = [torch.tensor(leaf, requires_grad=True) for leaf in graph.leaves]
    loss, expected = engine_loss(graph, ours), torch_loss(graph, theirs)
    worst = abs(loss.item() - expected.item()) / (1 + abs(expected.item()))
    if loss.requires_grad:  # else every path ended in a mask
        loss.backward()
        expected.backward()
    for a, b in zip(ours, theirs, strict=True):
        if (a.grad is None) != (b.grad is None):
            return float("inf")
        if a.grad is not None and b.grad is not None:
            wanted = b.grad.numpy()
            worst = max(worst, np.abs(a.grad - wanted).max() / (1 + np.abs(wanted).max()))
    return float(worst)


def numeric_gradient(
    function: Callable[[NDArray[Any]], float], x: NDArray[Any], step: float = 1e-5
) -> NDArray[np.float64]:
    """(f(x + h e_i) - f(x - h e_i)) / 2h for every place i: x's shape.

    Its error is of order h² from the curve and ε/h from rounding (README, "A second opinion").
    Raises ValueError for a step that is not positive.
    """
    if not step > 0:
        raise ValueError(f"step must be positive, got {step}")
    x = np.array(x, dtype=np.float64)
    gradient = np.empty_like(x)
    for place in np.ndindex(x.shape):
        kept = x[place]
        x[place] = kept + step
        above = function(x)
        x[place] = kept - step
        gradient[place] = (above - function(x)) / (2 * step)
        x[place] = kept
    return gradient
