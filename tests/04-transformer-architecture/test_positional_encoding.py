"""Sinusoids, learned positions, T5's buckets and ALiBi, against transformers and their theorems."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DistilBertConfig, MarianConfig, T5Config
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.distilbert.modeling_distilbert import create_sinusoidal_embeddings
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

from positional_encoding import (
    LearnedPositions,
    T5RelativeBias,
    alibi_bias,
    alibi_slopes,
    relative_position_bucket,
    sinusoidal_encoding,
)


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- sinusoids ------------------------------------------------------------------------------


@pytest.mark.parametrize("d_model", [6, 37, 64])
def test_sinusoids_equal_distilbert(d_model: int) -> None:
    config = DistilBertConfig()
    expected = torch.empty(600, d_model)
    create_sinusoidal_embeddings(config.max_position_embeddings + 88, d_model, expected)
    torch.testing.assert_close(sinusoidal_encoding(600, d_model), expected, rtol=0, atol=1e-6)


def test_sinusoids_equal_marian_after_a_permutation() -> None:
    """Marian keeps all sines, then all cosines; the paper alternates."""
    D, T = 38, 600
    config = MarianConfig(d_model=D, max_position_embeddings=T)
    embedding = MarianSinusoidalPositionalEmbedding(config.max_position_embeddings, D)
    expected = embedding.create_weight()
    ours = sinusoidal_encoding(T, D)
    torch.testing.assert_close(
        torch.cat((ours[:, 0::2], ours[:, 1::2]), dim=1), expected, rtol=0, atol=1e-6
    )
    assert (ours - expected).abs().max() > 1e-2  # the order matters


def test_sinusoids_worked_value() -> None:
    expected = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.8415, 0.5403, 0.0100, 1.0000]])
    torch.testing.assert_close(sinusoidal_encoding(2, 4), expected, rtol=0, atol=6e-5)


@settings(max_examples=50, deadline=None)
@given(
    pairs=st.integers(1, 30),
    start=st.integers(0, 5000),
    step=st.integers(0, 300),
    base=st.floats(2.0, 1e6),
)
def test_moving_by_n_is_one_fixed_rotation(pairs: int, start: int, step: int, base: float) -> None:
    """PE[p + n] = M(n) PE[p], whatever p: the identity that RoPE makes multiplicative."""
    D = 2 * pairs
    table = sinusoidal_encoding(2, D, base=base, start=start, dtype=torch.float64)
    moved = sinusoidal_encoding(2, D, base=base, start=start + step, dtype=torch.float64)
    matrix = torch.zeros(D, D, dtype=torch.float64)
    for i in range(pairs):
        angle = step / base ** (2 * i / D)
        sine, cosine = math.sin(angle), math.cos(angle)
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor(
            [[cosine, sine], [-sine, cosine]], dtype=torch.float64
        )
    torch.testing.assert_close(table @ matrix.t(), moved, rtol=0, atol=1e-9)


def test_sinusoids_can_start_anywhere() -> None:
    whole = sinusoidal_encoding(50, 12)
    torch.testing.assert_close(sinusoidal_encoding(7, 12, start=43), whole[43:], rtol=0, atol=0)
    assert sinusoidal_encoding(3, 4, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"T": -1, "d_model": 4}, "must not be negative, got T=-1"),
        ({"T": 1, "d_model": 4, "start": -2}, "start=-2"),
        ({"T": 1, "d_model": 0}, "d_model must be positive, got 0"),
        ({"T": 1, "d_model": 4, "base": 1.0}, r"base must be finite and greater than 1, got 1\.0"),
    ],
)
def test_bad_sinusoids_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sinusoidal_encoding(**arguments)


# --- learned positions ------------------------------------------------------------------------


def test_learned_positions_look_up_and_learn() -> None:
    torch.manual_seed(0)
    table = LearnedPositions(9, 5)
    positions = torch.tensor([[0, 1, 2], [6, 7, 8]])
    assert torch.equal(table(positions), table.weight[positions])
    assert table(torch.arange(4)).shape == (4, 5)
    table(positions).sum().backward()
    assert table.weight.grad is not None
    assert torch.equal(table.weight.grad.sum(dim=1) != 0, torch.tensor([1, 1, 1, 0, 0, 0, 1, 1, 1]))
    assert 0.01 < table.weight.std() < 0.03
    assert list(table.state_dict()) == ["weight"]


@pytest.mark.parametrize("positions", [[0, 9], [-1, 3]])
def test_positions_outside_the_table_are_refused(positions: list[int]) -> None:
    with pytest.raises(ValueError, match=r"positions must lie in \[0, max_seq_len=9\)"):
        LearnedPositions(9, 5)(torch.tensor(positions))


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(ValueError, match="max_seq_len must be positive, got 0"):
        LearnedPositions(0, 5)
    with pytest.raises(ValueError, match="d_model must be positive, got 0"):
        LearnedPositions(5, 0)
    with pytest.raises(TypeError, match=r"positions must be int64 or int32, got torch\.float32"):
        LearnedPositions(5, 2)(torch.tensor([0.5]))


# --- T5 ---------------------------------------------------------------------------------------

T5_SHAPES = [(32, 128), (32, 20), (16, 64), (12, 100), (8, 7)]


def t5_attention(*, decoder: bool, buckets: int, distance: int, heads: int = 3) -> T5Attention:
    config = T5Config(
        d_model=10,
        d_kv=4,
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=distance,
        dropout_rate=0.0,
    )
    config.is_decoder = decoder
    torch.manual_seed(1)
    return T5Attention(config, has_relative_attention_bias=True, layer_idx=0)


@pytest.mark.parametrize(("buckets", "distance"), T5_SHAPES)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_equal_t5(buckets: int, distance: int, bidirectional: bool) -> None:
    relative = torch.arange(-700, 701)
    expected = T5Attention._relative_position_bucket(
        relative, bidirectional=bidirectional, num_buckets=buckets, max_distance=distance
    )
    actual = relative_position_bucket(
        relative, num_buckets=buckets, max_distance=distance, bidirectional=bidirectional
    )
    assert torch.equal(actual, expected)
    assert actual.min() == 0
    assert actual.max() == buckets - 1


@pytest.mark.parametrize(("T", "S"), [(1, 1), (7, 7), (5, 23), (1, 150), (160, 160)])
@pytest.mark.parametrize("decoder", [True, False])
def test_bias_and_its_gradient_equal_t5(T: int, S: int, decoder: bool) -> None:
    theirs = t5_attention(decoder=decoder, buckets=32, distance=64)
    ours = T5RelativeBias(3, num_buckets=32, max_distance=64, bidirectional=not decoder)
    with torch.no_grad():
        ours.weight.copy_(theirs.relative_attention_bias.weight)
    expected = theirs.compute_bias(T, S, past_seen_tokens=S - T)
    actual = ours(T, S)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    upstream = random_tensor(1, 3, T, S)
    expected.backward(upstream)
    actual.backward(upstream)
    assert ours.weight.grad is not None
    torch.testing.assert_close(
        ours.weight.grad, theirs.relative_attention_bias.weight.grad, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("decoder", [True, False])
def test_attention_with_the_bias_equals_t5_attention(decoder: bool) -> None:
    """T5Attention whole: unscaled scores plus our bias, output and gradient of the table."""
    T, H = 45, 3
    theirs = t5_attention(decoder=decoder, buckets=16, distance=24)
    with torch.no_grad():
        theirs.relative_attention_bias.weight.normal_()  # T5 starts too small to tell
    ours = T5RelativeBias(H, num_buckets=16, max_distance=24, bidirectional=not decoder)
    with torch.no_grad():
        ours.weight.copy_(theirs.relative_attention_bias.weight)
    x = random_tensor(2, T, 10)
    mask = torch.zeros(2, 1, T, T)
    if decoder:
        mask = mask.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), float("-inf"))
    expected = theirs(x, mask=mask)[0]

    def heads(projection: torch.nn.Module) -> Tensor:
        return projection(x).view(2, T, H, 4).transpose(1, 2)  # (B, H, T, K)

    scores = heads(theirs.q) @ heads(theirs.k).transpose(-2, -1) + ours(T) + mask
    mixed = scores.softmax(dim=-1) @ heads(theirs.v)
    actual = theirs.o(mixed.transpose(1, 2).reshape(2, T, -1))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    upstream = random_tensor(2, T, 10, seed=5)
    expected.backward(upstream, retain_graph=True)
    theirs_gradient = theirs.relative_attention_bias.weight.grad
    actual.backward(upstream)
    assert ours.weight.grad is not None
    torch.testing.assert_close(ours.weight.grad, theirs_gradient, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(T=st.integers(1, 40), past=st.integers(0, 40), bidirectional=st.booleans())
def test_bias_depends_on_distance_only(T: int, past: int, bidirectional: bool) -> None:
    """Each diagonal is one number, and the last rows of a longer bias are the bias of a cache."""
    torch.manual_seed(0)
    module, S = T5RelativeBias(2, bidirectional=bidirectional), T + past
    bias = module(T, S)[0]
    assert torch.equal(bias[:, :-1, :-1], bias[:, 1:, 1:])
    assert torch.equal(bias, module(S)[0, :, -T:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 0}, "num_heads must be positive"),
        ({"num_buckets": 6}, "multiple of 4"),
        ({"num_buckets": 0}, "multiple of 4"),
        ({"num_buckets": 7, "bidirectional": False}, "multiple of 2"),
        ({"max_distance": 8}, "max_distance must exceed the 8 exact buckets, got 8"),
    ],
)
def test_bad_t5_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        T5RelativeBias(**{"num_heads": 2, "bidirectional": True, **arguments})


def test_bad_buckets_are_refused_by_the_function_too() -> None:
    relative = -torch.arange(9)
    with pytest.raises(ValueError, match="num_buckets must be a positive multiple of 2"):
        relative_position_bucket(relative, num_buckets=1, bidirectional=False)
    with pytest.raises(ValueError, match="must exceed the 8 exact buckets, got 8"):
        relative_position_bucket(relative, max_distance=8)
    with pytest.raises(TypeError, match=r"relative must be integers, got torch\.float32"):
        relative_position_bucket(relative.float())


@pytest.mark.parametrize(("T", "S"), [(0, 3), (4, 3)])
def test_more_queries_than_keys_are_refused(T: int, S: int) -> None:
    with pytest.raises(ValueError, match="1 <= T <= S"):
        T5RelativeBias(2, bidirectional=True)(T, S)
    with pytest.raises(ValueError, match="1 <= T <= S"):
        alibi_bias(2, T, S)


# --- ALiBi --------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 8, 12, 16, 20, 71])
def test_alibi_equals_bloom_and_mpt(heads: int) -> None:
    S = 67
    ours = alibi_bias(heads, S)  # (1, H, S, S)
    mpt = build_mpt_alibi_tensor(heads, S)  # (H, 1, S): the last query's row
    torch.testing.assert_close(ours[0, :, -1:], mpt, rtol=1e-6, atol=1e-6)
    bloom = build_alibi_tensor(torch.ones(2, S), heads, torch.float32)  # (2H, 1, S): slope · key
    # Bloom leaves the query's own position out of each row: softmax does not see a constant.
    ours_shifted = ours[0] + alibi_slopes(heads)[:, None, None] * torch.arange(S)[:, None]
    past = torch.ones(S, S, dtype=torch.bool).tril()
    difference = (ours_shifted - bloom[:heads]).masked_select(past)
    torch.testing.assert_close(difference, torch.zeros_like(difference), rtol=0, atol=2e-5)


def test_alibi_attention_equals_blooms() -> None:
    """Causal weights under our bias are those under Bloom's."""
    H, T = 6, 29
    scores = random_tensor(2, H, T, T)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    bloom = build_alibi_tensor(torch.ones(2, T), H, torch.float32).view(2, H, 1, T)
    expected = (scores + bloom).masked_fill(future, float("-inf")).softmax(dim=-1)
    actual = (scores + alibi_bias(H, T)).masked_fill(future, float("-inf")).softmax(dim=-1)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    without = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
    assert (without - expected).abs().max() > 1e-2


def test_alibi_slopes_worked_values() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    expected = torch.tensor([2.0**-4, 2.0**-8, 2.0**-2])
    torch.testing.assert_close(alibi_slopes(3), expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match="num_heads must be positive, got 0"):
        alibi_slopes(0)


@settings(max_examples=40, deadline=None)
@given(heads=st.integers(1, 20), T=st.integers(1, 30), past=st.integers(0, 30))
def test_alibi_is_symmetric_and_aligned_to_the_end(heads: int, T: int, past: int) -> None:
    S = T + past
    bias, whole = alibi_bias(heads, T, S), alibi_bias(heads, S)
    assert bias.shape == (1, heads, T, S)
    assert torch.equal(bias, whole[:, :, -T:])
    assert torch.equal(whole, whole.transpose(-2, -1))
    assert (whole.diagonal(dim1=-2, dim2=-1) == 0).all()
    assert (bias <= 0).all()
