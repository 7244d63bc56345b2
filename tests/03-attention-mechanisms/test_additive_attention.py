"""The attentions of 2014 and 2015 against their formulas, written out place by place."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from additive_attention import (
    AdditiveAttention,
    LuongAttention,
    alignment_error_rate,
    effective_places,
    hard_alignment,
    mix_memory,
    weights_entropy,
)
from shape_tracer import check_shapes

B, S, D, M = 3, 7, 5, 6


def step(d_query=D, d_memory=M, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(B, d_query, generator=generator, dtype=torch.float64)
    memory = torch.randn(B, S, d_memory, generator=generator, dtype=torch.float64)
    keep = torch.arange(S) < torch.tensor([[7], [4], [1]])
    return query, memory, keep


def variants():
    torch.manual_seed(1)
    return {
        "additive": AdditiveAttention(D, M, d_hidden=9).double(),
        "general": LuongAttention(D, M, score="general").double(),
        "concat": LuongAttention(D, M, score="concat").double(),
        "dot": LuongAttention(M, M, score="dot").double(),
    }


def score_by_hand(name, module, s, h):
    """The score of one query and one place, from the papers' formulas."""
    if name == "dot":
        return s @ h
    if name == "general":
        return h @ (module.between.weight @ s)
    if name == "concat":
        return module.score.weight[0] @ torch.tanh(module.joint.weight @ torch.cat((s, h)))
    inner = module.query_proj.weight @ s + module.query_proj.bias + module.memory_proj.weight @ h
    return module.score.weight[0] @ torch.tanh(inner)


@pytest.mark.parametrize("name", ["additive", "general", "concat", "dot"])
def test_equals_the_formula_place_by_place(name):
    module = variants()[name]
    query, memory, keep = step(M if name == "dot" else D)
    context, weights = module(query, memory, keep)
    for b in range(B):
        real = int(keep[b].sum())
        terms = [
            torch.exp(score_by_hand(name, module, query[b], memory[b, j])) for j in range(real)
        ]
        expected = torch.stack(terms) / sum(terms)
        torch.testing.assert_close(weights[b, :real], expected, rtol=1e-10, atol=1e-12)
        assert (weights[b, real:] == 0).all()
        mixed = sum(expected[j] * memory[b, j] for j in range(real))
        torch.testing.assert_close(context[b], mixed, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["additive", "general", "concat", "dot"])
def test_every_parameter_and_input_gets_the_right_gradient(name):
    module = variants()[name]
    query, memory, keep = step(M if name == "dot" else D)
    keep[1, 1] = False  # a hole in the middle too

    def output(*tensors):
        return torch.func.functional_call(
            module, dict(zip(names, tensors[2:], strict=True)), (tensors[0], tensors[1], keep)
        )[0]

    names = [n for n, _ in module.named_parameters()]
    inputs = [t.detach().requires_grad_() for t in (query, memory, *module.parameters())]
    assert torch.autograd.gradcheck(output, inputs)


@pytest.mark.parametrize("name", ["additive", "general", "concat", "dot"])
def test_permuting_the_memory_permutes_the_weights_and_leaves_the_context(name):
    module = variants()[name]
    query, memory, keep = step(M if name == "dot" else D)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    context, weights = module(query, memory, keep)
    context2, weights2 = module(query, memory[:, order], keep[:, order])
    torch.testing.assert_close(context2, context)
    torch.testing.assert_close(weights2, weights[:, order])


def test_concat_is_the_additive_score_with_its_matrices_side_by_side():
    torch.manual_seed(2)
    concat = LuongAttention(D, M, score="concat").double()
    additive = AdditiveAttention(D, M).double()
    with torch.no_grad():
        additive.query_proj.weight.copy_(concat.joint.weight[:, :D])
        additive.query_proj.bias.zero_()
        additive.memory_proj.weight.copy_(concat.joint.weight[:, D:])
        additive.score.weight.copy_(concat.score.weight)
    for ours, theirs in zip(additive(*step()), concat(*step()), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert additive.attend_before
    assert not concat.attend_before


def test_a_memory_of_nothing_but_padding_gives_zero_and_finite_gradients():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        module = LuongAttention(M, M, score="dot")
        query, memory, keep = step(M)
        keep[2] = False
        query, memory = query.to(dtype).requires_grad_(), memory.to(dtype).requires_grad_()
        context, weights = module(query, memory, keep)
        assert context.dtype == weights.dtype == dtype
        assert (weights[2] == 0).all()
        assert (context[2] == 0).all()
        context.float().sum().backward()
        assert query.grad is not None
        assert memory.grad is not None
        assert torch.isfinite(query.grad).all()
        assert torch.isfinite(memory.grad).all()


def test_alignment_error_rate_worked_by_hand():
    found = [{(0, 0), (1, 1)}]
    assert alignment_error_rate(found, [{(0, 0), (2, 1)}]) == 0.5
    # Sure one, possible one more: A = 2, S = 1; both found are possible, one is sure.
    assert alignment_error_rate(found, [{(0, 0)}], [{(1, 1)}]) == 0.0
    assert alignment_error_rate(found, [{(5, 5)}]) == 1.0


pairs = st.sets(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1)


@given(st.lists(st.tuples(pairs, pairs), min_size=1, max_size=4))
def test_with_one_kind_of_pair_it_is_one_minus_f1(sentences):
    found, true = [a for a, _ in sentences], [t for _, t in sentences]
    rate = alignment_error_rate(found, true)
    right = sum(len(a & t) for a, t in sentences)
    precision, recall = right / sum(map(len, found)), right / sum(map(len, true))
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    assert rate == pytest.approx(1 - f1)
    assert alignment_error_rate(true, true) == 0.0


def test_the_hard_alignment_reads_words_only():
    weights = torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.3, 0.3, 0.4]])
    assert hard_alignment(weights, 3, 3) == {(2, 0), (0, 1), (2, 2)}
    assert hard_alignment(weights, 2, 2) == {(1, 0), (0, 1)}  # the last column is an end mark
    assert hard_alignment(weights, 0, 2) == set()
    with pytest.raises(ValueError, match="must cover"):
        hard_alignment(weights, 4, 2)


def test_entropy_of_weights():
    weights = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.0] * 4])
    expected = torch.tensor([math.log(4), 0.0, 0.0])
    torch.testing.assert_close(weights_entropy(weights), expected)
    assert effective_places(weights[:1]) == pytest.approx(4.0)


def test_bad_input_is_refused():
    query, memory, keep = step()
    module = AdditiveAttention(D, M)
    with pytest.raises(ValueError, match="query has shape"):
        module(query[:, :4], memory, keep)
    with pytest.raises(ValueError, match="memory has shape"):
        module(query, memory[:2], keep)
    with pytest.raises(ValueError, match="keep has shape"):
        module(query, memory, keep[:, :3])
    with pytest.raises(TypeError, match="must be bool"):
        module(query, memory, keep.float())
    with pytest.raises(ValueError, match="needs d_query = d_memory"):
        LuongAttention(4, 5, score="dot")
    with pytest.raises(ValueError, match="must be 'dot'"):
        LuongAttention(4, 5, score="cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="d_hidden is 0"):
        AdditiveAttention(4, 5, d_hidden=0)
    with pytest.raises(ValueError, match="as many sentences"):
        alignment_error_rate([set()], [])
    with pytest.raises(ValueError, match="nothing to compare"):
        alignment_error_rate([set()], [set()])


def test_shape_comments():
    modules = (AdditiveAttention, LuongAttention, mix_memory)
    with check_shapes(*modules) as report:
        for name, module in variants().items():
            module(*step(M if name == "dot" else D))
    assert report.checked >= 8, report.unchecked
