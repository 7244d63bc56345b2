"""Stable softmax and cross-entropy against torch, and information theory against its theorems."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from numerics import (
    bits_per_byte,
    cross_entropy,
    entropy,
    kl_divergence,
    log_softmax,
    log_sum_exp,
    mutual_information,
    nats_to_bits,
    perplexity,
    softmax,
)


def random_tensor(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_targets(*shape: int, V: int, seed: int = 1, ignored: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(V, shape, generator=generator)
    if ignored:
        targets[torch.rand(shape, generator=generator) < 0.3] = -100
    return targets


logits_arrays = arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(1, 6)),
    elements=st.floats(-2000.0, 2000.0),
)


# --- softmax and its logarithms -----------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_softmaxes_equal_torch(axis: int, scale: float) -> None:
    x = random_tensor(3, 5, 7, scale=scale)
    for ours, theirs in (
        (softmax, torch.softmax),
        (log_softmax, torch.log_softmax),
        (log_sum_exp, torch.logsumexp),
    ):
        expected = theirs(x, axis)
        torch.testing.assert_close(ours(x, axis), expected, rtol=1e-6, atol=1e-6)
        as_array = ours(x.numpy(), axis)
        assert isinstance(as_array, np.ndarray)
        assert as_array.dtype == np.float32
        np.testing.assert_allclose(as_array, expected.numpy(), rtol=1e-6, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(x=logits_arrays, shift=st.floats(-1e6, 1e6))
def test_softmax_is_a_distribution_that_ignores_shifts(x: np.ndarray, shift: float) -> None:
    p = softmax(x)
    np.testing.assert_allclose(p.sum(axis=-1), 1.0, rtol=1e-12)
    assert (p >= 0).all()
    np.testing.assert_allclose(softmax(x + shift), p, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(log_sum_exp(x + shift), log_sum_exp(x) + shift, rtol=1e-9)
    np.testing.assert_allclose(np.exp(log_softmax(x)), p, rtol=1e-9, atol=1e-300)
    np.testing.assert_array_equal(softmax(torch.from_numpy(x)).numpy().shape, p.shape)


@pytest.mark.parametrize("function", [softmax, log_softmax, log_sum_exp])
def test_gradients_are_right(function: Any) -> None:
    x = random_tensor(3, 5, scale=3.0).double().requires_grad_()
    assert torch.autograd.gradcheck(function, (x,))


def test_log_sum_exp_of_the_impossible_and_the_infinite() -> None:
    kinds: tuple[Any, ...] = (np.array, torch.tensor)
    for kind in kinds:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert log_sum_exp(kind([-math.inf, -math.inf])) == -math.inf
            assert log_sum_exp(kind([-math.inf, 2.0])) == 2.0
            assert log_sum_exp(kind([math.inf, 2.0])) == math.inf
            assert softmax(kind([-math.inf, 2.0])).tolist() == [0.0, 1.0]
            assert np.isnan(np.asarray(softmax(kind([-math.inf, -math.inf])))).all()
    assert log_sum_exp(np.array([1000.0, 1000.0])) == pytest.approx(1000.6931, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_fp32(dtype: torch.dtype) -> None:
    """70,000 equal logits: their sum overflows fp16, and bf16 stops counting at 256."""
    x = torch.zeros(70_000, dtype=dtype)
    assert log_sum_exp(x).dtype == torch.float32
    assert log_sum_exp(x).item() == pytest.approx(math.log(70_000), rel=1e-6)
    assert softmax(x).sum().item() == pytest.approx(1.0, rel=1e-5)
    target = torch.zeros(1, dtype=torch.int64)
    assert cross_entropy(x[None], target).item() == pytest.approx(math.log(70_000), rel=1e-6)
    assert log_sum_exp(x.numpy()).dtype == np.float32 if dtype == torch.float16 else True


# --- cross-entropy ------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.13])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize(
    ("shape", "V"), [((2, 5), 37), ((3,), 1), ((), 5), ((5,), 100_003), ((2, 3, 4), 6)]
)
def test_loss_and_gradient_equal_torch(
    shape: tuple[int, ...], V: int, ignored: bool, smoothing: float, reduction: Any
) -> None:
    """Against fp64, since torch's own fp32 strays by 1e-4 at 100,003 words, a length at which
    the five rows take three passes, the last one short."""
    logits = random_tensor(*shape, V, scale=4.0)
    targets = random_targets(*shape, V=V, ignored=ignored and shape != ())
    upstream = torch.tensor(0.7)
    if reduction == "none":
        upstream = random_tensor(math.prod(shape), seed=2).reshape(shape)
    results = []
    for ours in (False, True):
        x = logits.clone().requires_grad_()
        options: dict[str, Any] = {"label_smoothing": smoothing, "reduction": reduction}
        if ours:
            loss = cross_entropy(x, targets, **options)
        else:
            flat = x.double().reshape(-1, V)
            loss = F.cross_entropy(flat, targets.reshape(-1), **options).float()
            loss = loss.reshape(shape) if reduction == "none" else loss
        loss.backward(upstream)
        results.append((loss.detach(), x.grad))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_arrays_give_what_tensors_give(smoothing: float, reduction: Any) -> None:
    logits = random_tensor(4, 5, 11).double()
    targets = random_targets(4, 5, V=11, ignored=True)
    options: dict[str, Any] = {"label_smoothing": smoothing, "reduction": reduction}
    expected = cross_entropy(logits, targets, **options).numpy()
    actual = cross_entropy(logits.numpy(), targets.numpy(), **options)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5),
    V=st.integers(1, 7),
    smoothing=st.floats(0.0, 0.9),
    seed=st.integers(0, 2**31),
)
def test_the_hand_written_gradient_is_the_derivative(
    rows: int, V: int, smoothing: float, seed: int
) -> None:
    logits = random_tensor(rows, V, seed=seed, scale=3.0).double().requires_grad_()
    targets = random_targets(rows, V=V, seed=seed, ignored=True)

    def loss(x: Tensor) -> Tensor:
        return cross_entropy(x, targets, label_smoothing=smoothing, reduction="none")

    assert torch.autograd.gradcheck(loss, (logits,))


def test_the_gradient_is_softmax_minus_one_hot() -> None:
    logits, targets = random_tensor(3, 4).requires_grad_(), torch.tensor([2, 0, 3])
    cross_entropy(logits, targets, reduction="sum").backward()
    expected = torch.softmax(logits, dim=-1) - F.one_hot(targets, 4)
    torch.testing.assert_close(logits.grad, expected.detach(), rtol=1e-6, atol=1e-6)


def test_backward_can_be_repeated() -> None:
    """Nothing saved is overwritten: a second backward adds the same gradient again."""
    logits, targets = random_tensor(3, 4).requires_grad_(), torch.tensor([2, 0, 3])
    loss = cross_entropy(logits, targets)
    loss.backward(retain_graph=True)
    assert logits.grad is not None
    once = logits.grad.clone()
    loss.backward()
    torch.testing.assert_close(logits.grad, 2 * once)


def test_bf16_logits_lose_nothing_but_their_own_rounding() -> None:
    logits = random_tensor(300, 2000, scale=3.0).bfloat16()
    targets = random_targets(300, V=2000, ignored=True)
    exact = logits.double().requires_grad_()
    F.cross_entropy(exact, targets).backward()
    ours = logits.clone().requires_grad_()
    loss = cross_entropy(ours, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    expected = F.cross_entropy(logits.double(), targets).item()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    coarse = F.cross_entropy(logits, targets).item()
    assert abs(coarse - expected) > 100 * abs(loss.item() - expected)  # torch returns bf16
    assert ours.grad is not None
    assert exact.grad is not None
    assert ours.grad.dtype == torch.bfloat16
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=2**-8, atol=1e-9)


def test_nothing_of_the_logits_size_is_kept_but_the_logits() -> None:
    logits = random_tensor(6, 50).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        cross_entropy(logits, random_targets(6, V=50))
    large = {t.data_ptr() for t in kept if t.numel() >= logits.numel()}
    assert large <= {logits.data_ptr()}


def test_extreme_logits() -> None:
    logits = torch.tensor([[1e4, -1e4], [-math.inf, 0.0], [0.0, -math.inf]])
    losses = cross_entropy(logits, torch.tensor([1, 1, 1]), reduction="none")
    assert losses.tolist() == [2e4, 0.0, math.inf]
    x = torch.tensor([[-math.inf, 1.0, 1.0]], requires_grad=True)
    cross_entropy(x, torch.tensor([1])).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, -0.5, 0.5]]


def test_worked_values() -> None:
    assert cross_entropy(torch.zeros(1, 2), torch.tensor([1])).item() == pytest.approx(
        0.6931, abs=1e-4
    )
    # A model that knows nothing: ln V, the loss at which training should begin.
    loss = cross_entropy(torch.zeros(3, 8192), torch.tensor([0, 5, 8191]))
    assert loss.item() == pytest.approx(math.log(8192))


def test_a_mean_over_nothing_is_nan() -> None:
    for logits, targets in (
        (torch.zeros(2, 3), torch.full((2,), -100)),
        (np.zeros((2, 3)), np.full(2, -100)),
    ):
        assert np.isnan(float(cross_entropy(logits, targets)))  # type: ignore[type-var]
        assert float(cross_entropy(logits, targets, reduction="sum")) == 0.0  # type: ignore[type-var]


def test_another_ignore_index() -> None:
    logits, targets = random_tensor(4, 5), torch.tensor([0, 1, 0, 4])
    expected = F.cross_entropy(logits, targets, ignore_index=0)
    torch.testing.assert_close(cross_entropy(logits, targets, ignore_index=0), expected)


@pytest.mark.parametrize(
    ("logits", "targets", "options", "error", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), {}, ValueError, r"in \[0, 3\).*got 3"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), {}, ValueError, "got -1"),
        (np.zeros((2, 3)), np.array([0, 3]), {}, ValueError, "got 3"),
        (torch.zeros(2, 3), torch.tensor([0]), {}, ValueError, r"got \(2, 3\) and \(1,\)"),
        (torch.zeros(2, 0), torch.tensor([0, 0]), {}, ValueError, "must agree"),
        (torch.zeros(2, 3), torch.zeros(2), {}, TypeError, "targets must be integers"),
        (np.zeros((2, 3)), np.zeros(2), {}, TypeError, "targets must be integers, got float64"),
        (torch.zeros(2, 3), np.zeros(2, int), {}, TypeError, "got Tensor and ndarray"),
        (torch.zeros(1, 3), torch.tensor([0]), {"reduction": "avg"}, ValueError, "got 'avg'"),
        (torch.zeros(1, 3), torch.tensor([0]), {"label_smoothing": 1.0}, ValueError, "got 1.0"),
    ],
)
def test_bad_losses_are_refused(
    logits: Any, targets: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        cross_entropy(logits, targets, **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu() -> None:
    logits, targets = random_tensor(64, 5000), random_targets(64, V=5000, ignored=True)
    results = []
    for device in ("cpu", "cuda"):
        x = logits.to(device).requires_grad_()
        loss = cross_entropy(x, targets.to(device), label_smoothing=0.1)
        loss.backward()
        assert x.grad is not None
        results.append((loss.detach().cpu(), x.grad.cpu()))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


# --- information ----------------------------------------------------------------------------------


def distributions(*shape: int, seed: int) -> np.ndarray:
    p = np.random.default_rng(seed).gamma(0.5, size=shape)
    return p / p.sum()


def test_information_worked_values() -> None:
    assert entropy(np.array([0.5, 0.5])) == pytest.approx(math.log(2))
    assert entropy(torch.tensor([1.0, 0.0])).item() == 0.0
    assert kl_divergence(np.array([0.5, 0.5]), np.array([0.9, 0.1])) == pytest.approx(
        0.5108, abs=1e-4
    )
    assert kl_divergence(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == math.inf
    assert kl_divergence(np.array([1.0, 0.0]), np.array([1.0, 0.0])) == 0.0
    assert mutual_information(np.eye(4) / 4) == pytest.approx(math.log(4))
    assert nats_to_bits(math.log(8)) == pytest.approx(3.0)
    assert bits_per_byte(math.log(2) * 800, 100) == pytest.approx(8.0)
    assert perplexity(math.log(50)) == pytest.approx(50.0)
    assert perplexity(torch.tensor(0.0)) == 1.0


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 6), columns=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_theorems_of_information(rows: int, columns: int, seed: int) -> None:
    joint = distributions(rows, columns, seed=seed)
    p, q = joint.sum(axis=1), distributions(rows, seed=seed + 1)
    h_x, h_y, h_xy = entropy(p), entropy(joint.sum(axis=0)), entropy(joint.reshape(-1))
    information = mutual_information(joint)
    assert information == pytest.approx(h_x + h_y - h_xy, abs=1e-9)
    assert -1e-12 <= information <= min(h_x, h_y) + 1e-9
    assert -1e-12 <= h_x <= math.log(rows) + 1e-12
    assert kl_divergence(p, q) >= -1e-12
    # Cross-entropy is entropy plus KL: what a model's loss is made of.
    assert -(p * np.log(q)).sum() == pytest.approx(h_x + kl_divergence(p, q), rel=1e-9)
    assert mutual_information(torch.from_numpy(joint)).item() == pytest.approx(
        information, abs=1e-12
    )
    assert mutual_information(np.outer(p, q)) == pytest.approx(0.0, abs=1e-9)


def test_information_along_an_axis_and_its_gradient() -> None:
    p = torch.softmax(random_tensor(3, 4).double(), dim=0)
    q = torch.softmax(random_tensor(3, 4, seed=1).double(), dim=0)
    expected = torch.distributions.Categorical(probs=p.t())
    torch.testing.assert_close(entropy(p, axis=0), expected.entropy())
    divergence = torch.distributions.kl_divergence(
        expected, torch.distributions.Categorical(probs=q.t())
    )
    torch.testing.assert_close(kl_divergence(p, q, axis=0), divergence)
    certain = torch.tensor([1.0, 0.0], requires_grad=True)
    entropy(certain).backward()
    assert certain.grad is not None
    assert certain.grad.isfinite().all()


def test_what_is_no_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match="p must be non-negative and sum to 1"):
        entropy(np.array([0.5, 0.6]))
    with pytest.raises(ValueError, match="q must be non-negative"):
        kl_divergence(torch.tensor([0.5, 0.5]), torch.tensor([1.5, -0.5]))
    with pytest.raises(ValueError, match=r"joint must be \(X, Y\), got shape \(2,\)"):
        mutual_information(np.array([0.5, 0.5]))
    with pytest.raises(ValueError, match="num_bytes must be positive, got 0"):
        bits_per_byte(1.0, 0)
