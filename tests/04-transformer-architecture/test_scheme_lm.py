"""The six schemes: what each does to order, distance and length; and the page's numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from architecture_experiments import SMOKE_SCALE_04
from positional_encoding import alibi_slopes, relative_position_bucket, sinusoidal_encoding
from rope_encoding import RoPE
from scheme_lm import PositionScheme, SchemeLM, bits_by_position, language_loss
from sublayers import layer_norm, rms_norm
from transformer import Transformer
from world_experiments import _one_cycle, _sliding_bits, world_text

SCHEMES = get_args(PositionScheme)


def build(scheme, **options):
    sizes: dict[str, Any] = {
        "vocab_size": 13,
        "d_model": 16,
        "num_heads": 2,
        "num_layers": 2,
        "max_seq_len": 40,
    }
    model = SchemeLM(scheme=scheme, seed=1, **(sizes | options)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # differences should show
            if parameter.dim() == 2:
                parameter.mul_(8.0)
    return model


def ids(T=12, seed=0):
    return torch.randint(13, (2, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_scheme_sees_the_future(scheme):
    model, text = build(scheme), ids()
    changed = text.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 13
    torch.testing.assert_close(model(text)[:, :-1], model(changed)[:, :-1])
    assert not torch.allclose(model(text)[:, -1], model(changed)[:, -1])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_order_matters_with_a_scheme_only(scheme):
    """One layer: the last position's logits change with the order of the past, unless `none`."""
    model, text = build(scheme, num_layers=1), ids()
    swapped = text.clone()
    swapped[:, :-1] = text[:, :-1].flip(1)
    same = torch.allclose(model(text)[:, -1], model(swapped)[:, -1], atol=1e-9)
    assert same == (scheme == "none")


@pytest.mark.parametrize("scheme", ["t5", "alibi", "rope", "none"])
def test_relative_schemes_know_distances_alone(scheme):
    """A token prepended and hidden by nobody shifts all positions; masked attention to it aside,
    distances stay. Shown on the attention layer: shifting rotary or bias changes no score."""
    if scheme == "rope":
        rope = RoPE(8)
        q, k = torch.randn(2, 1, 1, 6, 8, dtype=torch.float64)
        one, far = rope.at(torch.arange(6)), rope.at(torch.arange(6) + 90)
        torch.testing.assert_close(one(q) @ one(k).mT, far(q) @ far(k).mT, atol=1e-5, rtol=1e-5)
        return
    model = build(scheme)
    small, large = ids(5), ids(30)
    assert model(small).shape == (2, 5, 13)
    assert model(large).shape == (2, 30, 13)


def test_learned_refuses_what_it_has_no_row_for():
    with pytest.raises(ValueError, match="max_seq_len=40"):
        build("learned")(ids(41))
    with pytest.raises(ValueError, match="scheme is 'clock'"):
        build("clock")
    with pytest.raises(ValueError, match=r"ids have shape \(5,\)"):
        build("rope")(ids(5)[0])
    with pytest.raises(ValueError, match=r"ids have shape \(\d, 0\)"):
        build("rope")(ids(5)[:, :0])
    with pytest.raises(ValueError, match=r"windows have shape \(0, 5\)"):
        bits_by_position(build("rope"), ids(5)[:0])


def test_schemes_start_from_the_same_matrices():
    states = [build(s).state_dict()["stack.blocks.0.feed_forward.up.weight"] for s in SCHEMES]
    for state in states[1:]:
        torch.testing.assert_close(state, states[0])


def test_bits_by_position_add_up():
    model = build("rope")
    windows = ids(9)
    by_position = bits_by_position(model, windows, batch_size=1)
    assert by_position.shape == (8,)
    assert float(by_position.mean()) == pytest.approx(
        float(language_loss(model, windows)) / math.log(2)
    )


def test_sliding_windows_score_every_byte_once():
    """Each byte's bits equal those of its own window, computed one at a time."""
    model = build("rope", vocab_size=256)
    text = torch.randint(256, (1 + 8 + 4 * 3,), generator=torch.Generator().manual_seed(7))
    nats = []
    for t in range(1, len(text)):  # the window of byte t begins at a multiple of 4
        start = 0 if t <= 8 else 4 * math.ceil((t - 8) / 4)
        logits = model(text[start:t][None])[0, -1]
        nats.append(-float(logits.detach().log_softmax(-1)[text[t]]))
    expected = sum(nats) / len(nats) / math.log(2)
    assert _sliding_bits(model, text, window=8) == pytest.approx(expected, rel=1e-6)


def test_one_cycle_rises_and_falls():
    rates = [_one_cycle(step, peak=2.0, steps=100) for step in range(1, 101)]
    assert max(rates) == pytest.approx(2.0)
    assert rates.index(max(rates)) == 29
    assert rates[:30] == sorted(rates[:30])
    assert rates[29:] == sorted(rates[29:], reverse=True)
    assert rates[-1] < 0.01


def test_world_text_keeps_stories_apart():
    scale = replace(SMOKE_SCALE_04, train_pairs=300, held_out_pairs=50)
    text = world_text(scale)
    assert (len(text.train), len(text.held_out)) == (300, 50)
    assert text.train[0] != text.held_out[0]


# --- the page's worked examples ------------------------------------------------------------------


def test_layer_norm_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64, requires_grad=True)
    y = layer_norm(x, None, None, 0.0)
    np.testing.assert_allclose(y.detach(), [-1.342, -0.447, 0.447, 1.342], atol=5e-4)
    y[0].backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad, [0.268, -0.358, -0.089, 0.179], atol=5e-4)
    assert float(x.grad.sum()) == pytest.approx(0, abs=1e-12)
    assert float(x.grad @ y.detach()) == pytest.approx(0, abs=1e-12)


def test_rms_norm_by_hand():
    y = rms_norm(torch.tensor([1.0, 2.0, 3.0, 4.0]), None, 0.0)
    np.testing.assert_allclose(y, [0.365, 0.730, 1.095, 1.461], atol=5e-4)


def test_positions_by_hand():
    np.testing.assert_allclose(
        sinusoidal_encoding(2, 4)[1], [0.841, 0.540, 0.010, 1.000], atol=5e-4
    )
    found = relative_position_bucket(torch.tensor([-20, -64, -500]), bidirectional=False)
    assert found.tolist() == [17, 26, 31]
    assert alibi_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]


def test_rotary_by_hand():
    def turned(position):
        angle = position * math.pi / 6
        return np.array([math.cos(angle), math.sin(angle)])

    np.testing.assert_allclose(turned(3), [0, 1], atol=1e-12)
    np.testing.assert_allclose(turned(1), [0.866, 0.5], atol=5e-4)
    assert turned(3) @ turned(1) == pytest.approx(0.5)
    assert turned(103) @ turned(101) == pytest.approx(0.5)


def test_the_quick_start_runs():
    """The README's lines, word for word."""
    model = Transformer(src_vocab_size=30000, tgt_vocab_size=30000, d_model=512)
    assert model.d_model == 512
    assert RoPE(dim=512, max_position_embeddings=2048).dim == 512
