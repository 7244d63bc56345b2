"""Recurrent layers against torch.nn, the language model, truncated BPTT, the Jacobians."""

import math

import pytest
import torch
from torch import nn

from recurrent import (
    RecurrentConfig,
    RecurrentLayer,
    RecurrentLM,
    TruncatedBPTT,
    continuous_windows,
    jacobian_norms,
    matched_width,
    stream_nats,
    total_loss,
)
from train_loop import fit

TWINS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


def gradient(parameter: torch.Tensor) -> torch.Tensor:
    """What backward left at a parameter."""
    assert parameter.grad is not None
    return parameter.grad


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("cell", TWINS)
def test_outputs_and_gradients_are_torchs(cell, fused):
    layer = RecurrentLayer(cell, 5, 7, fused=fused, generator=generator()).double()
    twin = TWINS[cell](5, 7, batch_first=True).double()
    twin.load_state_dict(layer.state_dict())
    x, state = random(3, 11, 5, seed=1), random(layer.num_states, 3, 7, seed=2)
    ours_x, twins_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours_s, twins_s = state.clone().requires_grad_(), state.clone().requires_grad_()
    ours, last = layer(ours_x, ours_s)
    start = (twins_s[:1].contiguous(), twins_s[1:].contiguous()) if cell == "lstm" else twins_s
    theirs, theirs_last = twin(twins_x, start)
    theirs_last = torch.cat(theirs_last) if cell == "lstm" else theirs_last
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(last, theirs_last, rtol=0, atol=1e-6)
    weights, weights_last = random(3, 11, 7, seed=3), random(*last.shape, seed=4)
    ((ours * weights).sum() + (last * weights_last).sum()).backward()
    ((theirs * weights).sum() + (theirs_last * weights_last).sum()).backward()
    torch.testing.assert_close(ours_x.grad, twins_x.grad, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours_s.grad, twins_s.grad, rtol=0, atol=1e-6)
    for (name, a), (_, b) in zip(layer.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("cell", TWINS)
@pytest.mark.parametrize("fused", [False, True])
def test_reading_in_pieces_is_reading_at_once(cell, fused):
    config = RecurrentConfig(vocab_size=13, d_model=6, num_layers=2, cell=cell, fused=fused)
    model = RecurrentLM(config, generator=generator())
    ids = torch.randint(13, (2, 17), generator=generator(1))
    whole, last = model(ids)
    state, parts = None, []
    for piece in ids.split([1, 5, 4, 7], dim=1):
        logits, state = model(piece, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("cell", TWINS)
def test_no_gradient_from_the_future(cell):
    layer = RecurrentLayer(cell, 3, 4, generator=generator())
    x = torch.randn(1, 9, 3, generator=generator(1)).requires_grad_()
    layer(x)[0][0, 4].sum().backward()
    assert x.grad is not None
    assert (x.grad[0, 5:] == 0).all()
    assert (x.grad[0, :5] != 0).any(dim=1).all()


def test_backpropagation_through_time_by_hand():
    """The README's two steps of a network of one number: w = 0.5, u = 1, x = (1, 0)."""
    layer = RecurrentLayer("rnn", 1, 1).double()
    with torch.no_grad():
        layer.weight_ih_l0.fill_(1.0)
        layer.weight_hh_l0.fill_(0.5)
        layer.bias_ih_l0.zero_()
        layer.bias_hh_l0.zero_()
    out, _ = layer(torch.tensor([[[1.0], [0.0]]], dtype=torch.float64))
    h1, h2 = out[0, :, 0].tolist()
    assert h1 == pytest.approx(0.7616, abs=1e-4)
    assert h2 == pytest.approx(0.3634, abs=1e-4)
    (0.5 * (out[0, 1, 0] - 1) ** 2).backward()
    delta2 = (h2 - 1) * (1 - h2**2)
    delta1 = delta2 * 0.5 * (1 - h1**2)
    assert delta2 == pytest.approx(-0.5525, abs=1e-4)
    assert delta1 == pytest.approx(-0.1160, abs=1e-4)
    assert float(gradient(layer.weight_hh_l0)) == pytest.approx(delta2 * h1, abs=1e-12)
    assert float(gradient(layer.weight_hh_l0)) == pytest.approx(-0.4208, abs=1e-4)
    assert float(gradient(layer.weight_ih_l0)) == pytest.approx(delta1, abs=1e-12)


def test_truncation_remembers_and_does_not_blame():
    model = RecurrentLM(RecurrentConfig(vocab_size=7, d_model=5, cell="gru"), generator=generator())
    ids = torch.randint(7, (1 + 4 * 3 * 5,), generator=generator(1))
    windows = list(continuous_windows(ids, batch_size=4, seq_len=5))
    step = TruncatedBPTT(model, torch.optim.SGD(model.parameters(), lr=0.0))
    for window in windows:
        step(window)
    assert step.state is not None
    assert not step.state.requires_grad
    whole = torch.cat([inputs for inputs, _ in windows], dim=1)
    torch.testing.assert_close(step.state, model(whole)[1].detach())
    before = [gradient(p).clone() for p in model.parameters()]
    state = model(torch.cat([i for i, _ in windows[:-1]], dim=1))[1].detach()
    logits, _ = model(windows[-1][0], state)
    model.zero_grad()
    nn.functional.cross_entropy(logits.flatten(0, 1), windows[-1][1].flatten()).backward()
    norm = math.sqrt(sum(float(gradient(p).square().sum()) for p in model.parameters()))
    for a, p in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(a, gradient(p) * min(1.0, 1.0 / norm), rtol=1e-4, atol=1e-7)


def test_windows_follow_each_other():
    ids = torch.arange(25)
    windows = list(continuous_windows(ids, batch_size=2, seq_len=5))
    assert windows[0][0].tolist() == [[0, 1, 2, 3, 4], [12, 13, 14, 15, 16]]
    assert windows[0][1].tolist() == [[1, 2, 3, 4, 5], [13, 14, 15, 16, 17]]
    assert windows[1][0][0, 0] == 5
    with pytest.raises(ValueError, match="do not fill"):
        next(continuous_windows(ids, batch_size=5, seq_len=5))


def test_training_learns_a_period():
    ids = torch.tensor([0, 1, 2, 3] * 200)
    model = RecurrentLM(
        RecurrentConfig(vocab_size=4, d_model=8, cell="lstm"), generator=generator()
    )
    windows = list(continuous_windows(ids, batch_size=4, seq_len=16))
    step = TruncatedBPTT(model, torch.optim.Adam(model.parameters(), lr=0.03))
    fit(step, windows * 10, max_steps=100)
    assert total_loss(model, windows) < 0.05
    assert stream_nats(model, ids) / (len(ids) - 1) < 0.05
    assert stream_nats(model, ids, chunk=7) == pytest.approx(stream_nats(model, ids), rel=1e-4)


def test_jacobian_norms_are_those_of_autograd():
    layer = RecurrentLayer("rnn", 2, 5, generator=generator()).double()
    x = random(6, 2, seed=1)
    norms = jacobian_norms(layer, x)

    def last(h0):
        return layer(x[None], h0.view(1, 1, 5))[1].flatten()

    whole = torch.autograd.functional.jacobian(last, torch.zeros(5, dtype=torch.float64))
    assert norms[0] == 1.0
    assert norms[-1] == pytest.approx(float(torch.linalg.matrix_norm(whole, ord=2)), rel=1e-9)
    assert len(norms) == 7


def test_the_bound_on_the_jacobian_holds():
    """|dh_T / dh_t| <= (largest singular value of W)**(T - t), since tanh' <= 1."""
    layer = RecurrentLayer("rnn", 3, 8, generator=generator()).double()
    largest = float(torch.linalg.matrix_norm(layer.weight_hh_l0.detach(), ord=2))
    for k, norm in enumerate(jacobian_norms(layer, random(12, 3, seed=1))):
        assert norm <= largest**k + 1e-12


def test_an_open_forget_gate_carries_the_gradient():
    layer = RecurrentLayer("lstm", 2, 4, forget_bias=12.0, generator=generator())
    with torch.no_grad():
        layer.weight_hh_l0.zero_()
        layer.weight_ih_l0.zero_()
    norms = jacobian_norms(layer, torch.randn(50, 2, generator=generator()))
    assert norms[-1] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("cell", TWINS)
def test_parameters_are_counted(cell):
    width = matched_width(cell, vocab_size=99, embed_dim=24, parameters=30_000)
    config = RecurrentConfig(vocab_size=99, d_model=width, embed_dim=24, cell=cell)
    counted = sum(p.numel() for p in RecurrentLM(config).parameters())
    assert counted == config.num_parameters
    assert 29_000 < counted <= 30_000
    two = RecurrentConfig(vocab_size=9, d_model=5, num_layers=3, cell=cell)
    assert sum(p.numel() for p in RecurrentLM(two).parameters()) == two.num_parameters


def test_the_forget_gate_starts_open():
    layer = RecurrentLayer("lstm", 3, 4)
    assert (layer.bias_ih_l0[4:8] + layer.bias_hh_l0[4:8] == 1.0).all()


def test_bad_input_is_refused():
    layer = RecurrentLayer("gru", 3, 4)
    with pytest.raises(ValueError, match="must be"):
        layer(torch.zeros(2, 5, 4))
    with pytest.raises(ValueError, match="state must be"):
        layer(torch.zeros(2, 5, 3), torch.zeros(1, 3, 4))
    with pytest.raises(ValueError, match="at least one"):
        layer(torch.zeros(2, 0, 3))
    with pytest.raises(ValueError, match="cell must be"):
        RecurrentLayer("tanh", 3, 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 or more"):
        RecurrentConfig(vocab_size=3, d_model=0)
    with pytest.raises(ValueError, match="at least one window"):
        total_loss(RecurrentLM(RecurrentConfig(vocab_size=3, d_model=2)), [])


def test_the_state_starts_again_when_asked():
    model = RecurrentLM(RecurrentConfig(vocab_size=7, d_model=5, cell="gru"), generator=generator())
    ids = torch.randint(7, (1 + 4 * 5 * 5,), generator=generator(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = TruncatedBPTT(model, optimizer, reset_every=2)
    windows = list(continuous_windows(ids, batch_size=4, seq_len=5))
    for i, window in enumerate(windows):
        step(window)
        since = windows[i - i % 2 : i + 1]
        fresh = model(torch.cat([inputs for inputs, _ in since], dim=1))[1].detach()
        torch.testing.assert_close(step.state, fresh)
    with pytest.raises(ValueError, match="reset_every"):
        TruncatedBPTT(model, optimizer, reset_every=0)
