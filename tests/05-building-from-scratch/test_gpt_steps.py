"""What each step of the construction claims, proved: what it can see and what it cannot."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from gpt import GPT
from gpt_steps import STEPS, CausalMean, build_step

V, T = 17, 12


def make(number: int, seed: int = 0) -> nn.Module:
    return build_step(
        number, vocab_size=V, d_model=24, num_heads=3, num_layers=2, max_seq_len=16, seed=seed
    ).eval()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(V, (2, T), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_every_step_maps_ids_to_logits_and_sees_no_future(step, ids):
    model = make(step.number)
    changed = ids.clone()
    changed[:, 7] = (changed[:, 7] + 1) % V
    before, after = model(ids), model(changed)
    assert before.shape == (2, T, V)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7], after[:, 7])


@pytest.mark.parametrize("number", range(2, 10))
def test_from_step_2_on_the_past_matters(number, ids):
    model = make(number)
    changed = ids.clone()
    changed[:, 0] = (changed[:, 0] + 1) % V
    assert (model(ids)[:, -1] - model(changed)[:, -1]).abs().max() > 1e-6


def test_the_bigram_sees_only_the_last_token(ids):
    model = make(1)
    changed = torch.randint(V, ids.shape, generator=torch.Generator().manual_seed(2))
    changed[:, -1] = ids[:, -1]
    assert torch.equal(model(ids)[:, -1], model(changed)[:, -1])


@pytest.mark.parametrize("number", [2, 3])
def test_without_positions_the_order_of_the_past_is_lost(number, ids):
    model = make(number)
    order = torch.randperm(T - 1, generator=torch.Generator().manual_seed(3))
    shuffled = torch.cat((ids[:, order], ids[:, -1:]), dim=1)
    torch.testing.assert_close(model(ids)[:, -1], model(shuffled)[:, -1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("number", range(4, 10))
def test_with_positions_the_order_matters(number, ids):
    model = make(number)
    shuffled = torch.cat((ids[:, :-1].flip(1), ids[:, -1:]), dim=1)
    assert (model(ids)[:, -1] - model(shuffled)[:, -1]).abs().max() > 1e-4


def test_causal_mean_is_a_lower_triangle_whose_rows_sum_to_one():
    x = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(4))
    triangle = torch.ones(5, 5).tril()
    torch.testing.assert_close(CausalMean()(x), triangle / triangle.sum(1, keepdim=True) @ x)


def test_the_last_step_is_gpt_and_starts_at_the_loss_of_knowing_nothing():
    model = build_step(
        9, vocab_size=512, d_model=64, num_heads=4, num_layers=3, max_seq_len=64, seed=0
    )
    assert isinstance(model, GPT)
    ids = torch.randint(512, (8, 65), generator=torch.Generator().manual_seed(5))
    logits = model(ids[:, :-1])
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    # ln V plus half the logits' variance: D · 0.02² / 2 = 0.013.
    assert math.log(512) < loss.item() < math.log(512) + 0.06


def test_steps_are_drawn_from_their_seed_alone(ids):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first = make(8, seed=7)(ids)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(321)
    assert torch.equal(first, make(8, seed=7)(ids))
    assert not torch.equal(first, make(8, seed=8)(ids))


@pytest.mark.parametrize("number", [0, 10, -1])
def test_unknown_steps_are_refused(number):
    with pytest.raises(ValueError, match="is not one of 1 to 9"):
        make(number)
