"""Lion, LAMB and Adafactor: three answers to "what may an optimiser forget?"

Adam keeps two numbers a weight and moves each weight by about the learning rate. Lion keeps one
and moves by exactly the learning rate (the sign of the momentum). Adafactor keeps a row's and a
column's mean square in place of the matrix of them. LAMB keeps both of Adam's and asks in addition
how large the layer is: it moves each matrix by the learning rate times the matrix's own norm.

All three take group dicts as `parameter_groups` makes them, and remember `initial_lr` for the
schedules. README: "Other optimisers".
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from optimizers import ScheduledOptimizer

_Dict = dict[str, Any]


class _OneByOne(ScheduledOptimizer):
    """An optimiser that is said by what it does to one parameter."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns the closure's loss, if given one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p, grad in self._gradients(group):
                self._update(group, p, grad, self.state[p])
        return loss

    @abstractmethod
    def _update(
        self, group: dict[str, Any], p: Tensor, grad: Tensor, state: dict[str, Any]
    ) -> None:
        """Move one parameter, in place; `state` is empty the first time."""


class Lion(_OneByOne):
    """The sign of a momentum, and decoupled decay (Chen et al. 2023, arXiv:2302.06675, program 1).

        c <- beta1 m + (1 - beta1) g          w <- w - lr (sign(c) + weight_decay w)
        m <- beta2 m + (1 - beta2) g

    Every number moves by lr, so the update has the norm lr sqrt(n) whatever the gradient's size.
    Adam's typical step is several times smaller, hence the paper's advice: a learning rate 3-10
    times below AdamW's, and a decay as much above.

    Raises:
        ValueError: a hyperparameter outside its range.
        TypeError: a sparse gradient.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        _check(self.param_groups[-1], "lr", "weight_decay")

    def _update(
        self, group: dict[str, Any], p: Tensor, grad: Tensor, state: dict[str, Any]
    ) -> None:
        if not state:
            state["exp_avg"] = torch.zeros_like(p)
        beta1, beta2 = group["betas"]
        m = state["exp_avg"]
        direction = m.lerp(grad, 1 - beta1).sign_()
        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
        m.lerp_(grad, 1 - beta2)


class LAMB(_OneByOne):
    """Adam's direction, as long as the layer is large (You et al. 2020, arXiv:1904.00962, alg. 2).

        u = m_hat / (sqrt(v_hat) + eps) + weight_decay w
        w <- w - lr * min(|w|, max_trust_norm) / |u| * u         norms over the whole parameter

    A layer with small weights takes small steps and one with large weights large ones, so that one
    learning rate is a relative change, the same for every layer. Where a norm is 0 (a bias at the
    start) the factor is 1.

    Args:
        max_trust_norm: the largest norm that a weight is credited with (phi in the paper).

    Raises:
        ValueError: a hyperparameter outside its range.
        TypeError: a sparse gradient.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        max_trust_norm: float = 10.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"max_trust_norm": max_trust_norm})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        _check(self.param_groups[-1], "lr", "weight_decay", "eps", "max_trust_norm")

    def _update(
        self, group: dict[str, Any], p: Tensor, grad: Tensor, state: dict[str, Any]
    ) -> None:
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        m = state["exp_avg"].lerp_(grad, 1 - beta1)
        v = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        m_hat = m / (1 - beta1 ** state["step"])
        v_hat = v / (1 - beta2 ** state["step"])
        update = m_hat / (v_hat.sqrt() + group["eps"]) + group["weight_decay"] * p
        weight_norm = p.norm().clamp(max=group["max_trust_norm"])
        update_norm = update.norm()
        one = torch.ones_like(update_norm)
        trust = torch.where((weight_norm > 0) & (update_norm > 0), weight_norm / update_norm, one)
        p.sub_(update.mul_(trust), alpha=group["lr"])


class Adafactor(_OneByOne):
    """Adam without momentum whose second moments of an (m, n) matrix are m + n numbers
    (Shazeer and Stern 2018, arXiv:1804.04235, algorithm 4).

        R <- b R + (1 - b) row means of (g^2 + eps_1)        b = 1 - t^decay_rate
        C <- b C + (1 - b) column means of (g^2 + eps_1)
        v_ij = R_i C_j / mean(R)                             the best matrix of rank 1
        u = g / sqrt(v), divided by max(1, rms(u) / clip_threshold)
        w <- w - lr * weight_decay * w - lr * max(eps_2, rms(w)) * u

    Vectors keep all of v. With `scale_parameter` the learning rate is a relative change, as in
    LAMB; without it, an absolute one, as in Adam.

    Args:
        eps: (eps_1, added to squares; eps_2, the least size that a parameter is credited with).
        decay_rate: negative; b rises from 0 to 1, so no bias correction is needed.
        beta1: momentum on the updates; None keeps none, which is where the memory is saved.

    Raises:
        ValueError: a hyperparameter outside its range.
        TypeError: a sparse gradient.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "decay_rate": decay_rate,
            "beta1": beta1,
            "weight_decay": weight_decay,
            "scale_parameter": scale_parameter,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _check(group, "lr", "weight_decay", "clip_threshold")
        if group["decay_rate"] >= 0:
            raise ValueError(f"decay_rate must be negative, got {group['decay_rate']}")
        if group["beta1"] is not None and not 0 <= group["beta1"] < 1:
            raise ValueError(f"beta1 must be in [0, 1), or None; got {group['beta1']}")

    def _update(
        self, group: dict[str, Any], p: Tensor, grad: Tensor, state: dict[str, Any]
    ) -> None:
        if not state:
            state["step"] = 0
            if p.ndim >= 2:
                state["rows"] = p.new_zeros(p.shape[:-1])
                state["columns"] = p.new_zeros(p.shape[:-2] + p.shape[-1:])
            else:
                state["exp_avg_sq"] = torch.zeros_like(p)
            if group["beta1"] is not None:
                state["exp_avg"] = torch.zeros_like(p)
        state["step"] += 1
        keep = 1 - state["step"] ** group["decay_rate"]
        squares = grad.square() + group["eps"][0]
        if p.ndim >= 2:
            rows = state["rows"].lerp_(squares.mean(dim=-1), 1 - keep)  # (…, m)
            columns = state["columns"].lerp_(squares.mean(dim=-2), 1 - keep)  # (…, n)
            share = rows / rows.mean(dim=-1, keepdim=True)
            # Two thin roots, multiplied: R C overflows where the product of roots does not.
            update = grad * share.rsqrt().unsqueeze(-1) * columns.rsqrt().unsqueeze(-2)
        else:
            update = grad * state["exp_avg_sq"].lerp_(squares, 1 - keep).rsqrt()
        update /= (_rms(update) / group["clip_threshold"]).clamp(min=1.0)
        lr = group["lr"]
        if group["scale_parameter"]:
            lr = lr * max(group["eps"][1], _rms(p).item())
        update *= lr
        if group["beta1"] is not None:
            update = state["exp_avg"].lerp_(update, 1 - group["beta1"])
        p.mul_(1 - lr * group["weight_decay"]).sub_(update)


def optimizer_state_numbers(optimizer: torch.optim.Optimizer) -> int:
    """How many numbers an optimiser keeps beside the weights, step counts aside.

    2 a weight for AdamW and LAMB, 1 for Lion and Muon, about 0 for Adafactor.
    """
    return sum(
        value.numel()
        for state in optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, Tensor) and name != "step"
    )


def _rms(x: Tensor) -> Tensor:
    return x.norm() / math.sqrt(x.numel())


def _check(group: dict[str, Any], *not_negative: str) -> None:
    for name in not_negative:
        if not group[name] >= 0:
            raise ValueError(f"{name} must be >= 0, got {group[name]}")
    betas = group.get("betas", (0.0, 0.0))
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be two numbers in [0, 1), got {betas}")
