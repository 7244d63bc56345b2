"""Lower precision, and what is not finite: nothing silent."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from training import IGNORE_INDEX, next_token_loss
from training_testing import (
    ROWS,
    SEQ,
    VOCAB,
    averages,
    batch_of,
    gradients,
    plain_gradients,
    step_of,
    tiny_gpt,
)

# --- precision --------------------------------------------------------------------------------


def test_bfloat16_keeps_float32_weights_and_is_near():
    model, batch = tiny_gpt(), batch_of(4)
    wanted, loss = plain_gradients(model, batch)
    seen = []
    model.get_submodule("blocks.0.feed_forward").register_forward_hook(
        lambda *args: seen.append(args[2].dtype)
    )
    metrics = step_of(model, autocast=torch.bfloat16, micro_batch_size=4)(batch)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {g.dtype for g in gradients(model).values()} == {torch.float32}
    assert torch.as_tensor(metrics["loss"]).dtype == torch.float32
    assert float(metrics["loss"]) == pytest.approx(loss, abs=0.02)
    flat = [torch.cat([g.flatten() for g in some.values()]) for some in (gradients(model), wanted)]
    assert F.cosine_similarity(*flat, dim=0) > 0.99


DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]


@pytest.mark.parametrize("device", DEVICES)
def test_float16_gradients_that_underflow_without_scaling_arrive(device):
    def faint(model, batch):
        # A gradient of 1e-8 a weight: below float16's smallest number, 6e-8.
        hidden = model(batch[0])
        assert hidden.dtype == torch.float16
        return hidden.float().sum() * 1e-8 * ROWS * SEQ, torch.tensor(float(ROWS * SEQ))

    model = nn.Linear(4, 3).to(device)
    batch = torch.ones(ROWS, 4), torch.zeros(ROWS, 1)
    step = step_of(model, loss=faint, autocast=torch.float16)
    assert step.scaler is not None
    metrics = step(batch)
    assert gradients(model)["weight"].flatten().tolist() == pytest.approx(
        [1e-8 * ROWS] * 12, rel=1e-2
    )
    assert float(metrics["grad_norm"]) == pytest.approx((15 * (1e-8 * ROWS) ** 2) ** 0.5, rel=1e-2)


@pytest.mark.parametrize("device", DEVICES)
def test_float16_overflow_halves_the_scale_and_leaves_the_step_out(device):
    def steep(model, batch):
        return (model(batch[0]) * 30).sum(), torch.tensor(1.0)

    model = nn.Linear(4, 3).to(device)
    before = model.weight.detach().clone()
    step = step_of(model, loss=steep, autocast=torch.float16, tokens_per_step=ROWS * SEQ)
    scaler = step.scaler
    assert scaler is not None
    scales = [scaler.get_scale()]
    for _ in range(8):
        step((torch.ones(ROWS, 4), torch.zeros(ROWS, 1)))
        scales.append(scaler.get_scale())
        if step.skips_in_a_row == 0:
            break
        assert torch.equal(model.weight, before)
    assert step.skips == len(scales) - 2 >= 1
    assert scales[: step.skips + 1] == [scales[0] / 2**n for n in range(step.skips + 1)]
    assert not torch.equal(model.weight, before)


# --- nothing silent ---------------------------------------------------------------------------


def poisoned(model, batch, *, bad):
    """The usual loss, but infinite for a batch that holds the token `bad`."""
    nats, count = next_token_loss(model, batch)
    return (nats * float("inf") if bool((batch[0] == bad).any()) else nats), count


def bad_batch(seed, token):
    ids, targets = batch_of(seed)
    ids[ids == token] = (token + 1) % VOCAB
    if seed % 2:
        ids[0, 0] = token
    return ids, targets


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_weights():
    model = tiny_gpt()
    step = step_of(model, loss=functools.partial(poisoned, bad=7), micro_batch_size=4)
    step(bad_batch(0, 7))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FloatingPointError, match=r"step 2: the loss over \d+ targets is inf"):
        step(bad_batch(1, 7))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_gradient_that_is_not_finite_is_named():
    model = tiny_gpt()
    weight = model.get_parameter("blocks.1.feed_forward.up.weight")
    weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError, match=r"blocks\.1\.feed_forward\.up\.weight"):
        step_of(model)(batch_of(0))


def test_no_targets_at_all_are_no_silent_zero():
    ids, targets = batch_of(0)
    with pytest.raises(FloatingPointError, match="the loss over 0 targets is nan"):
        step_of(tiny_gpt())((ids, torch.full_like(targets, IGNORE_INDEX)))


def test_bad_steps_can_be_left_out():
    ours, theirs = tiny_gpt(), tiny_gpt()
    loss = functools.partial(poisoned, bad=7)
    step = step_of(ours, loss=loss, nonfinite="skip", max_skips=2, ema_decay=0.5)
    clean = step_of(theirs, ema_decay=0.5)
    for seed in (0, 1, 2, 3, 5, 4):
        metrics = step(bad_batch(seed, 7))
        assert math.isfinite(metrics["loss"]) == (seed % 2 == 0)
        if seed % 2 == 0:
            clean(bad_batch(seed, 7))
    assert (step.step, step.skips, step.skips_in_a_row) == (6, 3, 0)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert all(map(torch.equal, averages(step), averages(clean)))
    step(bad_batch(1, 7))
    step(bad_batch(1, 7))
    with pytest.raises(FloatingPointError, match="the 2 steps before it had to be left out too"):
        step(bad_batch(1, 7))


def test_nobody_looks_if_told_so():
    model = tiny_gpt()
    step = step_of(model, loss=functools.partial(poisoned, bad=7), nonfinite="ignore")
    assert not math.isfinite(step(bad_batch(1, 7))["loss"])
    assert any(bool(p.isnan().any()) for p in model.parameters())
