"""AdamW and Muon, the parameter groups they want, and one optimiser made of both.

AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, Algorithm 2) scales each number of a gradient by
its own running root mean square. Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon;
Liu et al. 2025, arXiv:2502.16982) treats a weight matrix as a matrix: it replaces the momentum
U S V^T by about U V^T, so that every direction of the matrix moves by the same amount. Muon is for
the hidden matrices; embeddings, the output head, gains and biases stay with AdamW:

    groups = parameter_groups(model, lr=3e-3, weight_decay=0.1, muon=True, muon_lr=0.02)
    optimizer = CombinedOptimizer(Muon(groups.muon), AdamW(groups.adamw))

Every optimiser here keeps `initial_lr` in its groups, the value that a schedule multiplies.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw as _adamw_kernel

from parameter_groups import ParameterGroups as ParameterGroups
from parameter_groups import parameter_groups as parameter_groups

# The quintic of the Muon post, tuned for a steep slope at 0: five steps take singular values from
# [0.01, 1] into about [0.7, 1.2]. Exactly 1 is not needed.
NEWTON_SCHULZ_QUINTIC = (3.4445, -4.7750, 2.0315)


class ScheduledOptimizer(Optimizer):
    """An Optimizer whose groups remember the learning rate they were given as `initial_lr`."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.setdefault("initial_lr", group["lr"])

    def _gradients(self, group: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
        """(parameter, gradient) for every parameter of the group that has a gradient."""
        pairs = [(p, p.grad) for p in group["params"] if p.grad is not None]
        for _, grad in pairs:
            if grad.is_sparse:
                raise TypeError(f"{type(self).__name__} needs dense gradients, got a sparse one")
        return pairs


class AdamW(ScheduledOptimizer):
    """Adam with decoupled weight decay: decay shrinks the weight and never enters the moments.

    With gradient g at step t (from 1), elementwise and in this order:

        w <- w - lr * weight_decay * w
        m <- beta1 m + (1 - beta1) g          v <- beta2 v + (1 - beta2) g^2
        w <- w - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    Args:
        params: tensors, or group dicts whose keys (`lr`, `betas`, `eps`, `weight_decay`) win over
            the arguments here.
        fused: None uses PyTorch's one-pass kernel where there is one (CPU, CUDA, MPS; the same
            formula, 2-3 times the speed of separate operations, which read every array again and
            again) and the written-out update elsewhere; False always writes it out; True demands
            the kernel.

    Raises:
        ValueError: a hyperparameter outside its range.
        TypeError: a sparse gradient.
    """

    _KERNEL_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        fused: bool | None = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"fused": fused})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _require("lr", group["lr"], group["lr"] >= 0, ">= 0")
        _require("eps", group["eps"], group["eps"] >= 0, ">= 0")
        _require("weight_decay", group["weight_decay"], group["weight_decay"] >= 0, ">= 0")
        betas = group["betas"]
        _require("betas", betas, len(betas) == 2 and all(0 <= b < 1 for b in betas), "in [0, 1)")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns the closure's loss, if given one."""
        loss = _call(closure)
        for group in self.param_groups:
            pairs = self._gradients(group)
            if not pairs:
                continue
            for p, _ in pairs:
                if not self.state[p]:
                    # The kernel wants the count as a tensor beside the parameter.
                    self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
                    self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
            fused = group["fused"]
            if fused is None:
                fused = all(p.device.type in self._KERNEL_DEVICES for p, _ in pairs)
            if fused:
                self._fused_step(group, pairs)
            else:
                for p, grad in pairs:
                    self._written_out_step(group, p, grad)
        return loss

    def _fused_step(self, group: dict[str, Any], pairs: list[tuple[Tensor, Tensor]]) -> None:
        states = [self.state[p] for p, _ in pairs]
        beta1, beta2 = group["betas"]
        _adamw_kernel(
            [p for p, _ in pairs],
            [grad for _, grad in pairs],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )

    def _written_out_step(self, group: dict[str, Any], p: Tensor, grad: Tensor) -> None:
        state = self.state[p]
        m, v = state["exp_avg"], state["exp_avg_sq"]
        beta1, beta2 = group["betas"]
        lr = group["lr"]
        state["step"] += 1
        t = state["step"].item()

        p.mul_(1 - lr * group["weight_decay"])
        m.lerp_(grad, 1 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        # Both corrections as scalars: sqrt(v / c2) + eps = (sqrt(v) + eps sqrt(c2)) / sqrt(c2).
        root_c2 = math.sqrt(1 - beta2**t)
        denominator = v.sqrt().add_(group["eps"] * root_c2)
        p.addcdiv_(m, denominator, value=-lr * root_c2 / (1 - beta1**t))


class Muon(ScheduledOptimizer):
    """Momentum, orthogonalised: every singular value of the step is made about 1.

    With gradient G, momentum mu, decay lambda, for every m x n matrix W:

        B <- mu B + (1 - mu) G            U = mu B + (1 - mu) G  (Nesterov), else B
        W <- W - lr lambda W              W <- W - lr * scale * newton_schulz(U)

    `scale` is sqrt(max(1, m/n)) for "original", so that outputs of tall matrices change as much as
    those of wide ones, or 0.2 sqrt(max(m, n)) for "match_rms_adamw", which gives the step the root
    mean square of a typical AdamW step so that AdamW's learning rate and decay carry over.

    Matrices that have one shape, or one shape after turning tall ones on their side, are stacked
    and orthogonalised in one batch: a transformer has a few shapes and many matrices, so this
    replaces hundreds of small products by a few large ones. A 3-D parameter (E, m, n) is E
    matrices (the experts of a mixture, say).

    Args:
        params: 2-D or 3-D tensors, or group dicts. `momentum` may be changed between steps
            (a momentum warm-up), as `lr` may.
        ns_steps: Newton-Schulz iterations.
        ns_coefficients: (a, b, c) for all steps, or one such triple a step.
        ns_dtype: dtype of the iteration: bfloat16 is enough, and the fastest where the hardware
            has it; float32 elsewhere.

    Raises:
        ValueError: a hyperparameter outside its range, or a parameter that is no matrix.
        TypeError: a sparse gradient.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        weight_decay: float = 0.0,
        *,
        ns_coefficients: Sequence[Any] = NEWTON_SCHULZ_QUINTIC,
        eps: float = 1e-7,
        adjust_lr: Literal["original", "match_rms_adamw"] = "original",
        ns_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "weight_decay": weight_decay,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "adjust_lr": adjust_lr,
            # By name, so that a state dict is tensors and plain values.
            "ns_dtype": str(ns_dtype).removeprefix("torch."),
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _require("lr", group["lr"], group["lr"] >= 0, ">= 0")
        _require("momentum", group["momentum"], 0 <= group["momentum"] < 1, "in [0, 1)")
        _require("weight_decay", group["weight_decay"], group["weight_decay"] >= 0, ">= 0")
        _require("adjust_lr", group["adjust_lr"], group["adjust_lr"] in _SCALES, "a known rule")
        _coefficients_per_step(group["ns_coefficients"], group["ns_steps"])
        for p in group["params"]:
            if p.ndim not in (2, 3):
                raise ValueError(
                    f"Muon orthogonalises matrices (or stacks of them), got shape {tuple(p.shape)};"
                    " give gains, biases and the like to AdamW"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns the closure's loss, if given one."""
        loss = _call(closure)
        for group in self.param_groups:
            pairs = self._gradients(group)
            if not pairs:
                continue
            for p, _ in pairs:
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            parameters = [p for p, _ in pairs]
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            for batch in _by_wide_shape(pairs):
                self._step_batch(group, batch)
        return loss

    def _step_batch(self, group: dict[str, Any], batch: list[tuple[Tensor, Tensor]]) -> None:
        """One Newton-Schulz iteration for all matrices of one shape."""
        parameters = [p for p, _ in batch]
        grads = [grad for _, grad in batch]
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        momentum = group["momentum"]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        step = torch.cat([_as_wide_stack(b) for b in buffers])  # (N, m, n), m <= n
        if group["nesterov"]:
            step.lerp_(torch.cat([_as_wide_stack(g) for g in grads]), 1 - momentum)
        step = newton_schulz(
            step,
            steps=group["ns_steps"],
            coefficients=group["ns_coefficients"],
            eps=group["eps"],
            dtype=getattr(torch, group["ns_dtype"]),
        )
        scale = _SCALES[group["adjust_lr"]]
        start = 0
        for p in parameters:
            count = p.shape[0] if p.ndim == 3 else 1
            mine = step[start : start + count]
            start += count
            mine = mine.mT if p.shape[-2] > p.shape[-1] else mine
            p.add_(mine.reshape(p.shape), alpha=-group["lr"] * scale(p.shape[-2], p.shape[-1]))


def newton_schulz(
    matrices: Tensor,
    *,
    steps: int = 5,
    coefficients: Sequence[Any] = NEWTON_SCHULZ_QUINTIC,
    eps: float = 1e-7,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Push every singular value of each matrix towards 1, with matrix products alone.

    From X_0 = M / |M|_F, each step maps every singular value s of X to a s + b s^3 + c s^5,
    computed as a X + (b A + c A A) X with A = X X^T; the singular vectors never change.

    Args:
        matrices: (..., m, n); tall ones are iterated on their side, where A is smaller.
        coefficients: (a, b, c) for all steps, or one triple a step.
        dtype: dtype of the iteration and of the result.

    Returns:
        (..., m, n) in `dtype`.
    """
    triples = _coefficients_per_step(coefficients, steps)
    if matrices.ndim < 2:
        raise ValueError(f"newton_schulz needs matrices (..., m, n), got {tuple(matrices.shape)}")
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x.reshape(-1, *x.shape[-2:]).to(dtype)  # (N, m, n), m <= n
    # The Frobenius norm bounds the largest singular value, so the iteration starts within [0, 1].
    at_least_fp32 = torch.promote_types(dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=at_least_fp32)
    x = x / norm.clamp(min=eps).to(dtype)
    for a, b, c in triples:
        gram = x @ x.mT  # (N, m, m)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # (N, m, m)
        x = torch.baddbmm(x, polynomial, x, beta=a)  # (N, m, n)
    x = x.mT if tall else x
    return x.reshape(matrices.shape)


class CombinedOptimizer(Optimizer):
    """Several optimisers as one: one `step`, one `zero_grad`, one `state_dict`.

    `param_groups` are the parts' own group dicts in order, so a schedule that writes `lr` there
    reaches all of them, and `state_dict` has the layout of a single optimiser's.

    Raises:
        ValueError: no optimiser given, or a parameter that belongs to two of them.
    """

    def __init__(self, *optimizers: Optimizer) -> None:
        if not optimizers:
            raise ValueError("CombinedOptimizer needs at least one optimizer, got none")
        self.optimizers = optimizers
        # The base class keeps the group dicts themselves and checks that no parameter comes twice.
        super().__init__([group for o in optimizers for group in o.param_groups], {})
        self._share()

    def _share(self) -> None:
        """(Re)join groups and state with the parts': loading a state replaces theirs."""
        self.param_groups[:] = [group for o in self.optimizers for group in o.param_groups]
        for group in self.param_groups:
            group.setdefault("initial_lr", group["lr"])
        # The per-parameter dicts are the parts' own; only this dict of them is new.
        self.state = defaultdict(dict, {p: s for o in self.optimizers for p, s in o.state.items()})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every part; the closure, if given, runs once, before the first."""
        loss = _call(closure)
        for optimizer in self.optimizers:
            optimizer.step()
        if len(self.state) != sum(len(o.state) for o in self.optimizers):
            self._share()  # a parameter was stepped for the first time
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Hand each part its groups and their state, renumbered from 0 as it expects."""
        groups = state_dict["param_groups"]
        if len(groups) != len(self.param_groups):
            raise ValueError(
                f"the state has {len(groups)} parameter groups, this optimizer has"
                f" {len(self.param_groups)}"
            )
        first_group = 0
        for optimizer in self.optimizers:
            mine = groups[first_group : first_group + len(optimizer.param_groups)]
            first_group += len(mine)
            ids = [i for group in mine for i in group["params"]]
            new_id = {old: new for new, old in enumerate(ids)}
            optimizer.load_state_dict(
                {
                    "state": {new_id[i]: s for i, s in state_dict["state"].items() if i in new_id},
                    "param_groups": [
                        {**group, "params": [new_id[i] for i in group["params"]]} for group in mine
                    ],
                }
            )
        self._share()


_SCALES: dict[str, Callable[[int, int], float]] = {
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
}


def _by_wide_shape(pairs: list[tuple[Tensor, Tensor]]) -> list[list[tuple[Tensor, Tensor]]]:
    """Split into batches of one shape (tall turned wide), dtype and device."""
    batches: dict[Any, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for p, grad in pairs:
        batches[tuple(sorted(p.shape[-2:])), p.dtype, p.device].append((p, grad))
    return list(batches.values())


def _as_wide_stack(matrix: Tensor) -> Tensor:
    """(m, n) or (E, m, n), as a view (1 or E, min, max)."""
    stack = matrix if matrix.ndim == 3 else matrix.unsqueeze(0)
    return stack.mT if stack.shape[-2] > stack.shape[-1] else stack


def _coefficients_per_step(
    coefficients: Sequence[Any], steps: int
) -> list[tuple[float, float, float]]:
    if steps < 1:
        raise ValueError(f"ns_steps must be at least 1, got {steps}")
    if all(isinstance(c, (int, float)) for c in coefficients):
        triples = [tuple(coefficients)] * steps
    else:
        triples = [tuple(c) for c in coefficients]
    if len(triples) != steps or any(len(triple) != 3 for triple in triples):
        raise ValueError(
            f"ns_coefficients must be (a, b, c) or {steps} such triples, got {coefficients}"
        )
    return triples


def _call(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _require(name: str, value: object, ok: bool, rule: str) -> None:
    if not ok:
        raise ValueError(f"{name} must be {rule}, got {value}")
