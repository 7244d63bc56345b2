"""The production training step: what stands between a model with an optimiser and `fit`.

One call of `TrainingStep` is one optimiser step: the batch goes through the model in micro-batches
(accumulation), in lower precision if wished (autocast), the gradients are summed over processes,
clipped and applied at the schedule's learning rate, and an average of the weights follows.

    training = TrainingStep(model, optimizer, cosine(1000, warmup_steps=50), config)
    fit(training, batches.iterate(training.step), callbacks, max_steps=1000)

The loss is a sum over target tokens, divided by the true number of targets in the whole step, in
all micro-batches and on all ranks. Averaging the averages of micro-batches instead, the classic
accumulation bug, gives a token in a short sequence more weight than one in a long sequence.

README: "Accumulation", "Mixed precision", "Clipping".
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from activation_checkpointing import checkpoint_activations
from lr_schedules import Schedule
from masks import document_mask
from numerics import cross_entropy
from token_dataset import PackedBatch
from training_measures import (
    HeldOutLoss,
    LRRange,
    evaluate_bits_per_byte,
    gradient_moments,
    gradient_noise_scale,
    lr_range_test,
    measure_step_seconds,
    model_flops_utilization,
    peak_flops,
)
from weight_average import WeightAverage

__all__ = [
    "IGNORE_INDEX",
    "HeldOutLoss",
    "LRRange",
    "LossFn",
    "ReduceGradients",
    "TrainingConfig",
    "TrainingStep",
    "WeightAverage",
    "all_reduce_gradients",
    "checkpoint_activations",
    "evaluate_bits_per_byte",
    "gradient_moments",
    "gradient_noise_scale",
    "lr_range_test",
    "measure_step_seconds",
    "model_flops_utilization",
    "next_token_loss",
    "peak_flops",
]

IGNORE_INDEX = -100  # a target that is no target: padding, a prompt

LossFn = Callable[[nn.Module, Any], tuple[Tensor, Tensor]]
ReduceGradients = Callable[..., None]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a step is made. Accumulation is derived, so the same `tokens_per_step` is the same
    training on any memory and any number of processes.

    Args:
        tokens_per_step: tokens in one optimiser step, over all ranks.
        seq_len: tokens in a row of the batch.
        micro_batch_size: rows that go through a rank's model at once; bounds the memory.
        clip_norm: largest global L2 norm of the gradient (Pascanu et al. 2013), None for none.
        autocast: torch.bfloat16 or torch.float16 for the matrix products; the weights, their
            gradients and the optimiser stay as they are. float16 comes with loss scaling.
        ema_decay: keep an exponential average of the weights with this decay.
        activation_checkpointing: recompute each block in the backward pass instead of keeping
            what it computed: about a third more time, and memory for one block at a time.
        nonfinite: a loss or gradient that is infinite or nan stops the run ("raise"), or the step
            is left out ("skip"; `max_skips` in a row stop it), or nobody looks ("ignore"), which
            saves a GPU the one wait a step that looking costs.
    """

    tokens_per_step: int
    seq_len: int
    micro_batch_size: int
    world_size: int = 1
    clip_norm: float | None = 1.0
    autocast: torch.dtype | None = None
    ema_decay: float | None = None
    activation_checkpointing: bool = False
    nonfinite: Literal["raise", "skip", "ignore"] = "raise"
    max_skips: int = 10

    def __post_init__(self) -> None:
        for name in ("tokens_per_step", "seq_len", "micro_batch_size", "world_size", "max_skips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        at_once = self.seq_len * self.micro_batch_size * self.world_size
        if self.tokens_per_step % at_once:
            raise ValueError(
                f"tokens_per_step = {self.tokens_per_step} must be a multiple of the tokens that "
                f"go through at once: seq_len {self.seq_len} * micro_batch_size "
                f"{self.micro_batch_size} * world_size {self.world_size} = {at_once}"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, or None for none; got {self.clip_norm}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie between 0 and 1; got {self.ema_decay}")
        if self.autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"autocast takes bfloat16, float16 or None; got {self.autocast}")
        if self.nonfinite not in ("raise", "skip", "ignore"):
            raise ValueError(f"nonfinite must be raise, skip or ignore; got {self.nonfinite!r}")

    @property
    def batch_size(self) -> int:
        """Rows in one optimiser step, over all ranks."""
        return self.tokens_per_step // self.seq_len

    @property
    def accumulation(self) -> int:
        """Micro-batches that each rank adds up before the optimiser moves."""
        return self.batch_size // (self.micro_batch_size * self.world_size)


def next_token_loss(
    model: nn.Module, batch: Sequence[Tensor], *, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(summed nats, number of targets) of (ids, targets), each (B, T); IGNORE_INDEX is no target.

    A `PackedBatch` keeps its documents apart: no attention between them, positions from 0 in each.
    """
    ids, targets = batch[0], batch[1]
    if isinstance(batch, PackedBatch):
        keep = document_mask(batch.document_ids)  # (B, 1, T, T)
        logits = model(ids, keep=keep, positions=batch.positions)  # (B, T, V)
    else:
        logits = model(ids)  # (B, T, V)
    nats = cross_entropy(
        logits,
        targets,
        ignore_index=IGNORE_INDEX,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return nats, (targets != IGNORE_INDEX).sum()


@torch.no_grad()
def all_reduce_gradients(parameters: Iterable[nn.Parameter], *also: Tensor) -> None:
    """Sum gradients, and the tensors in `also`, over the processes of the default group, in place.

    All of one type travel in a single flat buffer: one message costs one latency, a hundred small
    ones a hundred. A parameter that got no gradient here may have one elsewhere, so it takes part
    with zeros. The sum comes out bit for bit equal on every rank.

    Raises:
        RuntimeError: `torch.distributed` has no process group.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError("all_reduce_gradients needs torch.distributed.init_process_group first")
    tensors = list(also)
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            tensors.append(parameter.grad)
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in same])
        dist.all_reduce(flat)
        pieces = flat.split([tensor.numel() for tensor in same])
        for tensor, piece in zip(same, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))


class TrainingStep:
    """One optimiser step a call, for `train_loop.fit`: `step(batch) -> metrics`.

    Args:
        model: called as `loss` calls it; its parameters that require gradients are trained.
        optimizer: its groups' learning rates are the peak rates that `schedule` multiplies.
        schedule: from the number of steps taken to a multiplier (`lr_schedules`).
        loss: `(model, micro_batch) -> (summed loss, number of terms)`. The batch is a tuple (or
            NamedTuple) of tensors, cut along their first dimension.
        reduce_gradients: sums gradients and the step's totals over processes, called
            `(parameters, totals)`: `all_reduce_gradients`, or None for a single process. All
            ranks must start from the same weights.

    The metrics are tensors, so that nothing waits for the device until somebody reads them: `loss`
    (mean nats a term over the whole step), `grad_norm` (before clipping), `tokens` (terms);
    and `lr`, a float: that of the first group.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        config: TrainingConfig,
        *,
        loss: LossFn = next_token_loss,
        reduce_gradients: ReduceGradients | None = None,
    ) -> None:
        if (reduce_gradients is None) != (config.world_size == 1):
            raise ValueError(
                f"world_size {config.world_size} and reduce_gradients {reduce_gradients!r} do not "
                "go together: several processes must add their gradients, and a single one has none"
            )
        self.model, self.optimizer, self.schedule, self.config = model, optimizer, schedule, config
        self.loss, self.reduce_gradients = loss, reduce_gradients
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("the model has no parameter that requires gradients")
        self.device = self.parameters[0].device
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])  # the name torch's own schedulers use
        if config.activation_checkpointing:
            checkpoint_activations(model)
        self.average = (
            WeightAverage(self.parameters, config.ema_decay) if config.ema_decay else None
        )
        # float16 reaches down to 6e-8 only: without scaling, small gradients become 0.
        fp16 = config.autocast == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type) if fp16 else None
        self.step = 0  # optimiser steps taken, those left out counted in
        self.skips = self.skips_in_a_row = 0
        model.train()

    def __call__(self, batch: Sequence[Tensor]) -> dict[str, float | Tensor]:
        """Take one optimiser step on this rank's rows of the batch.

        Raises:
            ValueError: the batch has not the number of rows that the config says.
            FloatingPointError: a loss or gradient is not finite and the policy is to raise, or
                too many steps in a row had to be left out.
        """
        lr = self._set_learning_rates()
        self.optimizer.zero_grad(set_to_none=True)
        totals = self._accumulate(batch)
        if self.reduce_gradients is not None:
            self.reduce_gradients(self.parameters, totals)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        loss, terms = totals[0] / totals[1], totals[1]
        grad_norm, factor = self._norm_and_factor(terms)
        if self._is_usable(loss, grad_norm, terms):
            self._update(factor)
        self.step += 1
        return {"loss": loss, "grad_norm": grad_norm, "lr": lr, "tokens": terms}

    def _set_learning_rates(self) -> float:
        factor = self.schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        return self.optimizer.param_groups[0]["lr"]

    def _accumulate(self, batch: Sequence[Tensor]) -> Tensor:
        """Add up the gradients of the summed loss over `tokens_per_step`: a constant, since the
        true number of terms is known only at the end. Returns (summed loss, number of terms).
        """
        rows, size = len(batch[0]), self.config.micro_batch_size
        if rows != size * self.config.accumulation:
            raise ValueError(
                f"the batch has {rows} rows; tokens_per_step {self.config.tokens_per_step} over "
                f"seq_len {self.config.seq_len} and {self.config.world_size} process(es) is "
                f"{size * self.config.accumulation}"
            )
        totals = torch.zeros(2, device=self.device)
        for start in range(0, rows, size):
            micro = _rows(batch, start, start + size, self.device)
            with torch.autocast(
                self.device.type, self.config.autocast, enabled=self.config.autocast is not None
            ):
                summed, terms = self.loss(self.model, micro)
            # A loss in half precision could not hold its scale of 65,536.
            summed = summed.to(torch.promote_types(summed.dtype, torch.float32))
            scaled = summed / self.config.tokens_per_step
            (self.scaler.scale(scaled) if self.scaler is not None else scaled).backward()
            totals += torch.stack([summed.detach().float(), terms.float()])
        return totals

    @torch.no_grad()
    def _norm_and_factor(self, terms: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient's norm before clipping, and the factor that turns the gradient of
        sum / tokens_per_step into that of sum / terms, clipped.
        """
        factor = self.config.tokens_per_step / terms
        norm = nn.utils.get_total_norm(self._gradients()) * factor
        if self.config.clip_norm is not None:
            factor = factor * (self.config.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        return norm, factor

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]

    def _is_usable(self, loss: Tensor, grad_norm: Tensor, terms: Tensor) -> bool:
        """Whether to apply the gradients. All ranks decide alike: they see the same sums."""
        if self.config.nonfinite == "ignore" and self.scaler is None:
            return True
        if bool(torch.isfinite(loss + grad_norm)):
            self.skips_in_a_row = 0
            return True
        self.skips += 1
        self.skips_in_a_row += 1
        overflow = self.scaler is not None and bool(torch.isfinite(loss))
        if self.scaler is not None:
            self.scaler.update()  # it has seen the overflow, and halves its scale
        if self.config.nonfinite == "raise" and not overflow:
            raise FloatingPointError(self._complaint(loss, grad_norm, terms))
        if self.skips_in_a_row > self.config.max_skips:
            raise FloatingPointError(
                f"{self._complaint(loss, grad_norm, terms)}; the {self.config.max_skips} steps "
                "before it had to be left out too"
            )
        return False

    def _complaint(self, loss: Tensor, grad_norm: Tensor, terms: Tensor) -> str:
        first = next(
            (
                f"; the first bad gradient is that of {name}"
                for name, parameter in self.model.named_parameters()
                if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
            ),
            "",
        )
        return (
            f"step {self.step + 1}: the loss over {terms.item():.0f} targets is {loss.item():g} "
            f"and the gradient norm {grad_norm.item():g}, at learning rate "
            f"{self.optimizer.param_groups[0]['lr']:g}{first}"
        )

    def _update(self, factor: Tensor) -> None:
        # On the CPU looking costs nothing, and often there is nothing to do.
        if self.device.type != "cpu" or factor.item() != 1.0:
            torch._foreach_mul_(self._gradients(), factor)
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        if self.average is not None:
            self.average.update()

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[nn.Module]:
        """The model with the averaged weights in place, or as it is where none are kept."""
        with self.average.in_place() if self.average is not None else contextlib.nullcontext():
            yield self.model

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, but for the random generators' states."""
        return {
            "step": self.step,
            "skips": [self.skips, self.skips_in_a_row],
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict()` was taken.

        Raises:
            ValueError: the one was made with weight averaging or loss scaling, the other without.
        """
        for name, what, mine in (
            ("average", "an average of the weights", self.average),
            ("scaler", "loss scaling", self.scaler),
        ):
            if (mine is None) != (state[name] is None):
                has, lacks = ("the saved state", "this run")[:: 1 if mine is None else -1]
                raise ValueError(f"{has} has {what} and {lacks} has none")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.skips, self.skips_in_a_row = state["skips"]


def _rows(batch: Sequence[Tensor], start: int, stop: int, device: torch.device) -> Sequence[Tensor]:
    """Rows of every tensor of a tuple or NamedTuple, on the device."""
    cut = [tensor[start:stop].to(device, non_blocking=True) for tensor in batch]
    return type(batch)(*cut) if hasattr(batch, "_fields") else tuple(cut)
