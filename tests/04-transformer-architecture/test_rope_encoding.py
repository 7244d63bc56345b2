"""RoPE: equal to transformers' under every scaling rule, and a rotation in fact."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from rope_encoding import RoPE, RoPEScaling

K = 36  # no power of two, so that the halves and the ramps fall on odd places
TRAINED = 64
BASE = 5000.0
TOLERANCE = 5e-6

PARAMETERS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.7},
    "dynamic": {"rope_type": "dynamic", "factor": 2.3},
    "yarn": {"rope_type": "yarn", "factor": 3.3, "original_max_position_embeddings": 48},
    "yarn, trained length implied": {"rope_type": "yarn", "factor": 3.3},
    "yarn, factor implied": {"rope_type": "yarn", "original_max_position_embeddings": 17},
    "yarn, not truncated": {"rope_type": "yarn", "factor": 3.3, "truncate": False},
    "yarn, attention factor": {"rope_type": "yarn", "factor": 3.3, "attention_factor": 0.61},
    "yarn, mscale alone": {"rope_type": "yarn", "factor": 3.3, "mscale": 0.7},
    "yarn, both mscales": {
        "rope_type": "yarn",
        "factor": 3.3,
        "mscale": 0.7,
        "mscale_all_dim": 0.3,
    },
    "yarn, narrow ramp": {"rope_type": "yarn", "factor": 3.3, "beta_fast": 4.0, "beta_slow": 0.5},
    "yarn, factor 1": {"rope_type": "yarn", "factor": 1.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 7.3,
        "low_freq_factor": 1.1,
        "high_freq_factor": 4.7,
        "original_max_position_embeddings": 48,
    },
}
LENGTHS = (40, TRAINED, TRAINED + 1, 300)  # before, at, just past and far past the boundary


def hf_config(name: str) -> LlamaConfig:
    parameters: dict[str, Any] = dict(PARAMETERS[name], rope_theta=BASE)
    if name == "yarn, factor implied":
        parameters["factor"] = None
    return LlamaConfig(
        hidden_size=4 * K,
        num_attention_heads=4,
        head_dim=K,
        max_position_embeddings=TRAINED,
        rope_parameters=parameters,
    )


def ours(name: str) -> RoPE:
    scaling = RoPEScaling.from_hf(
        dict(PARAMETERS[name], rope_theta=BASE), max_position_embeddings=TRAINED
    )
    return RoPE(K, TRAINED, base=BASE, scaling=scaling)


def random_heads(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ragged_positions(T: int) -> Tensor:
    """Two rows that do not stand at the same place, both shorter than T."""
    return torch.stack((torch.arange(T), torch.arange(T) // 2 + 1))  # (2, T)


def dense(rope: RoPE, position: int) -> Tensor:
    """The matrix R with R x = rope(x) at one position, (K, K)."""
    identity = torch.eye(rope.dim, dtype=torch.float64)[:, None]  # (K, 1, K)
    return rope.at(torch.tensor([position]))(identity)[:, 0].t()


# --- parity with transformers -------------------------------------------------------------


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("T", LENGTHS)
def test_rotation_and_gradient_equal_transformers(name: str, T: int) -> None:
    positions = ragged_positions(T)
    theirs = LlamaRotaryEmbedding(hf_config(name))  # new each time: dynamic keeps a state
    q, k = random_heads(2, 4, T, K, seed=1), random_heads(2, 2, T, K, seed=2)
    upstream = random_heads(2, 4, T, K, seed=3)
    results = []
    for rotate in ("theirs", "ours"):
        a, b = q.clone().requires_grad_(), k.clone().requires_grad_()
        if rotate == "theirs":
            rotated_q, rotated_k = apply_rotary_pos_emb(a, b, *theirs(a, positions))
        else:
            rotary = ours(name).at(positions)
            rotated_q, rotated_k = rotary(a), rotary(b)
        (rotated_q * upstream).sum().backward()
        (rotated_k * upstream[:, 1:3]).sum().backward()
        results.append((rotated_q, rotated_k, a.grad, b.grad))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name != "default"])
@pytest.mark.parametrize("T", LENGTHS)
def test_frequencies_and_attention_factor_equal_transformers(name: str, T: int) -> None:
    config = hf_config(name)
    kind = PARAMETERS[name]["rope_type"]
    expected, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=T)
    rope = ours(name)
    # At position 1 the angles are the frequencies; cosines of small angles would hide them.
    sines = rope.at(torch.tensor([1]), length=T)(torch.eye(K)[: K // 2].unsqueeze(1))
    measured = sines[:, 0, K // 2 :].diagonal() / factor
    torch.testing.assert_close(measured, expected.sin(), rtol=2e-6, atol=1e-9)
    assert rope.attention_factor == pytest.approx(factor, rel=1e-12)
    if T <= TRAINED:
        assert torch.equal(rope.inv_freq, expected)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_tolerance_tells_right_from_nearly_right(name: str) -> None:
    """The mistakes that look right are at least 100 tolerances away at these sizes."""
    T = 300
    x, positions = random_heads(2, 4, T, K), ragged_positions(T)
    rope = ours(name)
    right = rope.at(positions)(x)
    unscaled = RoPE(K, TRAINED, base=BASE).at(positions)(x)
    wrong = {
        "one position late": rope.at(positions + 1)(x),
        "turned the other way": rope.at(-positions)(x),
        "paired with the neighbour": rope.at(positions)(
            x.unflatten(-1, (K // 2, 2)).transpose(-1, -2).flatten(-2)
        ),
        "another base": RoPE(K, TRAINED, base=10000.0, scaling=rope.scaling).at(positions)(x),
    }
    if rope.scaling is not None and rope.scaling.factor > 1:
        wrong["scaling ignored"] = unscaled
    for mistake, result in wrong.items():
        assert (result - right).abs().max() > 100 * TOLERANCE, mistake


def test_static_ntk_is_dynamic_at_one_length() -> None:
    """Dynamic scaling with factor 1 at s times the length is NTK scaling by s."""
    config = hf_config("dynamic")
    assert config.rope_parameters is not None
    config.rope_parameters["factor"] = 1.0
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, torch.device("cpu"), seq_len=3 * TRAINED)
    rope = RoPE(K, TRAINED, base=BASE, scaling=RoPEScaling(kind="ntk", factor=3.0))
    torch.testing.assert_close(rope.inv_freq, expected, rtol=1e-6, atol=0)


def test_ntk_keeps_the_fastest_point_and_slows_the_slowest_by_the_factor() -> None:
    plain = RoPE(K).inv_freq
    scaled = RoPE(K, scaling=RoPEScaling(kind="ntk", factor=5.0)).inv_freq
    slowdown = plain / scaled
    assert slowdown[0] == 1.0
    assert slowdown[-1].item() == pytest.approx(5.0, rel=1e-5)
    assert (slowdown.diff() > 0).all()


def test_yarn_scales_scores_by_the_square_of_its_attention_factor() -> None:
    scaling = RoPEScaling(kind="yarn", factor=4.0)
    rope = RoPE(K, scaling=scaling)
    x = random_heads(1, 1, 1, K)
    rotated = rope(x, torch.tensor([123]))
    assert rope.attention_factor == pytest.approx(0.1 * math.log(4.0) + 1.0)
    expected = x.square().sum() * rope.attention_factor**2
    torch.testing.assert_close(rotated.square().sum(), expected)


# --- theorems -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [None, "linear", "ntk", "dynamic", "llama3"])
@pytest.mark.parametrize(("m", "n"), [(0, 0), (3, 17), (17, 3), (5, 60), (1, 2)])
def test_rotation_identity(kind: str | None, m: int, n: int) -> None:
    """R(m)^T R(n) = R(n - m): scores know relative positions only."""
    scaling = None if kind is None else RoPEScaling(kind=kind, factor=2.0)
    rope = RoPE(K, TRAINED, scaling=scaling)
    product = dense(rope, m).t() @ dense(rope, n)
    torch.testing.assert_close(product, dense(rope, n - m), rtol=0, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    half=st.integers(1, 20),
    base=st.floats(10.0, 1e6),
    m=st.integers(0, 500),
    n=st.integers(0, 500),
    shift=st.integers(0, 500),
    seed=st.integers(0, 2**31),
)
def test_scores_do_not_change_when_both_move(
    half: int, base: float, m: int, n: int, shift: int, seed: int
) -> None:
    rope = RoPE(2 * half, base=base)
    q, k = random_heads(2, 1, 1, 1, 2 * half, seed=seed)

    def score(query_at: int, key_at: int) -> Tensor:
        return (rope(q, torch.tensor([query_at])) * rope(k, torch.tensor([key_at]))).sum()

    scale = (q.norm() * k.norm()).item()
    torch.testing.assert_close(
        score(m, n), score(m + shift, n + shift), rtol=0, atol=3e-4 * scale + 1e-6
    )


@settings(max_examples=40, deadline=None)
@given(half=st.integers(1, 20), position=st.integers(-1000, 100_000), seed=st.integers(0, 2**31))
def test_a_rotation_keeps_lengths(half: int, position: int, seed: int) -> None:
    x = random_heads(1, 2, 1, 2 * half, seed=seed)
    rotated = RoPE(2 * half)(x, torch.tensor([position]))
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1), rtol=1e-5, atol=0)


def test_position_zero_changes_nothing_and_position_one_is_known() -> None:
    """K = 4, base 100: the two points turn by 1 and by 0.1 radians a position."""
    rope = RoPE(4, base=100.0)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    assert torch.equal(rope(x, torch.tensor([0])), x)
    expected = torch.tensor(
        [
            math.cos(1.0) - 3 * math.sin(1.0),
            2 * math.cos(0.1) - 4 * math.sin(0.1),
            3 * math.cos(1.0) + math.sin(1.0),
            4 * math.cos(0.1) + 2 * math.sin(0.1),
        ]
    )
    torch.testing.assert_close(rope(x, torch.tensor([1]))[0, 0, 0], expected)


def test_half_split_is_complex_multiplication_after_a_permutation() -> None:
    """The paper pairs neighbours; deinterleaving the columns turns one form into the other."""
    T = 70
    x, rope = random_heads(2, 3, T, K), RoPE(K)
    angles = torch.arange(T)[:, None].double() * rope.inv_freq.double()  # (T, K/2)
    points = torch.view_as_complex(x.double().unflatten(-1, (K // 2, 2)).contiguous())
    turned = torch.view_as_real(points * torch.polar(torch.ones_like(angles), angles))
    split = x.unflatten(-1, (K // 2, 2)).transpose(-1, -2).flatten(-2)  # even columns, then odd
    actual = rope(split).unflatten(-1, (2, K // 2)).transpose(-1, -2)
    torch.testing.assert_close(actual, turned.float(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", PARAMETERS)
def test_chunks_equal_the_whole(name: str) -> None:
    """Decoding: the same position gives the same rotation, however the text is cut."""
    T = 150
    rope, x = ours(name), random_heads(2, 3, T, K)
    whole = rope(x)
    pieces = [
        rope.at(torch.arange(start, end), length=T)(x[:, :, start:end])
        for start, end in ((0, 1), (1, 64), (64, 65), (65, 149), (149, 150))
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=2), whole, rtol=0, atol=0)


def test_dynamic_is_plain_up_to_the_boundary_and_depends_on_the_length_beyond() -> None:
    rope, plain = ours("dynamic"), RoPE(K, TRAINED, base=BASE)
    x = random_heads(1, 1, 1, K)
    last = torch.tensor([TRAINED - 1])
    assert torch.equal(rope.at(last)(x), plain.at(last)(x))
    assert not torch.allclose(rope.at(last + 1)(x), plain.at(last + 1)(x), atol=1e-3)
    # A key rotated now is not what it would be in a longer text: cached keys go stale.
    assert not torch.allclose(rope.at(last)(x), rope.at(last, length=200)(x), atol=1e-3)
    assert torch.equal(rope.at(last)(x), plain.at(last)(x))  # and nothing was remembered


def test_each_row_of_a_ragged_batch_is_rotated_by_its_own_positions() -> None:
    rope = RoPE(K)
    x, positions = random_heads(3, 2, 5, K), torch.tensor([[0, 1, 2, 3, 4]] * 3)
    positions = positions + torch.tensor([[0], [7], [100]])
    together = rope.at(positions)(x)
    for row in range(3):
        alone = rope.at(positions[row])(x[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-6)


# --- gradients, dtypes, memory --------------------------------------------------------------


def test_gradients_of_first_and_second_order() -> None:
    rope = RoPE(6, scaling=RoPEScaling(kind="yarn", factor=4.0))
    rotary = rope.at(torch.tensor([[3, 90], [0, 5]]))
    x = random_heads(2, 2, 2, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(rotary, (x,))
    assert torch.autograd.gradgradcheck(rotary, (x,))


def test_autograd_keeps_tables_only() -> None:
    """The gradient is the opposite rotation, so no (B, H, T, K) tensor has to be kept."""
    saved: list[tuple[int, ...]] = []
    x = random_heads(2, 3, 5, K).requires_grad_()
    rotary = RoPE(K).at(torch.arange(5))
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(tuple(t.shape)) or t, lambda t: t
    ):
        rotary(rotary(x))
    assert saved
    assert set(saved) == {(5, K)}


def test_the_input_is_not_written_to_and_may_be_a_transposed_view() -> None:
    memory = random_heads(2, 5, 3, K)  # (B, T, H, K), as projections leave it
    x, before = memory.transpose(1, 2), memory.clone()
    rope = RoPE(K)
    torch.testing.assert_close(rope(x), rope(x.contiguous()), rtol=0, atol=0)
    assert torch.equal(memory, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_output_has_the_input_dtype(dtype: torch.dtype) -> None:
    x, rotary = random_heads(1, 2, 300, K), RoPE(K).at(torch.arange(300))
    rotated = rotary(x.to(dtype))
    assert rotated.dtype == dtype
    # Two roundings of a product and one of the table, relative to numbers up to 4.
    torch.testing.assert_close(
        rotated.float(), rotary(x), rtol=0, atol=20 * max(torch.finfo(dtype).eps, 1e-7)
    )


def test_casting_a_model_leaves_the_frequencies_alone() -> None:
    rope = ours("llama3")
    before = rope.inv_freq.clone()
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), rope).to(torch.bfloat16).half()
    assert model[0].weight.dtype == torch.float16
    assert torch.equal(rope.inv_freq, before)
    assert rope.inv_freq.dtype == torch.float32


def test_a_model_made_on_the_meta_device_has_frequencies_when_it_is_materialised() -> None:
    with torch.device("meta"):
        rope = RoPE(K, TRAINED, base=BASE)
    assert rope.inv_freq.is_meta
    assert torch.equal(rope.to_empty(device="cpu").inv_freq, RoPE(K, base=BASE).inv_freq)


def test_has_no_state_and_copies() -> None:
    rope = ours("yarn")
    assert not list(rope.parameters())
    assert not rope.state_dict()
    x = random_heads(1, 1, 9, K)
    assert torch.equal(copy.deepcopy(rope)(x), rope(x))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_jacobian_through_vmap() -> None:
    """`torch.func` reaches through the hand-written gradient."""
    rope, x = RoPE(4), random_heads(1, 1, 3, 4)
    jacobian = torch.func.jacrev(rope)(x)[0, 0, :, :, 0, 0]  # (T, K, T, K)
    for t in range(3):
        torch.testing.assert_close(jacobian[t, :, t].double(), dense(rope, t), rtol=0, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu() -> None:
    rope, x = ours("dynamic"), random_heads(2, 4, 300, K)
    expected = rope(x)
    assert torch.equal(rope.cuda().inv_freq.cpu(), ours("dynamic").inv_freq)
    torch.testing.assert_close(rope(x.cuda()).cpu(), expected, rtol=0, atol=1e-4)


# --- configuration --------------------------------------------------------------------------


def test_the_quick_start_line() -> None:
    rope = RoPE(dim=512, max_position_embeddings=2048)
    assert rope(random_heads(1, 1, 3, 512)).shape == (1, 1, 3, 512)


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name != "default"])
def test_parameters_survive_the_way_there_and_back(name: str) -> None:
    scaling = ours(name).scaling
    assert scaling is not None
    written = scaling.to_hf(base=BASE)
    assert RoPEScaling.from_hf(written) == scaling
    config = LlamaConfig(
        hidden_size=4 * K,
        num_attention_heads=4,
        max_position_embeddings=TRAINED,
        rope_parameters=written,
    )
    expected = LlamaRotaryEmbedding(hf_config(name))
    actual = LlamaRotaryEmbedding(config)
    assert torch.equal(actual.inv_freq, expected.inv_freq)
    assert actual.attention_scaling == pytest.approx(expected.attention_scaling)


def test_ntk_is_written_as_another_base() -> None:
    scaling = RoPEScaling(kind="ntk", factor=4.0)
    written = scaling.to_hf(base=BASE, dim=K)
    assert RoPEScaling.from_hf(written) is None
    again = RoPE(K, TRAINED, base=written["rope_theta"])
    assert torch.equal(again.inv_freq, RoPE(K, TRAINED, base=BASE, scaling=scaling).inv_freq)
    with pytest.raises(ValueError, match="give base and dim"):
        scaling.to_hf()


def test_the_old_spelling_is_read() -> None:
    assert RoPEScaling.from_hf({"type": "linear", "factor": 2.0}) == RoPEScaling(
        kind="linear", factor=2.0
    )
    assert RoPEScaling.from_hf({"rope_theta": 1e6}) is None
    assert RoPEScaling.from_hf({}) is None


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rope_type": "longrope", "factor": 2.0}, "rope_type must be one of .* got 'longrope'"),
        ({"rope_type": "ntk", "factor": 2.0}, "rope_type must be one of"),
        ({"rope_type": "linear"}, "needs a factor"),
        ({"rope_type": "yarn", "original_max_position_embeddings": 4}, "needs a factor"),
        ({"rope_type": "linear", "factor": 2.0, "beta_fast": 3.0}, r"takes no \['beta_fast'\]"),
        ({"rope_type": "default", "factor": 2.0}, r"'default' takes no \['factor'\]"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(parameters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoPEScaling.from_hf(parameters)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "cubic", "factor": 2.0}, "kind must be one of"),
        ({"kind": "linear", "factor": 0.5}, "factor must be .* at least 1, got 0.5"),
        ({"kind": "linear", "factor": math.nan}, "factor must be"),
        ({"kind": "linear", "factor": 2.0, "truncate": False}, "does not read truncate"),
        ({"kind": "llama3", "factor": 2.0, "mscale": 1.0}, "does not read mscale"),
        ({"kind": "yarn", "factor": 2.0, "beta_slow": 40.0}, "beta_slow <= beta_fast"),
        ({"kind": "yarn", "factor": 2.0, "attention_factor": 0.0}, "attention_factor must be"),
        ({"kind": "llama3", "factor": 2.0, "low_freq_factor": 4.0}, "low_freq_factor < high"),
        (
            {"kind": "yarn", "factor": 2.0, "original_max_position_embeddings": 0},
            "must be positive, got 0",
        ),
    ],
)
def test_scaling_out_of_range_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoPEScaling(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 7}, "dim must be a positive even number, got 7"),
        ({"dim": 0}, "dim must be a positive even number, got 0"),
        ({"dim": 8, "max_position_embeddings": 0}, "max_position_embeddings must be positive"),
        ({"dim": 8, "base": 1.0}, "base must be finite and greater than 1"),
        ({"dim": 2, "scaling": RoPEScaling(kind="ntk", factor=2.0)}, "dim of at least 4"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoPE(**arguments)


def test_bad_inputs_are_refused() -> None:
    rope = RoPE(8)
    with pytest.raises(TypeError, match=r"positions must be integers, got torch\.float32"):
        rope.at(torch.arange(3.0))
    with pytest.raises(ValueError, match=r"positions must be \(T,\) or \(B, T\)"):
        rope.at(torch.zeros(1, 1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x must end in \(T, K\) = \(3, 8\)"):
        rope.at(torch.arange(3))(torch.zeros(1, 1, 4, 8))
    with pytest.raises(ValueError, match="x must end in"):
        rope.at(torch.arange(3))(torch.zeros(1, 1, 3, 16))
    with pytest.raises(ValueError, match=r"x must end in \(T, K\), got shape \(8,\)"):
        rope(torch.zeros(8))
    with pytest.raises(TypeError, match=r"x must be floating point, got torch\.int64"):
        rope(torch.ones(1, 1, 3, 8, dtype=torch.int64))
    two = rope.at(torch.arange(3).expand(2, 3))
    for shape in ((3, 1, 3, 8), (2, 3, 8)):
        with pytest.raises(ValueError, match="positions were given for 2 sequences"):
            two(torch.zeros(shape))
    with pytest.raises(ValueError, match="base must be finite and greater than 1, got inf"):
        RoPE(8, base=float("inf"))
