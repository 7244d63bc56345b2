"""AdamW and Muon against torch.optim, and what the grouping and the combination promise."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from optimizers import (
    AdamW,
    CombinedOptimizer,
    Muon,
    newton_schulz,
    parameter_groups,
)

SHAPES = [(37, 19), (19,), (5, 7, 3), (64, 33), (1,), (130, 257)]


def _parameters(seed: int, shapes=SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]


def _set_gradients(parameters, step: int) -> None:
    """Gradients whose size varies by orders of magnitude, some exactly 0, some tiny."""
    generator = torch.Generator().manual_seed(1000 + step)
    for i, p in enumerate(parameters):
        grad = torch.randn(p.shape, generator=generator) * 10.0 ** ((step + i) % 5 - 4)
        p.grad = torch.where(torch.rand(p.shape, generator=generator) < 0.1, 0.0, grad)


def _groups(parameters) -> list[dict]:
    return [
        {"params": parameters[:2], "lr": 3e-3, "weight_decay": 0.3},
        {"params": parameters[2:4], "betas": (0.8, 0.95), "weight_decay": 0.0},
        {"params": parameters[4:], "eps": 1e-3},
    ]


def _largest_difference(a, b) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("fused", [True, False])
def test_adamw_follows_torch_for_many_steps_with_several_groups(fused: bool) -> None:
    ours, theirs = _parameters(0), _parameters(0)
    optimizer = AdamW(_groups(ours), lr=1e-2, weight_decay=0.1, fused=fused)
    reference = torch.optim.AdamW(_groups(theirs), lr=1e-2, weight_decay=0.1, foreach=False)
    for step in range(120):
        _set_gradients(ours, step)
        _set_gradients(theirs, step)
        for group in [*optimizer.param_groups, *reference.param_groups]:
            group["lr"] *= 0.99
        optimizer.step()
        reference.step()
    assert _largest_difference(ours, theirs) < 1e-6
    for p, q in zip(ours, theirs, strict=True):
        for key in ("exp_avg", "exp_avg_sq", "step"):
            torch.testing.assert_close(
                optimizer.state[p][key], reference.state[q][key], rtol=1e-5, atol=1e-7
            )


def test_adamw_first_step_by_hand() -> None:
    # w = 2, g = 0.5: the corrected moments are g and g^2, so the step is lr g / (|g| + eps).
    p = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    p.grad = torch.tensor([0.5], dtype=torch.float64)
    AdamW([p], lr=0.1, eps=0.25, weight_decay=0.2, fused=False).step()
    assert p.item() == pytest.approx(2 * (1 - 0.1 * 0.2) - 0.1 * 0.5 / (0.5 + 0.25), abs=1e-12)


def test_adamw_state_goes_to_torch_and_back() -> None:
    ours, theirs = _parameters(3), _parameters(3)
    optimizer, reference = AdamW(ours, lr=1e-2), torch.optim.AdamW(theirs, lr=1e-2)
    for step in range(3):
        _set_gradients(ours, step)
        optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        q.data.copy_(p.data)
    # Loading keeps the given tensors, so two live optimizers need a copy.
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(3, 6):
        _set_gradients(ours, step)
        _set_gradients(theirs, step)
        optimizer.step()
        reference.step()
    assert _largest_difference(ours, theirs) < 1e-6


def test_a_parameter_without_gradient_is_left_alone() -> None:
    for make in (lambda ps: AdamW(ps, weight_decay=0.5), lambda ps: Muon(ps, weight_decay=0.5)):
        frozen, trained = _parameters(1, [(6, 4), (6, 4)])
        before = frozen.detach().clone()
        trained.grad = torch.ones_like(trained)
        optimizer = make([frozen, trained])
        optimizer.step()
        assert torch.equal(frozen, before)
        assert frozen not in optimizer.state
        assert not torch.equal(trained, _parameters(1, [(6, 4), (6, 4)])[1])


# Tall, wide, square; the first two are one shape on its side and go in one batch.
MATRICES = [(48, 17), (17, 48), (33, 33), (33, 33), (17, 48), (64, 8)]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust_lr", ["original", "match_rms_adamw"])
def test_muon_follows_torch_in_float32(monkeypatch, nesterov: bool, adjust_lr: str) -> None:
    # torch.optim.Muon always iterates in bfloat16; told that bfloat16 is float32, it is exact.
    monkeypatch.setattr(Tensor, "bfloat16", lambda self: self.float().clone())
    ours, theirs = _parameters(5, MATRICES), _parameters(5, MATRICES)
    optimizer = Muon(
        ours,
        lr=0.02,
        momentum=0.9,
        nesterov=nesterov,
        weight_decay=0.1,
        adjust_lr=adjust_lr,  # type: ignore[arg-type]
        ns_dtype=torch.float32,
    )
    reference = torch.optim.Muon(
        theirs, lr=0.02, momentum=0.9, nesterov=nesterov, weight_decay=0.1, adjust_lr_fn=adjust_lr
    )
    for step in range(20):
        _set_gradients(ours, step)
        _set_gradients(theirs, step)
        optimizer.step()
        reference.step()
    # The quintic amplifies rounding where singular values are near 0; a wrong rule shows at 1e-2.
    assert _largest_difference(ours, theirs) < 1e-4


def test_muon_in_bfloat16_follows_torch_to_its_rounding() -> None:
    ours, theirs = _parameters(6, MATRICES), _parameters(6, MATRICES)
    optimizer, reference = Muon(ours, lr=0.02), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0)
    start = _parameters(6, MATRICES)
    _set_gradients(ours, 0)
    _set_gradients(theirs, 0)
    optimizer.step()
    reference.step()
    for p, q, s in zip(ours, theirs, start, strict=True):
        ours_step, their_step = (p - s).detach(), (q - s).detach()
        assert (ours_step - their_step).norm() < 0.03 * their_step.norm()


def test_a_batch_of_matrices_steps_as_each_alone() -> None:
    together, alone = _parameters(7, MATRICES), _parameters(7, MATRICES)
    optimizers = [Muon([p], ns_dtype=torch.float32) for p in alone]
    joint = Muon(together, ns_dtype=torch.float32)
    for step in range(4):
        _set_gradients(together, step)
        _set_gradients(alone, step)
        joint.step()
        for optimizer in optimizers:
            optimizer.step()
    assert _largest_difference(together, alone) < 2e-5


def test_a_stack_of_experts_steps_as_its_matrices() -> None:
    stack = nn.Parameter(torch.randn(3, 20, 9, generator=torch.Generator().manual_seed(8)))
    slices = [nn.Parameter(m.clone()) for m in stack.detach()]
    grad = torch.randn(3, 20, 9, generator=torch.Generator().manual_seed(9))
    stack.grad = grad.clone()
    for p, g in zip(slices, grad, strict=True):
        p.grad = g.clone()
    Muon([stack], ns_dtype=torch.float32).step()
    Muon(slices, ns_dtype=torch.float32).step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in slices]))


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (3, 30, 30), (2, 3, 16, 40)])
def test_newton_schulz_keeps_singular_vectors_and_levels_singular_values(shape) -> None:
    # Singular values spread over two orders of magnitude come out near 1.
    generator = torch.Generator().manual_seed(10)
    u, _, vt = torch.linalg.svd(
        torch.randn(shape, generator=generator, dtype=torch.float64), full_matrices=False
    )
    s = torch.logspace(-1.5, 0, u.shape[-1], dtype=torch.float64)
    out = newton_schulz((u * s) @ vt, dtype=torch.float64)
    assert out.shape == torch.Size(shape)
    inner = u.mT @ out @ vt.mT  # diagonal if the singular vectors are the input's
    new_s = inner.diagonal(dim1=-2, dim2=-1)
    assert (inner - torch.diag_embed(new_s)).abs().max() < 1e-9
    assert new_s.min() > 0.6
    assert new_s.max() < 1.25


def test_newton_schulz_with_converging_coefficients_gives_the_polar_factor() -> None:
    # The textbook quintic (15, -10, 3)/8 converges to exactly U V^T.
    x = torch.randn(2, 12, 20, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    triples = [(15 / 8, -10 / 8, 3 / 8)] * 25
    out = newton_schulz(x, steps=25, coefficients=triples, dtype=torch.float64)
    torch.testing.assert_close(out, u @ vt, rtol=0, atol=1e-9)


def test_muon_momentum_and_rate_may_change_between_steps() -> None:
    p, q = _parameters(12, [(8, 8)])[0], _parameters(12, [(8, 8)])[0]
    grads = [torch.randn(8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    optimizer = Muon([p], lr=0.1, momentum=0.5, nesterov=False, ns_dtype=torch.float32)
    p.grad = grads[0]
    optimizer.step()
    optimizer.param_groups[0].update(lr=0.3, momentum=0.8)
    p.grad = grads[1]
    optimizer.step()
    first = 0.5 * grads[0]
    second = 0.8 * first + 0.2 * grads[1]
    expected = q.detach()
    for rate, buffer in ((0.1, first), (0.3, second)):
        expected = expected - rate * newton_schulz(buffer, dtype=torch.float32)
    torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-6)


class _Tiny(nn.Module):
    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 12)
        self.experts = nn.Parameter(torch.randn(2, 6, 12))
        self.unembed = nn.Linear(6, 11, bias=False)
        if tied:
            self.unembed.weight = self.token_embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids)
        hidden = self.up(self.norm(x)).relu() @ self.experts.mean(0).mT
        return self.unembed(x + hidden)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("muon", [True, False])
def test_groups_hold_every_parameter_once_and_in_its_place(tied: bool, muon: bool) -> None:
    model = _Tiny(tied=tied)
    groups = parameter_groups(model, lr=1e-3, weight_decay=0.1, muon=muon, head_lr=5e-4)
    by_name = {g["name"]: g for g in [*groups.muon, *groups.adamw]}
    ids = [id(p) for g in by_name.values() for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())

    def same(name: str, tensors) -> bool:
        return [id(p) for p in by_name[name]["params"]] == [id(t) for t in tensors]

    assert same("matrices", [model.experts, model.up.weight])
    assert same("embeddings", [model.token_embedding.weight])
    assert same("vectors", [model.norm.weight, model.norm.bias, model.up.bias])
    assert ("head" in by_name) == (not tied)
    if not tied:
        assert by_name["head"]["lr"] == 5e-4
    assert by_name["vectors"]["weight_decay"] == 0.0
    assert by_name["matrices"]["weight_decay"] == 0.1
    assert [g["name"] for g in groups.muon] == (["matrices"] if muon else [])
    assert by_name["matrices"]["lr"] == (0.02 if muon else 1e-3)


def test_groups_leave_out_frozen_parameters() -> None:
    model = _Tiny(tied=True)
    model.up.weight.requires_grad_(False)
    groups = parameter_groups(model, lr=1e-3)
    held = {id(p) for g in groups.adamw for p in g["params"]}
    assert id(model.up.weight) not in held
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        parameter_groups(model.requires_grad_(False), lr=1e-3)


def _combined(model: nn.Module) -> CombinedOptimizer:
    groups = parameter_groups(model, lr=1e-2, weight_decay=0.1, muon=True, muon_lr=0.05)
    return CombinedOptimizer(Muon(groups.muon, ns_dtype=torch.float32), AdamW(groups.adamw))


def _train(model, optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(0, 11, (4, 5), generator=generator)
        targets = torch.randint(0, 11, (20,), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] / (1 + step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids).flatten(0, 1), targets).backward()
        optimizer.step()


def test_combined_state_dict_resumes_bit_for_bit(tmp_path) -> None:
    torch.manual_seed(0)
    whole = _Tiny(tied=False)
    first = copy.deepcopy(whole)
    optimizer = _combined(whole)
    _train(whole, optimizer, range(8))

    before = _combined(first)
    _train(first, before, range(3))
    torch.save({"model": first.state_dict(), "optimizer": before.state_dict()}, tmp_path / "s.pt")
    saved = torch.load(tmp_path / "s.pt", weights_only=True)
    torch.manual_seed(99)
    second = _Tiny(tied=False)
    second.load_state_dict(saved["model"])
    after = _combined(second)
    after.load_state_dict(saved["optimizer"])
    _train(second, after, range(3, 8))

    for p, q in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)
    for p, q in zip(whole.parameters(), second.parameters(), strict=True):
        for key, value in optimizer.state[p].items():
            assert torch.equal(value, after.state[q][key])


def test_combined_equals_its_parts() -> None:
    torch.manual_seed(1)
    model = _Tiny(tied=False)
    twin = copy.deepcopy(model)
    combined = _combined(model)
    parts = _combined(twin).optimizers
    for step in range(3):
        for m in (model, twin):
            m.zero_grad()
            generator = torch.Generator().manual_seed(step)
            m(torch.randint(0, 11, (4, 5), generator=generator)).square().sum().backward()
        combined.step()
        for part in parts:
            part.step()
    assert _largest_difference(model.parameters(), twin.parameters()) == 0.0
    combined.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_a_schedule_of_torch_drives_the_combination() -> None:
    combined = _combined(_Tiny(tied=False))
    rates = [group["lr"] for group in combined.param_groups]
    assert len(set(rates)) == 2
    schedule = torch.optim.lr_scheduler.LambdaLR(combined, lambda step: 1 / (1 + step))
    combined.step()
    schedule.step()
    for part in combined.optimizers:
        for group in part.param_groups:
            assert group["lr"] == pytest.approx(group["initial_lr"] / 2)
    assert [group["initial_lr"] for group in combined.param_groups] == rates


def test_closures_run_once_with_gradients_enabled() -> None:
    model = _Tiny(tied=True)
    calls: list[int] = []

    def closure() -> Tensor:
        calls.append(1)
        loss = model(torch.arange(10).view(2, 5)).square().mean()
        loss.backward()
        return loss

    loss = _combined(model).step(closure)
    assert len(calls) == 1
    assert math.isfinite(loss.item())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: AdamW([p], lr=-1.0), "lr must be >= 0, got -1.0"),
        (lambda p: AdamW([p], betas=(0.9, 1.0)), r"betas must be in \[0, 1\), got \(0.9, 1.0\)"),
        (lambda p: AdamW([p], eps=-1e-8), "eps must be >= 0"),
        (lambda p: AdamW([{"params": [p], "weight_decay": -0.1}]), "weight_decay must be >= 0"),
        (lambda p: Muon([p], momentum=1.0), r"momentum must be in \[0, 1\), got 1.0"),
        (lambda p: Muon([p], ns_steps=0), "ns_steps must be at least 1, got 0"),
        (lambda p: Muon([p], ns_coefficients=(1.0, 2.0)), "ns_coefficients"),
        (
            lambda p: Muon([p], adjust_lr="sqrt"),  # type: ignore[arg-type]
            "adjust_lr must be a known rule",
        ),
        (lambda p: Muon([nn.Parameter(torch.ones(4))]), r"matrices .* got shape \(4,\)"),
        (lambda p: newton_schulz(torch.ones(4)), r"matrices .* got \(4,\)"),
        (lambda p: CombinedOptimizer(), "at least one"),
        (lambda p: CombinedOptimizer(AdamW([p]), AdamW([p])), "more than one parameter group"),
    ],
)
def test_bad_input_gives_the_stated_error(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(nn.Parameter(torch.ones(3, 3)))


def test_combined_refuses_a_state_of_other_groups() -> None:
    combined = _combined(_Tiny(tied=False))
    other = _combined(_Tiny(tied=True)).state_dict()
    with pytest.raises(ValueError, match="the state has 3 parameter groups, this optimizer has 4"):
        combined.load_state_dict(other)


def test_sparse_gradients_are_refused() -> None:
    table = nn.Embedding(5, 3, sparse=True)
    table(torch.tensor([1])).sum().backward()
    for optimizer in (AdamW(table.parameters()), Muon(table.parameters())):
        with pytest.raises(TypeError, match="needs dense gradients"):
            optimizer.step()
