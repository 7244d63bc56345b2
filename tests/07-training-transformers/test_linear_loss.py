"""The loss without the logits equals the loss with them, gradients included, and holds less."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import linear_loss
from gpt import GPT, GPTConfig
from linear_loss import fused_next_token_loss, linear_cross_entropy
from llama import Llama, LlamaConfig
from numerics import cross_entropy
from token_dataset import PackedBatch
from training import IGNORE_INDEX, next_token_loss


def _inputs(dtype=torch.float64, N=(7, 43), D=19, V=57) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*N, D, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(V, N, generator=generator)
    targets[torch.rand(N, generator=generator) < 0.2] = IGNORE_INDEX
    return hidden, weight, targets


def _with_logits(hidden, weight, targets, cap, **options) -> Tensor:
    logits = F.linear(hidden, weight)
    return cross_entropy(
        logits if cap is None else cap * torch.tanh(logits / cap), targets, **options
    )


@pytest.mark.parametrize("rows", [1, 100, 301, 5000])  # 301 tokens: odd pieces, one piece
@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_equals_the_loss_of_the_logits(monkeypatch, rows, cap, smoothing, reduction) -> None:
    monkeypatch.setattr(linear_loss, "_LEAST_ROWS", rows)
    monkeypatch.setattr(linear_loss, "_PIECE_ON_CPU", 0)
    hidden, weight, targets = _inputs()
    options = {"label_smoothing": smoothing, "reduction": reduction}
    ours = linear_cross_entropy(hidden, weight, targets, soft_cap=cap, **options)
    reference = _with_logits(hidden, weight, targets, cap, **options)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
    upstream = torch.tensor(1.7, dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (hidden, weight), upstream),
        torch.autograd.grad(reference, (hidden, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-11)


def test_the_gradient_is_that_of_the_differences() -> None:
    hidden, weight, targets = _inputs(N=(2, 4), D=5, V=6)
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, targets, soft_cap=2.0, label_smoothing=0.1),
        (hidden, weight),
    )


def test_one_frozen_side_gets_no_gradient_and_the_other_the_same() -> None:
    hidden, weight, targets = _inputs()
    both = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), (hidden, weight))
    frozen_weight = linear_cross_entropy(hidden, weight.detach(), targets)
    frozen_hidden = linear_cross_entropy(hidden.detach(), weight, targets)
    assert torch.equal(torch.autograd.grad(frozen_weight, hidden)[0], both[0])
    assert torch.equal(torch.autograd.grad(frozen_hidden, weight)[0], both[1])
    with torch.no_grad():
        assert linear_cross_entropy(hidden, weight, targets).item() == frozen_weight.item()


def test_under_autocast_it_is_as_close_to_the_truth_as_the_logits_way() -> None:
    hidden, weight, targets = _inputs(torch.float32, N=(4, 64), D=48, V=500)
    truth = torch.autograd.grad(
        _with_logits(hidden.double(), weight.double(), targets, None), (hidden, weight)
    )
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(hidden, weight, targets)
        theirs = _with_logits(hidden, weight, targets, None)
    assert ours.dtype == torch.float32
    errors = [
        [
            ((g - t).norm() / t.norm()).item()
            for g, t in zip(torch.autograd.grad(loss, (hidden, weight)), truth, strict=True)
        ]
        for loss in (ours, theirs)
    ]
    for mine, reference in zip(*errors, strict=True):
        assert mine < 1.2 * reference
        assert mine < 0.02


class _LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def test_no_tensor_of_the_size_of_the_logits_is_made() -> None:
    hidden, weight, targets = _inputs(torch.float32, N=(8, 256), D=8, V=4096)
    with _LargestTensor() as fused:
        linear_cross_entropy(hidden, weight, targets).backward()
    with _LargestTensor() as plain:
        _with_logits(hidden, weight, targets, None).backward()
    assert plain.elements >= 8 * 256 * 4096
    assert fused.elements <= 8 * 256 * 4096 // 4


_SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "d_model": 24,
    "num_heads": 3,
    "num_layers": 2,
    "max_seq_len": 16,
}
_MODELS = {
    "gpt": lambda: GPT(GPTConfig(**_SHAPE)),
    "untied": lambda: GPT(GPTConfig(**_SHAPE, tie_embeddings=False)),
    "llama with a cap": lambda: Llama(LlamaConfig(**_SHAPE, d_ff=32, logit_soft_cap=2.0)),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", _MODELS)
def test_models_get_the_same_loss_and_gradients(name: str, packed: bool) -> None:
    torch.manual_seed(0)
    model = _MODELS[name]().double()
    ids = torch.randint(61, (3, 16))
    targets = torch.randint(61, (3, 16))
    targets[1, 9:] = IGNORE_INDEX
    batch = (ids, targets)
    if packed:
        positions = torch.cat((torch.arange(7), torch.arange(9))).expand(3, 16)
        documents = torch.tensor([0] * 7 + [1] * 9).expand(3, 16)
        batch = PackedBatch(ids=ids, targets=targets, document_ids=documents, positions=positions)
    gradients = []
    for loss in (next_token_loss, fused_next_token_loss):
        model.zero_grad()
        nats, count = loss(model, batch)
        nats.backward()
        gradients.append((nats, count, [p.grad for p in model.parameters()]))
    (a, m, ours), (b, n, theirs) = gradients
    assert m == n
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_models_of_another_make_are_refused() -> None:
    class Biased(nn.Module):
        unembed = nn.Linear(4, 4)

        def hidden_states(self, ids):
            raise AssertionError("not reached")

    for model in (nn.Linear(4, 4), Biased()):
        with pytest.raises(TypeError, match=r"use training\.next_token_loss"):
            fused_next_token_loss(model, (torch.zeros(1, 1), torch.zeros(1, 1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(5, 7)}, r"hidden .* and weight .* got \(2, 3, 4\) and \(5, 7\)"),
        ({"targets": torch.zeros(2, 4).long()}, r"targets .* got \(2, 3, 4\) and \(2, 4\)"),
        ({"targets": torch.full((2, 3), 5)}, r"targets must lie in \[0, 5\).* got 5"),
        ({"targets": torch.full((2, 3), -1)}, r"got -1"),
        ({"soft_cap": 0.0}, "soft_cap must be positive"),
        ({"label_smoothing": 1.0}, "label_smoothing must lie"),
        ({"reduction": "none"}, "reduction must be mean or sum, got 'none'"),
    ],
)
def test_bad_input_gives_the_stated_error(change, message: str) -> None:
    call = {
        "hidden": torch.ones(2, 3, 4),
        "weight": torch.ones(5, 4),
        "targets": torch.zeros(2, 3).long(),
    }
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**(call | change))
