"""Lion and LAMB by hand, Adafactor beside transformers', and what each promises."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor as TheirAdafactor

from optimizers import AdamW, Muon
from other_optimizers import LAMB, Adafactor, Lion, optimizer_state_numbers

SHAPES = [(37, 19), (19,), (3, 5, 7), (1,), (40, 41)]


def _parameters(seed: int = 0, shapes=SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def _set_gradients(parameters, step: int) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for i, p in enumerate(parameters):
        p.grad = torch.randn(p.shape, generator=generator) * 10.0 ** ((step + i) % 4 - 3)


def _one(value: float, grad: float) -> nn.Parameter:
    p = nn.Parameter(torch.tensor([value], dtype=torch.float64))
    p.grad = torch.tensor([grad], dtype=torch.float64)
    return p


def test_lion_by_hand() -> None:
    """Two steps from w = 1: gradients 4 and -1, lr 0.1, decay 0.5."""
    p = _one(1.0, 4.0)
    optimizer = Lion([p], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    optimizer.step()
    # c = 0.4, sign 1: 1 - 0.1 (1 + 0.5) = 0.85; m = 0.04.
    assert p.item() == pytest.approx(0.85, abs=1e-12)
    p.grad = torch.full_like(p, -1.0)
    optimizer.step()
    # c = 0.036 - 0.1 = -0.064, sign -1: 0.85 - 0.1 (-1 + 0.425) = 0.9075; m = 0.0396 - 0.01.
    assert p.item() == pytest.approx(0.9075, abs=1e-12)
    assert optimizer.state[p]["exp_avg"].item() == pytest.approx(0.0296, abs=1e-12)


def test_lion_moves_every_weight_by_lr_whatever_the_gradient() -> None:
    parameters = _parameters()
    before = [p.detach().clone() for p in parameters]
    _set_gradients(parameters, 0)
    Lion(parameters, lr=3e-3).step()
    for p, old in zip(parameters, before, strict=True):
        torch.testing.assert_close((p - old).abs(), torch.full_like(p, 3e-3), rtol=1e-3, atol=0)


def test_lamb_by_hand() -> None:
    """First step: m_hat / sqrt(v_hat) is the gradient's sign, so the numbers are small ones."""
    p = nn.Parameter(torch.tensor([3.0, -4.0], dtype=torch.float64))  # norm 5
    p.grad = torch.tensor([0.2, 0.7], dtype=torch.float64)
    LAMB([p], lr=0.1, eps=0.0, weight_decay=0.5).step()
    # u = (1, 1) + 0.5 (3, -4) = (2.5, -1), |u| = sqrt(7.25); w - 0.1 · 5 / |u| · u.
    factor = 0.1 * 5 / math.sqrt(7.25)
    expected = torch.tensor([3.0 - 2.5 * factor, -4.0 + factor], dtype=torch.float64)
    torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=0)


def test_lamb_step_is_a_share_of_the_weights_norm() -> None:
    """Ten times the weights, ten times the step; the gradient's scale does not matter."""
    steps = []
    for scale, grad_scale in ((1.0, 1.0), (0.1, 1.0), (1.0, 100.0)):
        p = _parameters(shapes=[(6, 5)])[0]
        p.data *= scale
        before = p.detach().clone()
        _set_gradients([p], 1)
        assert p.grad is not None
        p.grad *= grad_scale
        LAMB([p], lr=0.01, eps=0.0, weight_decay=0.0).step()
        steps.append((p.detach() - before).norm() / before.norm())
        assert steps[-1].item() == pytest.approx(0.01, rel=1e-4)


def test_lamb_leaves_zero_weights_with_adams_step_and_caps_large_ones() -> None:
    p = nn.Parameter(torch.zeros(4))
    p.grad = torch.tensor([1.0, -2.0, 3.0, 0.5])
    LAMB([p], lr=0.1, eps=0.0, weight_decay=0.0).step()
    torch.testing.assert_close(p.detach(), -0.1 * torch.tensor([1.0, -1.0, 1.0, 1.0]))
    large = nn.Parameter(torch.full((4,), 100.0))  # norm 200, credited with 10
    large.grad = torch.ones(4)
    LAMB([large], lr=0.1, eps=0.0, weight_decay=0.0).step()
    torch.testing.assert_close(large.detach(), torch.full((4,), 100.0 - 0.1 * 10 / 2))


@pytest.mark.parametrize("beta1", [None, 0.9])
@pytest.mark.parametrize("scale_parameter", [True, False])
def test_adafactor_follows_transformers(beta1, scale_parameter: bool) -> None:
    ours, theirs = _parameters(), _parameters()
    settings = {"lr": 0.02, "beta1": beta1, "weight_decay": 0.1, "scale_parameter": scale_parameter}
    mine = Adafactor(ours, **settings)
    reference = TheirAdafactor(theirs, relative_step=False, warmup_init=False, **settings)
    for step in range(12):
        _set_gradients(ours, step)
        _set_gradients(theirs, step)
        mine.step()
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-5, atol=2e-6)


def test_adafactor_is_exact_where_the_squares_have_rank_one() -> None:
    """A gradient a b^T has the squares' matrix (a^2)(b^2)^T: nothing is lost by factoring."""
    a, b = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 4.0])
    p = nn.Parameter(torch.zeros(3, 2))
    p.grad = torch.outer(a, b)
    Adafactor([p], lr=1.0, scale_parameter=False).step()
    torch.testing.assert_close(p.detach(), -torch.outer(a.sign(), b.sign()))


@pytest.mark.parametrize(
    ("make", "numbers"),
    [
        (lambda ps: AdamW(ps), 2 * 1200),
        (lambda ps: LAMB(ps), 2 * 1200),
        (lambda ps: Lion(ps), 1200),
        (lambda ps: Muon(ps), 1200),
        (lambda ps: Adafactor(ps), 30 + 40),
        (lambda ps: Adafactor(ps, beta1=0.9), 30 + 40 + 1200),
    ],
)
def test_numbers_kept_beside_the_weights(make, numbers: int) -> None:
    parameters = _parameters(shapes=[(30, 40)])
    optimizer = make(parameters)
    _set_gradients(parameters, 0)
    optimizer.step()
    assert optimizer_state_numbers(optimizer) == numbers


@pytest.mark.parametrize("kind", [Lion, LAMB, Adafactor])
def test_a_saved_state_goes_on_bit_for_bit(kind) -> None:
    parameters = _parameters()
    optimizer = kind(parameters, lr=0.01)
    for step in range(3):
        _set_gradients(parameters, step)
        optimizer.step()
    twins = [nn.Parameter(p.detach().clone()) for p in parameters]
    twin = kind(twins, lr=0.5)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert twin.param_groups[0]["initial_lr"] == 0.01
    for step in range(3, 6):
        for who, what in ((optimizer, parameters), (twin, twins)):
            _set_gradients(what, step)
            who.step()
    assert all(torch.equal(p, q) for p, q in zip(parameters, twins, strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lion(_parameters(), lr=-1.0), "lr must be >= 0, got -1"),
        (lambda: Lion(_parameters(), betas=(0.9, 1.0)), "betas must be two numbers"),
        (lambda: LAMB(_parameters(), eps=-1e-6), "eps must be >= 0"),
        (lambda: LAMB(_parameters(), weight_decay=-0.1), "weight_decay must be >= 0"),
        (lambda: Adafactor(_parameters(), decay_rate=0.8), "decay_rate must be negative, got 0.8"),
        (lambda: Adafactor(_parameters(), beta1=1.5), "beta1 must be in"),
    ],
)
def test_bad_input_gives_the_stated_error(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_closures_run_with_gradients_and_sparse_gradients_are_refused() -> None:
    p = _one(2.0, 0.0)
    optimizer = Lion([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert p.item() == pytest.approx(1.9)
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="Lion needs dense gradients"):
        Lion(table.parameters()).step()
