"""Grades exercises.py, or with --solutions solutions.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from digits_data import load_digit_images
from gradient_descent import Adam, descend, quadratic_bowl, rosenbrock


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_1_log_mean_exp(answers):
    """it is right for small, huge and hugely negative numbers, along the last axis."""
    x = 3 * random(4, 5)
    np.testing.assert_allclose(answers.log_mean_exp(x), np.log(np.exp(x).mean(axis=-1)))
    for shift in (1000.0, -1000.0):
        np.testing.assert_allclose(answers.log_mean_exp(x + shift), answers.log_mean_exp(x) + shift)


def test_1_log_mean_exp_of_nothing(answers):
    """-inf counts as zero probability, and a row of it gives -inf, not NaN."""
    x = np.array([[-np.inf, 0.0], [-np.inf, -np.inf]])
    np.testing.assert_allclose(answers.log_mean_exp(x), [-math.log(2), -np.inf])


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 4), (4,), (1, 4), (3, 1), (2, 1, 4), (1,), ()])
def test_2_undo_broadcast(answers, shape):
    """the result has the asked-for shape and is PyTorch's gradient of the broadcast array."""
    gradient = random(2, 3, 4)
    x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    x.expand(2, 3, 4).backward(torch.tensor(gradient))
    result = answers.undo_broadcast(gradient, shape)
    assert np.shape(result) == shape
    np.testing.assert_allclose(result, x.grad.numpy())  # type: ignore[union-attr]


def _neuron():
    w = torch.tensor([1.0, -2.0], requires_grad=True)
    b = torch.tensor(0.5, requires_grad=True)
    loss = -F.logsigmoid(w @ torch.tensor([2.0, 1.0]) + b)
    loss.backward()
    return loss.item(), w.grad, b.grad


def test_3_neuron_loss(answers):
    """the loss is the negative logarithm of the logistic function of the sum."""
    assert pytest.approx(_neuron()[0], abs=1e-4) == answers.NEURON_LOSS


def test_3_neuron_gradients(answers):
    """the gradients are those of the loss with respect to the weights and the bias."""
    _, dw, db = _neuron()
    assert pytest.approx(dw.tolist(), abs=1e-4) == answers.NEURON_DW
    assert pytest.approx(db.item(), abs=1e-4) == answers.NEURON_DB


def test_3_bits(answers):
    """entropy is the mean of the surprises in bits; the waste is a KL divergence."""
    p = np.array([0.5, 0.25, 0.125, 0.125])
    assert pytest.approx(-(p * np.log2(p)).sum()) == answers.ENTROPY_BITS
    assert pytest.approx((p * np.log2(p / 0.25)).sum()) == answers.WASTE_BITS


def test_4_softmax_backward(answers):
    """it is PyTorch's gradient, for rows of any number of dimensions."""
    z = torch.tensor(random(2, 3, 5), requires_grad=True)
    p, g = z.softmax(-1), random(2, 3, 5, seed=1)
    p.backward(torch.tensor(g))
    np.testing.assert_allclose(
        answers.softmax_backward(p.detach().numpy(), g), z.grad.numpy(), atol=1e-12
    )


def test_5_backward_of_a_sum(answers):
    """a number used twice gets both messages."""
    x = answers.Scalar(3.0)
    answers.backward(x + x)
    assert x.grad == 2.0


def test_5_backward_of_a_product(answers):
    """factors get each other's value."""
    x, y = answers.Scalar(3.0), answers.Scalar(5.0)
    answers.backward(x * y + x)
    assert (x.grad, y.grad) == (6.0, 3.0)


def test_5_backward_of_a_power(answers):
    """a number used twice, made from one used twice, is passed on once and complete."""
    x = answers.Scalar(2.0)
    square = x * x
    answers.backward(square * square * square)
    assert x.grad == 6 * 2.0**5


def test_6_adam_path(answers):
    """the path has steps + 1 points, begins at the start and is Adam's."""
    surface = rosenbrock()
    path = answers.adam_path(surface.gradient, np.array(surface.start), lr=0.05, steps=40)
    expected = descend(lambda p: Adam(p, lr=0.05), surface, steps=40)
    assert path.shape == expected.shape
    np.testing.assert_allclose(path, expected, atol=1e-10)


def test_6_adam_path_leaves_the_start_alone(answers):
    """the array that was given as start is not changed."""
    start = np.array([1.0, 2.0])
    answers.adam_path(quadratic_bowl(3.0).gradient, start, lr=0.1, steps=3)
    assert start.tolist() == [1.0, 2.0]


def test_7_largest_lr(answers):
    """it is two over the largest eigenvalue of the Hessian."""
    largest = np.linalg.eigvalsh(np.array([[3.0, 1.0], [1.0, 3.0]]))[-1]
    assert pytest.approx(2 / largest) == answers.LARGEST_LR


def test_7_fp16_stops(answers):
    """counting in fp16 stops where the spacing of its numbers exceeds one."""
    total = np.float16(0)
    while total + np.float16(1) != total:
        total += np.float16(1)
    assert float(total) == answers.FP16_STOPS_AT


def test_7_momentum_stride(answers):
    """a constant gradient is multiplied by one over one minus the momentum."""
    v = 0.0
    for _ in range(2000):
        v = 0.95 * v + 1.0
    assert pytest.approx(0.1 * v, rel=1e-3) == answers.MOMENTUM_STRIDE


def test_7_shrinkage(answers):
    """the prediction is within a factor of 1.5 of what a wide network does."""
    rng = np.random.default_rng(0)
    h = np.maximum(rng.normal(size=(64, 500)), 0.0)
    first = np.sqrt((h**2).mean())
    for _ in range(19):
        h = np.maximum(h @ rng.normal(size=(500, 500)) / math.sqrt(500), 0.0)
    measured = np.sqrt((h**2).mean()) / first
    assert 1 / 1.5 < answers.SHRINKAGE / measured < 1.5


def test_8_mlp_gradients(answers):
    """loss and all four gradients are PyTorch's."""
    shapes = [(3, 5), (5,), (5, 4), (4,)]
    arrays = [random(*shape, seed=i) for i, shape in enumerate(shapes)]
    x, y = random(7, 3, seed=9), np.array([0, 3, 1, 1, 2, 0, 3])
    W1, b1, W2, b2 = tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    loss = F.cross_entropy(torch.tanh(torch.tensor(x) @ W1 + b1) @ W2 + b2, torch.tensor(y))
    loss.backward()
    ours, *gradients = answers.mlp_gradients(*arrays, x, y)
    assert ours == pytest.approx(loss.item())
    for gradient, tensor in zip(gradients, tensors, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), atol=1e-12)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_9_layer_norm_backward(answers, eps):
    """it is PyTorch's gradient, also where eps is not small."""
    x = torch.tensor(random(2, 3, 6), requires_grad=True)
    g = random(2, 3, 6, seed=1)
    F.layer_norm(x, (6,), eps=eps).backward(torch.tensor(g))
    np.testing.assert_allclose(
        answers.layer_norm_backward(x.detach().numpy(), g, eps), x.grad.numpy(), atol=1e-12
    )


FUNCTIONS = {
    "a sum": lambda x: x[0] + 2 * x[1] - x[2],
    "a product": lambda x: x[0] * x[1] * x[2],
    "a quotient": lambda x: (1 - x[0]) / (x[1] + 3.0),
    "powers": lambda x: x[0] ** 3 - x[1] ** 2 / x[2] ** 4,
    "numbers on the left": lambda x: 2.0 / (1.0 - 3.0 * x[0]) + (4.0 + x[1]),
    "Rosenbrock": lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_10_directional_derivative(answers, name):
    """it is the gradient's dot product with the direction, in a single evaluation."""
    calls = []

    def function(x):
        calls.append(1)
        return FUNCTIONS[name](x)

    x = torch.tensor([0.7, -1.3, 2.1], dtype=torch.float64, requires_grad=True)
    FUNCTIONS[name](x).backward()
    direction = [0.5, -2.0, 1.5]
    expected = float(x.grad @ torch.tensor(direction, dtype=torch.float64))  # type: ignore[operator]
    assert answers.directional_derivative(function, [0.7, -1.3, 2.1], direction) == pytest.approx(
        expected
    )
    assert len(calls) == 1


def test_11_digit_reader(answers):
    """at least 97 % of unseen digits are read, on average over three seeds."""
    scores = []
    for seed in range(3):
        read, digits = answers.digit_reader(seed), load_digit_images(seed=seed)
        scores.append((read(digits.test_x) == digits.test_y).mean())
    assert np.mean(scores) >= 0.97
