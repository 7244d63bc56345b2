"""The shape tracer finds wrong comments, and only those."""

from __future__ import annotations

import importlib.util
import sys
import textwrap

import numpy as np
import pytest
import torch

from shape_tracer import ShapeCommentError, check_shapes, parse_comment


@pytest.fixture
def module(tmp_path):
    """Import a module from its source."""
    count = 0

    def load(source):
        nonlocal count
        count += 1
        path = tmp_path / f"traced_{count}.py"
        path.write_text("import torch\n" + textwrap.dedent(source))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded

    return load


@pytest.mark.parametrize(
    ("comment", "shapes"),
    [
        ("# (B, H, T, K)", [[("B", "H", "T", "K")]]),
        ("# (B, T, 3*D), rotated", [[("B", "T", "3*D")]]),
        ("# (..., D): why", [[("...", "D")]]),
        ("# (B,)", [[("B",)]]),
        ("# (B)", [[("B",)]]),
        ("# ()", [[()]]),
        ("# scalar", [[()]]),
        ("# (B, T), (B, S) bool", [[("B", "T")], [("B", "S")]]),
        ("# (T,) or (B, T)", [[("T",), ("B", "T")]]),
        ("# (B, (T+1)*2)", [[("B", "(T+1)*2")]]),
        ("# (d_model, T')", [[("d_model", "T'")]]),
        ("# (optional)", None),
        ("# (see below)", None),
        ("# (T - S) is what remains", None),
        ("# the shape is (B, T)", None),
        ("# (a word, B)", None),
        ("# noqa: E501 (B, T)", None),
        ("", None),
    ],
)
def test_what_a_comment_says(comment, shapes):
    assert parse_comment(comment) == shapes


GOOD = """
    def f(
        x,  # (B, T, D)
        w,  # (D, 3*D)
        *,
        keep=None,  # (B, T)
    ):
        y = x @ w  # (B, T, 3*D)
        q, k, v = y.chunk(3, dim=-1)  # (B, T, D)
        a, b = q[:, 0], k[0]  # (B, D), (T, D)
        both = torch.cat(
            [q, k],
            dim=1,
        )  # (B, 2*T, D)
        total = both.sum()  # scalar
        total += 1  # ()
        mean = total.item()  # scalar
        half = y[..., : y.shape[-1] // 3]  # (..., D)
        if mean is None:
            never = x  # (T, T, T, T)
        for t in range(1, 4):
            prefix = x[:, :t]  # (B, t, D)
        rows = [row for row in x]  # (T, D)
        return q, b  # (B, T, D), (T, D)
"""


def test_true_comments_pass_and_are_counted(module):
    f = module(GOOD).f
    with check_shapes(f) as report:
        f(torch.ones(2, 5, 3), torch.ones(3, 9))
    assert report.checked == 13
    assert [place.rpartition(":")[2] for place in report.unchecked] == ["7", "21"]
    assert sys.gettrace() is None


@pytest.mark.parametrize(
    ("right", "wrong", "found"),
    [
        ("# (D, 3*D)", "# (3*D, D)", "3*D is 9 here, not 3|3*D cannot be 3|3\\*D"),
        ("# (B, T, 3*D)", "# (B, T, 2*D)", r"y has shape \(2, 5, 9\).*2\*D is 6 here, not 9"),
        ("# (B, T, D)\n        a", "# (T, B, D)\n        a", "q has shape"),
        ("# (B, D), (T, D)", "# (B, D), (B, D)", r"b has shape \(5, 3\)"),
        ("# (B, D), (T, D)", "# (B, D), (T, D), (T, D)", "2 values, 3 shapes"),
        ("# (B, 2*T, D)", "# (B, T+2, D)", r"T\+2 is 7 here, not 10"),
        ("# scalar", "# (1,)", r"has shape \(\).*0 dimensions"),
        ("# ()", "# (B,)", r"total has shape \(\)"),
        ("# (..., D)", "# (..., T, B)", "half has shape"),
        ("# (B, t, D)", "# (B, T, D)", "T is 5 here, not 1"),
        ("# (T, D)\n        return", "# (B, D)\n        return", r"rows has shape|rows\[0\]"),
        ("# (B, T, D), (T, D)", "# (B, T, D), (D, T)", r"the result\[1\] has shape \(5, 3\)"),
    ],
)
def test_false_comments_fail_with_their_place(module, right, wrong, found):
    assert GOOD.count(right) >= 1
    f = module(GOOD.replace(right, wrong, 1)).f
    with pytest.raises(ShapeCommentError, match=found) as failure, check_shapes(f):
        f(torch.ones(2, 5, 3), torch.ones(3, 9))
    line = GOOD[: GOOD.index(right)].count("\n") + 2
    assert f":{line}: " in str(failure.value)
    assert sys.gettrace() is None


def test_letters_are_bound_anew_in_every_call_but_sizes_hold(module):
    f = module("""
        def f(x):
            y = x + 1  # (B, D)
            return y
    """).f
    with check_shapes(f) as report:
        f(torch.ones(2, 3))
        f(torch.ones(5, 7))
    assert report.checked == 1
    with (
        pytest.raises(ShapeCommentError, match="B is 2 here, not 5"),
        check_shapes(f, sizes={"B": 2}),
    ):
        f(torch.ones(5, 7))


def test_products_wait_for_their_letters(module):
    source = """
        def f(x, h):
            y = x.flatten(1)  # (B, H*K)
            z = y.view(y.shape[0], h, -1)  # (B, H, K)
            return z
    """
    f = module(source).f
    with check_shapes(f):
        f(torch.ones(2, 12), 3)
    g = module(source.replace("H*K", "H*K*2")).f
    with pytest.raises(ShapeCommentError, match=r"H\*K\*2 is 24 here, not 12"), check_shapes(g):
        g(torch.ones(2, 12), 3)


def test_classes_properties_attributes_nested_and_decorated_functions(module):
    source = """
        class Layer(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones(3, 4))  # (D, F)

            @torch.no_grad()
            def forward(self, x):
                def double(y):
                    z = y * 2  # (B, F)
                    return z
                self.last = double(x @ self.weight)  # (B, F)
                self.parts = {}
                self.parts["x"] = x  # (F, F, F)
                return self.last

            @property
            def transposed(self):
                return self.weight.T  # (F, D)

            @staticmethod
            def ones(n):
                return torch.ones(n)  # (n,)
    """
    layer = module(source).Layer
    with check_shapes(layer) as report:
        made = layer()
        made(torch.ones(2, 3))
        assert made.transposed is not None
        layer.ones(4)
    assert report.checked == 5
    wrong = module(source.replace("z = y * 2  # (B, F)", "z = y * 2  # (B, F, F)")).Layer
    with pytest.raises(ShapeCommentError, match="z has shape"), check_shapes(wrong.forward):
        wrong()(torch.ones(2, 3))


def test_the_backward_of_an_autograd_function_is_seen(module):
    double = module("""
        class Double(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * 2  # (B, D)

            @staticmethod
            def backward(ctx, grad):
                return grad * 2  # (D, B, B)
    """).Double
    x = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(ShapeCommentError, match="2 dimensions"), check_shapes(double):
        double.apply(x).sum().backward()


def test_a_statement_that_raises_is_not_compared(module):
    f = module("""
        def f(x):
            y = x  # (B,)
            try:
                y = x @ torch.ones(9)  # (B, B, B)
            except RuntimeError:
                y = x  # (B,)
            return y
    """).f
    with check_shapes(f) as report:
        f(torch.ones(4))
    assert report.checked == 2


def test_numpy_lists_of_numbers_none_and_things_without_a_shape(module):
    f = module("""
        def f(a, other):
            b = a.T  # (T, B)
            ids = [1, 2, 3]  # (T,)
            nothing = None  # (B, B, B)
            thing = other  # (B, T)
            return b
    """).f
    with check_shapes(f) as report:
        f(np.ones((2, 3)), None)
    assert report.checked == 2
    with pytest.raises(ShapeCommentError, match="thing is a str: no shape"), check_shapes(f):
        f(np.ones((2, 3)), "text")


def test_what_cannot_be_checked_is_an_error(module):
    m = module("""
        def plain(x):
            return x

        def quiet(x):
            if x is None:
                y = x  # (B,)
            return x
    """)
    with pytest.raises(ValueError, match="no shape comments in plain"), check_shapes(m.plain):
        pass
    with (
        pytest.raises(ShapeCommentError, match="no line with a shape comment ran"),
        check_shapes(m.quiet),
    ):
        m.quiet(torch.ones(2))


def test_the_block_s_own_error_is_not_hidden(module):
    f = module("""
        def f(x):
            y = x  # (B, B)
            raise KeyError("mine")
    """).f
    with pytest.raises(KeyError, match="mine"), check_shapes(f):
        f(torch.ones(2))
    assert sys.gettrace() is None
