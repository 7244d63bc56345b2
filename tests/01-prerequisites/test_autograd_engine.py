"""The engine against PyTorch in float64, against finite differences, and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autograd_engine import Variable
from expression_graphs import (
    OPERATIONS,
    disagreement,
    engine_loss,
    numeric_gradient,
    random_graph,
    torch_loss,
)


@pytest.mark.parametrize("start", range(0, 1000, 100))
def test_a_thousand_random_graphs_agree_with_torch(start):
    """Loss and every leaf's gradient, to 1e-10."""
    worst = {seed: disagreement(random_graph(seed)) for seed in range(start, start + 100)}
    wrong = {seed: error for seed, error in worst.items() if not error < 1e-10}
    assert not wrong


@given(st.integers(1000, 10**9), st.integers(1, 40))
def test_graphs_of_any_length_agree_with_torch(seed, length):
    assert disagreement(random_graph(seed, length=length)) < 1e-10


def test_every_operation_occurs_in_the_graphs():
    names = [step.name for seed in range(1000) for step in random_graph(seed).instructions]
    assert {name: names.count(name) >= 30 for name in OPERATIONS} == dict.fromkeys(OPERATIONS, True)


def test_a_wrong_gradient_is_a_disagreement(monkeypatch):
    """The comparison itself can fail: a tanh whose slope forgets the square."""
    monkeypatch.setitem(
        OPERATIONS,
        "tanh",
        type(OPERATIONS["tanh"])(
            arity=1,
            ours=lambda x: x._map(np.tanh(x.data), lambda: 1.0 - np.tanh(x.data)),
            theirs=torch.tanh,
        ),
    )
    errors = [disagreement(random_graph(seed)) for seed in range(100)]
    assert sum(error > 1e-3 for error in errors) > 5


@pytest.mark.parametrize("seed", range(25))
def test_smooth_graphs_agree_with_finite_differences(seed):
    graph = random_graph(seed, smooth=True)
    leaves = [Variable(leaf, requires_grad=True) for leaf in graph.leaves]
    loss = engine_loss(graph, leaves)
    if loss.requires_grad:
        loss.backward()
    for place, leaf in enumerate(leaves):

        def value(x, place=place):
            changed = [*graph.leaves[:place], x, *graph.leaves[place + 1 :]]
            return engine_loss(graph, [Variable(x) for x in changed]).item()

        expected = numeric_gradient(value, graph.leaves[place])
        got = np.zeros(leaf.shape) if leaf.grad is None else leaf.grad
        np.testing.assert_allclose(got, expected, atol=1e-6 * (1 + np.abs(expected).max()))


def test_the_torch_side_passes_gradcheck():
    """The reference is itself checked by PyTorch's own finite differences."""
    graph = random_graph(4, smooth=True)
    leaves = [torch.tensor(leaf, requires_grad=True) for leaf in graph.leaves]
    assert torch.autograd.gradcheck(lambda *x: torch_loss(graph, list(x)), leaves)


# --- what graphs do not reach --------------------------------------------------------------------


def test_the_worked_example():
    """The README's graph: f = (x y + sin x)², at x = 2, y = 3."""
    x, y = Variable(2.0, requires_grad=True), Variable(3.0, requires_grad=True)
    f = (x * y + x.sin()) ** 2
    f.backward()
    inner = 6 + np.sin(2.0)
    assert f.item() == pytest.approx(inner**2)
    assert x.grad == pytest.approx(2 * inner * (3 + np.cos(2.0)))
    assert y.grad == pytest.approx(2 * inner * 2)


def test_gradients_add_up_until_they_are_zeroed():
    x = Variable([1.0, 2.0], requires_grad=True)
    for times in (1, 2):
        (3 * x).sum().backward()
        np.testing.assert_array_equal(x.grad, [3.0 * times] * 2)  # type: ignore[arg-type]
    x.zero_grad()
    assert x.grad is None


def test_a_diamond_is_walked_once():
    """Thirty doublings: a walk along every path would take 2^30 steps."""
    x = Variable(1.0, requires_grad=True)
    y = x
    for _ in range(30):
        y = y + y
    y.backward()
    assert x.grad == 2.0**30


def test_graphs_deeper_than_the_recursion_limit():
    x = y = Variable(1.0, requires_grad=True)
    for _ in range(5000):
        y = y + 1.0
    y.backward()
    assert x.grad == 1.0


def test_constants_cost_nothing():
    """What needs no gradient keeps no history."""
    x = Variable([1.0]) * 2.0 + 1.0
    assert not x.requires_grad
    assert x._links == ()
    y = (Variable([1.0], requires_grad=True) * 2.0).detach()
    assert not y.requires_grad


def test_gradient_of_a_vector_output():
    """backward(v) is the vector-Jacobian product vᵀJ."""
    A, v = np.arange(6.0).reshape(2, 3), np.array([5.0, -1.0])
    x = Variable(np.ones(3), requires_grad=True)
    (Variable(A) @ x).backward(v)
    np.testing.assert_allclose(x.grad, v @ A)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "shapes", [((3,), (3,)), ((3,), (3, 2)), ((4, 3), (3,)), ((2, 4, 3), (3,))]
)
def test_products_with_vectors(shapes):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape) for shape in shapes]
    ours = [Variable(a, requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    out, expected = ours[0] @ ours[1], theirs[0] @ theirs[1]
    assert out.shape == tuple(expected.shape)
    (out * out).sum().backward()
    (expected * expected).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.grad, b.grad.numpy(), atol=1e-12)  # type: ignore[arg-type]


def test_numpy_arrays_and_numbers_on_the_left():
    x = Variable([1.0, 2.0], requires_grad=True)
    for out, value in (
        (np.array([3.0, 4.0]) * x, [3.0, 8.0]),
        (2.0 - x, [1.0, 0.0]),
        (2.0 / x, [2.0, 1.0]),
        (np.eye(2) @ x, [1.0, 2.0]),
    ):
        assert isinstance(out, Variable)
        np.testing.assert_allclose(out.data, value)


def test_float32_stays_float32():
    x = Variable(np.ones((2, 3), np.float32), requires_grad=True)
    y = (x * 2.0 + 1).gelu().layer_norm().softmax().log().mean()
    y.backward()
    assert x.grad is not None
    assert (y.dtype, x.grad.dtype) == (np.float32, np.float32)


def test_an_embedding_adds_up_what_its_rows_get():
    table = Variable(np.zeros((4, 2)), requires_grad=True)
    table.embedding(np.array([[1, 3], [1, 1]])).sum().backward()
    np.testing.assert_array_equal(table.grad, [[0, 0], [3, 3], [0, 0], [1, 1]])  # type: ignore[arg-type]


def test_power_zero_and_edges():
    x = Variable([0.0, 2.0], requires_grad=True)
    (x**0).sum().backward()
    np.testing.assert_array_equal(x.grad, [0.0, 0.0])  # type: ignore[arg-type]
    assert Variable([1, 2]).dtype == np.float64
    assert np.isneginf(Variable([0.0]).log().data)
    assert len(Variable([1.0, 2.0])) == 2
    assert "requires_grad=True" in repr(x)


ONE = Variable([[1.0, 2.0]], requires_grad=True)
ANY: Any = ONE  # where a variable must not stand
BAD = {
    "a variable in a variable": (lambda: Variable(ANY), TypeError, "not a Variable"),
    "words": (lambda: Variable(["a"]), TypeError, "real numbers"),
    "complex numbers": (lambda: Variable([1j]), TypeError, "real numbers"),
    "several items": (lambda: ONE.item(), ValueError, "one number"),
    "no gradient anywhere": (lambda: Variable(1.0).backward(), ValueError, "requires a gradient"),
    "backward from an array": (lambda: ONE.backward(), ValueError, "needs a gradient"),
    "gradient of another shape": (lambda: ONE.backward([1.0]), ValueError, "must have shape"),
    "power of an array": (lambda: ONE**ANY, TypeError, "exponent must be a number"),
    "product with a scalar": (lambda: ONE @ 2.0, ValueError, "at least vectors"),
    "inner sizes": (lambda: ONE @ np.ones((3, 1)), ValueError, "equal inner sizes"),
    "unknown gelu": (lambda: ONE.gelu("erf"), ValueError, "approximate must be"),
    "mask of integers": (lambda: ONE.masked_fill([0, 1], 0.0), TypeError, "mask must be bool"),
    "axis out of range": (lambda: ONE.sum(2), ValueError, "axis 2"),
    "axis twice": (lambda: ONE.max((0, -2)), ValueError, "twice"),
    "axes left out": (lambda: ONE.transpose(0), ValueError, "needs all 2 axes"),
    "ids of floats": (lambda: ONE.embedding([0.0]), TypeError, "ids must be integers"),
    "ids too large": (lambda: ONE.embedding([1]), ValueError, r"\[0, 1\), got 1"),
    "ids below zero": (lambda: ONE.embedding([-1]), ValueError, "got -1"),
    "table of one axis": (lambda: ONE[0].embedding([0]), ValueError, r"table \(V, D\)"),
    "nothing to join": (lambda: Variable.concatenate([]), ValueError, "at least one"),
    "target out of range": (lambda: ONE.cross_entropy([2]), ValueError, "targets must lie"),
    "eps of zero": (lambda: ONE.layer_norm(eps=0), ValueError, "eps must be positive"),
    "weight of another width": (lambda: ONE.layer_norm(Variable([1.0])), ValueError, "weight"),
    "graph of nothing": (lambda: random_graph(0, length=0), ValueError, "length must be"),
    "no step": (lambda: numeric_gradient(sum, np.ones(2), 0.0), ValueError, "step must be"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_the_stated_error(case):
    call, error, words = BAD[case]
    with pytest.raises(error, match=words):
        call()
