"""README, "Their gradients": the LSTM's and the GRU's backward pass as the page writes it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recurrent import RecurrentLayer

D, H, T = 3, 4, 6


def _layer(cell):
    layer = RecurrentLayer(cell, D, H, generator=torch.Generator().manual_seed(0)).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(T, D, generator=generator, dtype=torch.float64)
    direct = torch.randn(T, H, generator=generator, dtype=torch.float64)  # the losses' own part
    outputs, _ = layer(x[None])
    (outputs[0] * direct).sum().backward()
    W = layer.weight_hh_l0.detach()
    states = [layer.initial_state(1)]
    for t in range(T):
        states.append(layer.step(x[t : t + 1], states[-1]).detach())
    return layer, x, direct, W, states


def _squash(delta: Tensor, gate: Tensor) -> Tensor:
    return delta * gate * (1 - gate)


def test_the_lstm():
    layer, x, direct, W, states = _layer("lstm")
    W_ih, b = layer.weight_ih_l0.detach(), (layer.bias_ih_l0 + layer.bias_hh_l0).detach()
    grad_W, h_bar, c_bar = torch.zeros_like(W), direct[-1], torch.zeros(H, dtype=torch.float64)
    for t in range(T - 1, -1, -1):
        h_before, c_before, c = states[t][0, 0], states[t][1, 0], states[t + 1][1, 0]
        i, f, g, o = (W @ h_before + W_ih @ x[t] + b).chunk(4)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c_bar = c_bar + h_bar * o * (1 - c.tanh() ** 2)
        delta = torch.cat(
            (
                _squash(c_bar * g, i),
                _squash(c_bar * c_before, f),
                c_bar * i * (1 - g**2),
                _squash(h_bar * c.tanh(), o),
            )
        )
        grad_W += torch.outer(delta, h_before)
        c_bar = c_bar * f
        h_bar = (direct[t - 1] if t else 0) + W.T @ delta
    torch.testing.assert_close(grad_W, layer.weight_hh_l0.grad, rtol=1e-10, atol=1e-12)


def test_the_gru():
    layer, x, direct, W, states = _layer("gru")
    W_r, W_z, W_n = W.chunk(3)
    grads, h_bar = [torch.zeros_like(W_r) for _ in range(3)], direct[-1]
    for t in range(T - 1, -1, -1):
        h = states[t][0, 0]
        a_r, a_z, a_n = (layer.weight_ih_l0.detach() @ x[t] + layer.bias_ih_l0.detach()).chunk(3)
        u_r, u_z, u_n = (W @ h + layer.bias_hh_l0.detach()).chunk(3)
        r, z = (a_r + u_r).sigmoid(), (a_z + u_z).sigmoid()
        n = (a_n + r * u_n).tanh()
        delta_n = h_bar * (1 - z) * (1 - n**2)
        delta_z, delta_r = _squash(h_bar * (h - n), z), _squash(delta_n * u_n, r)
        for grad, delta in zip(grads, (delta_r, delta_z, r * delta_n), strict=True):
            grad += torch.outer(delta, h)
        through = W_n.T @ (r * delta_n) + W_z.T @ delta_z + W_r.T @ delta_r
        h_bar = (direct[t - 1] if t else 0) + h_bar * z + through
    torch.testing.assert_close(torch.cat(grads), layer.weight_hh_l0.grad, rtol=1e-10, atol=1e-12)


def test_the_numbers_on_the_page():
    # The interval of "bac", with shares 1/2, 1/4, 1/4: whole multiples of its own length.
    low, size = 0.0, 1.0
    for start, share in ((0.5, 0.25), (0.0, 0.5), (0.75, 0.25)):
        low, size = low + start * size, share * size
    assert (low, low + size) == (19 / 32, 20 / 32)
    assert int("10011", 2) == 19
    assert pytest.approx(0.075) == 0.6 / 8
