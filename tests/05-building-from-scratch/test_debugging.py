"""The six checks pass healthy models and find what they are for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from debugging import (
    activation_statistics,
    causal_leak,
    dead_units,
    gradient_flow,
    initial_loss_check,
    leak_map,
    overfit_one_batch,
)
from gpt import GPT, GPTConfig
from planted_bugs import PlantedBug, planted_bugs

V, T = 97, 16
BUGS = {bug.name: bug for bug in planted_bugs()}
FOUND_BY = {
    "targets not shifted": {"one batch"},
    "mask off by one": {"causal leak"},
    "embeddings of std 1": {"initial loss"},
    "residual dropped": {"one batch"},
    "attention detached": {"gradient flow"},
    "softmax taken twice": {"one batch"},
    "dead feed-forward": {"dead units"},
    "positions left out": {"gradient flow"},
}


def healthy(**changes) -> GPT:
    config = GPTConfig(
        **{
            "vocab_size": V,
            "d_model": 48,
            "num_heads": 4,
            "num_layers": 3,
            "max_seq_len": T,
            **changes,
        }
    )
    return GPT(config, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def batch():
    tokens = torch.randint(V, (4, T + 1), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1], tokens[:, 1:]


def checks(bug: PlantedBug, ids, targets) -> dict[str, bool]:
    def patient() -> GPT:
        model = healthy()
        bug.plant(model)
        return model

    return {
        "initial loss": initial_loss_check(patient(), ids, targets, loss_of=bug.loss_of).ok,
        "one batch": overfit_one_batch(patient(), ids, targets, loss_of=bug.loss_of).ok,
        "causal leak": causal_leak(patient(), ids).ok,
        "gradient flow": gradient_flow(patient(), ids, targets, loss_of=bug.loss_of).ok,
        "activations": activation_statistics(patient(), ids).ok,
        "dead units": dead_units(patient(), ids).ok,
    }


def test_a_healthy_model_passes_all(batch):
    assert all(checks(BUGS["none"], *batch).values())


@pytest.mark.parametrize("name", sorted(FOUND_BY))
def test_each_bug_is_found_by_the_check_that_is_for_it(name, batch):
    verdicts = checks(BUGS[name], *batch)
    assert {check for check, ok in verdicts.items() if not ok} >= FOUND_BY[name]


@pytest.mark.parametrize("bug", planted_bugs(), ids=lambda bug: bug.name)
def test_no_bug_crashes_and_each_changes_something(bug, batch):
    ids, targets = batch
    model = healthy()
    before = BUGS["none"].loss_of(model, ids, targets).item()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bug.plant(model)
    after = bug.loss_of(model, ids, targets)
    after.backward()
    assert math.isfinite(after.item())
    if bug.name != "none":
        gradients = [p.grad is None or not bool(p.grad.any()) for p in model.parameters()]
        changed = any(
            not torch.equal(tensor, state[name])
            for name, tensor in model.state_dict().items()
            if name in state
        )
        assert after.item() != before or any(gradients) or changed


def test_the_checks_leave_the_model_as_it_was(batch):
    model = healthy()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    ids, targets = batch
    for check in (initial_loss_check, overfit_one_batch, gradient_flow):
        check(model, ids, targets)
    for check in (causal_leak, activation_statistics, dead_units):
        check(model, ids)
    assert model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.blocks[0]._forward_hooks


def test_the_leak_map_is_a_lower_triangle(batch):
    influence = leak_map(healthy(), batch[0])
    assert influence.shape == (T, T)
    assert influence.triu(1).eq(0).all()
    assert influence.diagonal().gt(0).all()


def test_a_leak_names_the_two_positions(batch):
    model = healthy()
    BUGS["mask off by one"].plant(model)
    report = causal_leak(model, batch[0])
    assert not report.ok
    assert "which comes later" in report.message


def test_silent_parameters_are_named(batch):
    model = healthy()
    block: Any = model.blocks[1]
    block.feed_forward.up.weight.requires_grad_(False)
    report = gradient_flow(model, *batch)
    assert not report.ok
    assert "blocks.1.feed_forward.up.weight" in report.message


def test_one_position_cannot_leak_and_strangers_are_refused(batch):
    with pytest.raises(ValueError, match="at least two"):
        causal_leak(healthy(), batch[0][:, :1])
    stranger = nn.Sequential(nn.Embedding(V, 8), nn.Linear(8, V))
    with pytest.raises(ValueError, match="token_embedding"):
        causal_leak(stranger, batch[0])
    with pytest.raises(ValueError, match="blocks"):
        activation_statistics(stranger, batch[0])
    with pytest.raises(ValueError, match=r"feed_forward\.down"):
        dead_units(stranger, batch[0])
