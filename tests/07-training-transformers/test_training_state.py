"""Averaged weights, recomputed activations, the state of a step and what it refuses."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import nn

from lr_schedules import linear
from training import TrainingStep, WeightAverage, all_reduce_gradients, checkpoint_activations
from training_testing import (
    averages,
    batch_of,
    config_of,
    gradients,
    largest_difference,
    step_of,
    tiny_gpt,
)
from transformer import TransformerBlock

# --- averaged weights, recomputed activations -------------------------------------------------


def test_the_average_is_that_of_torch():
    model = tiny_gpt()
    step = step_of(model, ema_decay=0.9)
    # Ours warms up; a decay that begins where (1 + n) / (10 + n) ends is torch's.
    assert step.average is not None
    step.average.updates = 10_000
    multi = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    theirs = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=multi)
    theirs.update_parameters(model)  # the first call copies
    for number in range(4):
        step(batch_of(number))
        theirs.update_parameters(model)
    for mine, other in zip(averages(step), theirs.module.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-7)


def test_the_average_warms_up():
    weight = nn.Parameter(torch.zeros(1))
    average = WeightAverage([weight], 0.999)
    found, expected = [], 0.0
    for number in range(1, 5):
        weight.data.fill_(float(number))
        average.update()
        decay = (1 + number) / (10 + number)
        expected = decay * expected + (1 - decay) * number
        found.append(average.averages[0].item() / expected)
    assert found == pytest.approx([1.0] * 4, rel=1e-6)


def test_averaged_weights_stand_in_and_leave_again():
    model = tiny_gpt()
    step = step_of(model, ema_decay=0.9)
    for number in range(3):
        step(batch_of(number))
    trained = copy.deepcopy(model.state_dict())
    average = [tensor.clone() for tensor in averages(step)]
    with contextlib.suppress(KeyError), step.averaged_weights() as averaged:
        assert averaged is model
        assert all(map(torch.equal, model.parameters(), average))
        raise KeyError("an evaluation that fails must not leave the average in place")
    assert all(torch.equal(trained[name], value) for name, value in model.state_dict().items())
    assert model.unembed.weight is model.token_embedding.weight, "still tied"
    step(batch_of(9))  # the optimizer still moves the model's own parameters
    assert not torch.equal(trained["final_norm.weight"], model.final_norm.weight)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_activations_give_the_same_gradients(dropout):
    kept, recomputed = tiny_gpt(dropout=dropout), tiny_gpt(dropout=dropout)
    for model, recompute in ((kept, False), (recomputed, True)):
        torch.manual_seed(5)
        step_of(model, activation_checkpointing=recompute, micro_batch_size=4)(batch_of(0))
    assert largest_difference(gradients(kept), gradients(recomputed)) == 0.0
    assert list(kept.state_dict()) == list(recomputed.state_dict())


def saved_bytes(model, ids):
    """Bytes that the forward pass keeps for the backward pass, each storage once."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(ids)
    del out
    return sum(size for pointer, size in storages.items() if pointer not in weights)


def test_recomputed_activations_keep_less():
    model = tiny_gpt()
    ids = batch_of(0)[0]
    before = saved_bytes(model, ids)
    assert checkpoint_activations(model) == 2
    assert checkpoint_activations(model) == 2  # asking twice is asking once
    assert saved_bytes(model, ids) < 0.5 * before
    calls = []
    model.get_submodule("blocks.0.attention").register_forward_hook(lambda *args: calls.append(1))
    model(ids).sum().backward()
    assert len(calls) == 2, "once forwards, once again backwards"
    with torch.no_grad():
        model(ids)
    assert len(calls) == 3
    with pytest.raises(ValueError, match=r"Linear holds no TransformerBlock"):
        checkpoint_activations(nn.Linear(2, 2))
    assert isinstance(model.blocks[0], TransformerBlock)


# --- state and configuration ------------------------------------------------------------------


def test_the_state_goes_on_bit_for_bit():
    def fresh(seed):
        model = tiny_gpt(seed, dropout=0.2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        options = config_of(micro_batch_size=4, ema_decay=0.9, clip_norm=0.5)
        return TrainingStep(model, optimizer, linear(9, warmup_steps=2), options)

    torch.manual_seed(0)
    unbroken = fresh(0)
    for number in range(3):
        unbroken(batch_of(number))
    state, generator = copy.deepcopy(unbroken.state_dict()), torch.get_rng_state()
    for number in range(3, 6):
        unbroken(batch_of(number))

    resumed = fresh(1)
    resumed.load_state_dict(state)
    torch.set_rng_state(generator)
    for number in range(3, 6):
        resumed(batch_of(number))
    assert resumed.step == 6
    for mine, other in zip(resumed.parameters, unbroken.parameters, strict=True):
        assert torch.equal(mine, other)
    assert all(map(torch.equal, averages(resumed), averages(unbroken)))


def test_a_state_of_another_kind_is_refused():
    state = step_of(tiny_gpt(), ema_decay=0.9).state_dict()
    with pytest.raises(ValueError, match="saved state has an average of the weights and this run"):
        step_of(tiny_gpt()).load_state_dict(state)
    with pytest.raises(ValueError, match="this run has loss scaling and the saved state has none"):
        step_of(tiny_gpt(), ema_decay=0.9, autocast=torch.float16).load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"micro_batch_size": 5}, r"108 must be a multiple .* 9 \* micro_batch_size 5"),
        ({"world_size": 5}, r"world_size 5 = 540"),
        ({"tokens_per_step": 0}, "tokens_per_step must be at least 1; got 0"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"ema_decay": 1.0}, "between 0 and 1; got 1.0"),
        ({"autocast": torch.float64}, "got torch.float64"),
        ({"nonfinite": "panic"}, "'panic'"),
    ],
)
def test_a_wrong_config_says_what_is_wrong(options, says):
    with pytest.raises(ValueError, match=says):
        config_of(**options)


def test_wrong_use_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"the batch has 8 rows; .* is 12"):
        step_of(tiny_gpt())(tuple(tensor[:8] for tensor in batch_of(0)))
    with pytest.raises(ValueError, match="world_size 2 and reduce_gradients None"):
        step_of(tiny_gpt(), world_size=2, micro_batch_size=6)
    with pytest.raises(ValueError, match="world_size 1 and reduce_gradients"):
        step_of(tiny_gpt(), reduce=all_reduce_gradients)
    frozen = tiny_gpt().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires gradients"):
        step_of(frozen)
