"""Where the memory of a training run goes, as formulas, and as a count of what autograd keeps.

Weights, gradients and optimiser states depend on the number of parameters; activations on the
tokens that go through at once. README: "Memory, in full" and "ZeRO, a preview".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from gpt import GPTConfig

# Numbers that an optimiser keeps for each weight of a large matrix.
STATE_NUMBERS = {"sgd": 0, "momentum": 1, "adamw": 2, "lamb": 2, "muon": 1, "lion": 1}


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """Bytes on one device for what depends on the parameters alone."""

    weights: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer


def training_state_bytes(
    num_parameters: int,
    *,
    precision: Literal["fp32", "mixed"] = "mixed",
    optimizer: str = "adamw",
    zero_stage: Literal[0, 1, 2, 3] = 0,
    world_size: int = 1,
) -> StateBytes:
    """Bytes of weights, gradients and optimiser states on each of `world_size` devices.

    "mixed" is the layout of Micikevicius et al. 2018: 2-byte weights and gradients for the matrix
    products, and with the optimiser's states a 4-byte master copy of the weights, 16 bytes a weight
    under AdamW. ZeRO (Rajbhandari et al. 2020, section 5) cuts among the devices the optimiser's
    share (stage 1), the gradients too (2), the weights too (3). "fp32", which `TrainingStep` does
    even under autocast, has 4-byte weights and gradients and no copy: 16 bytes as well.

    Raises:
        ValueError: an unknown precision, optimiser or stage, or a number below 1.
    """
    if optimizer not in STATE_NUMBERS:
        raise ValueError(f"optimizer must be one of {', '.join(STATE_NUMBERS)}; got {optimizer!r}")
    if precision not in ("fp32", "mixed") or zero_stage not in (0, 1, 2, 3):
        raise ValueError(
            f"precision is fp32 or mixed and zero_stage 0 to 3; got {precision!r}, {zero_stage!r}"
        )
    if min(num_parameters, world_size) < 1:
        raise ValueError(f"counts must be at least 1; got {num_parameters}, {world_size}")
    half = 2 if precision == "mixed" else 4
    master = 4 if precision == "mixed" else 0

    def share(first_stage: int) -> float:
        return num_parameters / (world_size if zero_stage >= first_stage else 1)

    return StateBytes(
        weights=half * share(3),
        gradients=half * share(2),
        optimizer=(master + 4 * STATE_NUMBERS[optimizer]) * share(1),
    )


def block_activation_numbers(config: GPTConfig) -> int:
    """Numbers a token that one block of `gpt.GPT` keeps for its backward pass, without dropout.

    8·D + 2·F + H + 4: both norms' inputs and outputs (4·D) with mean and deviation (4), queries,
    keys, values and their mixture (4·D) with the softmax's normaliser of each head (H), and the
    feed-forward's hidden layer before and after the activation (2·F). No T x T matrix: a fused
    attention kernel computes the weights again.
    """
    width = config.d_ff or 4 * config.d_model
    return 8 * config.d_model + 2 * width + config.num_heads + 4


def saved_activation_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd holds after `forward()` for the backward pass to come, the model's own
    parameters left out; what several operations keep counts once.

    Counted by hooks on every saved tensor, so nothing is said of what activation checkpointing
    keeps: that is no saved tensor, and needs a look at the process (`lab.peak_memory_bytes`).
    """
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}
    held: list[Any] = []  # an address must not be used again while we count

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
            held.append(storage)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), torch.enable_grad():
        held.append(forward())
    return sum(seen.values())
