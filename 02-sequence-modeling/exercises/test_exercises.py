"""Grades `exercises.py`, or with `--solutions` `solutions.py`."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_1_bits_of(answers):
    """halves cost one bit each, quarters two, and a certain symbol nothing."""
    assert answers.bits_of([0.5, 0.25, 1.0]) == pytest.approx(3.0)
    assert answers.bits_of([0.1] * 1000) == pytest.approx(1000 * math.log2(10))


def test_2_continuation_counts(answers):
    """each different symbol before counts once, the beginning included."""
    assert answers.continuation_counts([0, 1, 0, 1]) == {0: 2, 1: 1}
    assert answers.continuation_counts([5, 5, 5]) == {5: 2}
    assert answers.continuation_counts([]) == {}


def weights():
    return random(4, 3, seed=1), 0.5 * random(4, 4, seed=2), random(4, seed=3)


def test_3_elman_forward(answers):
    """the states are those of torch.nn.RNN with the same weights."""
    w_x, w_h, b = weights()
    twin = nn.RNN(3, 4, batch_first=True).double()
    twin.load_state_dict(
        {
            "weight_ih_l0": w_x,
            "weight_hh_l0": w_h,
            "bias_ih_l0": b,
            "bias_hh_l0": torch.zeros(4).double(),
        }
    )
    x = random(2, 6, 3)
    torch.testing.assert_close(answers.elman_forward(x, w_x, w_h, b), twin(x)[0])


def test_4_elman_backward(answers):
    """the three gradients are autograd's, with a loss at every position."""
    w_x, w_h, b = (w.requires_grad_() for w in weights())
    x, out_grad = random(2, 6, 3), random(2, 6, 4, seed=5)
    h, states = torch.zeros(2, 4).double(), []
    for t in range(6):
        h = torch.tanh(x[:, t] @ w_x.T + h @ w_h.T + b)
        states.append(h)
    out = torch.stack(states, dim=1)
    expected = torch.autograd.grad((out * out_grad).sum(), (w_x, w_h, b))
    found = answers.elman_backward(x, out.detach(), w_h.detach(), out_grad)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_5_numbers(answers):
    """a share of 0.9 is kept each step; a GRU has three gates with two biases each."""
    assert math.ceil(math.log(0.01) / math.log(0.9)) == answers.STEPS_TO_FORGET
    assert sum(p.numel() for p in nn.GRU(100, 200).parameters()) == answers.GRU_PARAMETERS


def test_6_clip_by_norm(answers):
    """the common norm is at most the limit, the direction stays, small gradients stay."""
    gradients = [random(3), random(2, 2, seed=1)]
    flat = torch.cat([g.flatten() for g in gradients])
    clipped = torch.cat([g.flatten() for g in answers.clip_by_norm(gradients, 0.5)])
    torch.testing.assert_close(clipped, flat / flat.norm() * 0.5)
    for before, after in zip(gradients, answers.clip_by_norm(gradients, 100.0), strict=True):
        torch.testing.assert_close(before, after)


def test_7_predictions(answers):
    """the Jacobian is the tenth power of W; bits a byte are a share of eight."""
    assert pytest.approx(1 / 1024) == answers.JACOBIAN_AFTER_TEN
    assert answers.COMPRESSED_BYTES == 1_000_000 * 2 // 8


def test_8_recall(answers):
    """the first of 25 symbols is named in 95 of 100 new sequences."""
    model = answers.train_to_recall(400)
    ids = torch.randint(8, (500, 25), generator=torch.Generator().manual_seed(99))
    with torch.no_grad():
        right = (model(ids).argmax(-1) == ids[:, 0]).double().mean()
    assert right >= 0.95, f"{right:.0%} of the first symbols were named"
