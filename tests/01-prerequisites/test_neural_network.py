"""One network three times: equal gradients, equal weights after training, and what it can learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from digits_data import load_digit_images, minibatches, xor_examples
from expression_graphs import numeric_gradient
from gradient_descent import SGD, Adam, Momentum
from neural_network import (
    EngineMLP,
    HandMLP,
    MLPConfig,
    TorchMLP,
    TorchNetwork,
    accuracy,
    gradient_step,
    initial_parameters,
    signal_by_depth,
)
from train_loop import fit

SIZES = [(3, 4), (3, 7, 4), (5, 6, 8, 4)]


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
@pytest.mark.parametrize("sizes", SIZES)
def test_three_ways_one_gradient(sizes, nonlinearity):
    config = MLPConfig(sizes=sizes, nonlinearity=nonlinearity)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, sizes[0])), rng.integers(0, 4, size=6)
    hand = HandMLP(config, seed=3)
    loss, gradients = hand.loss_and_gradients(x, y)
    for other in (EngineMLP(config, seed=3), TorchNetwork(config, seed=3)):
        np.testing.assert_allclose(other.logits(x), hand.logits(x), atol=1e-12)
        other_loss, other_gradients = other.loss_and_gradients(x, y)
        assert other_loss == pytest.approx(loss, abs=1e-12)
        for a, b in zip(gradients, other_gradients, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)
    for place, parameter in enumerate(hand.parameters):

        def loss_at(changed, place=place):
            copy = HandMLP(config, seed=3)
            copy.parameters[place] = changed
            return copy.loss_and_gradients(x, y)[0]

        np.testing.assert_allclose(
            gradients[place], numeric_gradient(loss_at, parameter), atol=1e-8
        )


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
@pytest.mark.parametrize("optimizer", [Adam, Momentum])
def test_trained_alike_they_end_alike(nonlinearity, optimizer):
    config = MLPConfig(sizes=(64, 24, 10), nonlinearity=nonlinearity)
    digits = load_digit_images()
    ends = []
    for kind in (HandMLP, EngineMLP, TorchNetwork):
        network: Any = kind(config, seed=1)
        before = [p.copy() for p in network.parameters]
        step = gradient_step(network, optimizer(network.parameters, lr=0.01))
        batches = minibatches(digits.train_x, digits.train_y, batch_size=32, seed=2)
        fit(step, batches, max_steps=100)
        ends.append(network.parameters)
        assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(before, ends[-1], strict=True))
    for other in ends[1:]:
        for a, b in zip(ends[0], other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-10)


def test_torchs_own_optimiser_ends_there_too():
    config = MLPConfig(sizes=(64, 24, 10))
    digits = load_digit_images()
    hand, module = HandMLP(config, seed=1), TorchMLP(config, seed=1)
    theirs = torch.optim.Adam(module.parameters(), lr=0.01)
    step = gradient_step(hand, Adam(hand.parameters, lr=0.01))
    batches = minibatches(digits.train_x, digits.train_y, batch_size=32, seed=2)
    for _, (x, y) in zip(range(60), batches, strict=False):
        step((x, y))
        theirs.zero_grad()
        F.cross_entropy(module(torch.tensor(x)), torch.tensor(y)).backward()
        theirs.step()
    for ours, parameter in zip(hand.parameters, module.parameters(), strict=True):
        np.testing.assert_allclose(ours, parameter.detach().numpy(), atol=1e-9)


def test_xor_from_one_hundred_seeds():
    x, y = xor_examples()
    config = MLPConfig(sizes=(2, 8, 2), nonlinearity="tanh", initialisation="xavier")
    solved = 0
    for seed in range(100):
        network = HandMLP(config, seed=seed)
        step = gradient_step(network, Adam(network.parameters, lr=0.05))
        for _ in range(300):
            step((x, y))
        solved += accuracy(network, x, y) == 1.0
    assert solved == 100


def test_no_linear_network_solves_xor():
    x, y = xor_examples()
    network = HandMLP(MLPConfig(sizes=(2, 2)), seed=0)
    step = gradient_step(network, Adam(network.parameters, lr=0.05))
    for _ in range(500):
        loss = step((x, y))["loss"]
    assert loss == pytest.approx(np.log(2), abs=1e-6)
    assert accuracy(network, x, y) <= 0.75


@pytest.mark.parametrize("seed", [0, 1])
def test_digits_reach_97_percent(seed):
    digits = load_digit_images(seed=seed)
    network = HandMLP(MLPConfig(sizes=(64, 128, 10)), seed=seed)
    step = gradient_step(network, Adam(network.parameters, lr=2e-3))
    batches = minibatches(digits.train_x, digits.train_y, batch_size=64, seed=seed)
    fit(step, batches, max_steps=800)
    assert accuracy(network, digits.test_x, digits.test_y) >= 0.97


def test_initial_variances():
    for name, variance in (
        ("he", 2 / 400),
        ("xavier", 2 / 1000),
        ("tiny", 1 / 3200),
        ("huge", 0.08),
    ):
        W, b = initial_parameters(MLPConfig(sizes=(400, 600), initialisation=name), 0)  # type: ignore[arg-type]
        assert W.var() == pytest.approx(variance, rel=0.02)
        assert not b.any()
    assert not initial_parameters(MLPConfig(sizes=(4, 6), initialisation="zeros"), 0)[0].any()


def test_he_keeps_the_signal_and_the_others_lose_it():
    """Ten layers of ReLU: He's variance keeps the size, 16 times less loses a factor 4 a layer."""
    x = np.random.default_rng(0).normal(size=(200, 256))
    sizes = (256,) * 10 + (10,)
    he, _ = signal_by_depth(MLPConfig(sizes=sizes), x)
    tiny, gradients = signal_by_depth(MLPConfig(sizes=sizes, initialisation="tiny"), x)
    assert 0.5 < he[8] / he[0] < 2
    assert tiny[8] / tiny[0] == pytest.approx(4.0**-8 * he[8] / he[0], rel=1e-6)
    assert gradients[0] < 1e-4


def test_zeros_never_break_the_symmetry():
    """Equal hidden units get equal gradients for ever: of a network of zeros only the last bias
    moves.
    """
    digits = load_digit_images()
    network = HandMLP(MLPConfig(sizes=(64, 16, 10), initialisation="zeros"))
    step = gradient_step(network, Adam(network.parameters, lr=0.01))
    fit(step, minibatches(digits.train_x, digits.train_y, batch_size=64, seed=0), max_steps=30)
    assert [bool(p.any()) for p in network.parameters] == [False, False, False, True]


def test_parameters_are_counted():
    config = MLPConfig(sizes=(64, 128, 10))
    assert config.num_parameters == 9610
    assert config.num_parameters == sum(p.size for p in initial_parameters(config, 0))


def test_an_epoch_visits_every_example_once():
    x, y = np.arange(10.0)[:, None], np.arange(10)
    batches = minibatches(x, y, batch_size=4, seed=0)
    epochs = [[next(batches) for _ in range(3)] for _ in range(2)]
    for epoch in epochs:
        assert [len(b[1]) for b in epoch] == [4, 4, 2]
        assert sorted(np.concatenate([b[1] for b in epoch])) == list(range(10))
        assert all((b[0][:, 0] == b[1]).all() for b in epoch)
    assert not (epochs[0][0][1] == epochs[1][0][1]).all()


def test_test_images_are_apart_and_unknown():
    split = load_digit_images(seed=5)
    assert (len(split.train_y), len(split.test_y)) == (1438, 359)
    np.testing.assert_allclose(split.train_x.mean(axis=0), 0.0, atol=1e-12)
    assert np.abs(split.test_x.mean(axis=0)).max() > 1e-3
    other = load_digit_images(seed=6)
    assert not np.array_equal(split.test_y, other.test_y)


NET = HandMLP(MLPConfig(sizes=(2, 3, 2)))
X = np.zeros((1, 2))
NOT: Any = "x"
BAD = {
    "one size": (lambda: MLPConfig(sizes=(2,)), ValueError, "two or more"),
    "size of zero": (lambda: MLPConfig(sizes=(2, 0)), ValueError, "two or more"),
    "nonlinearity": (lambda: MLPConfig(sizes=(2, 2), nonlinearity=NOT), ValueError, "relu or"),
    "initialisation": (lambda: MLPConfig(sizes=(2, 2), initialisation=NOT), ValueError, "unknown"),
    "other width": (lambda: NET.logits(np.zeros((1, 3))), ValueError, r"\(N, 2\)"),
    "engine's width": (lambda: EngineMLP(NET.config).logits(X[0]), ValueError, r"\(N, 2\)"),
    "torch's width": (lambda: TorchNetwork(NET.config).logits(X[0]), ValueError, r"\(N, 2\)"),
    "target": (lambda: NET.loss_and_gradients(X, np.array([2])), ValueError, "targets must"),
    "nobody": (lambda: accuracy(NET, X[:0], np.zeros(0)), ValueError, "no examples"),
    "batch size": (lambda: minibatches(X, X, batch_size=0, seed=0), ValueError, "batch size"),
    "lengths": (lambda: minibatches(X, X[:0], batch_size=1, seed=0), ValueError, "equally many"),
    "share": (lambda: load_digit_images(test_share=1.0), ValueError, "test_share"),
    "mixed": (lambda: gradient_step(NET, SGD([X], lr=1))((X, np.array([0]))), ValueError, "shapes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_the_stated_error(case):
    call, error, words = BAD[case]
    with pytest.raises(error, match=words):
        call()
