"""Leave whole branches out at random while training, so that no layer is relied upon.

A residual network with a branch left out is a shallower residual network. Training many depths at
once regularises, saves work where rows can really be skipped, and made networks of 1,200 layers
trainable (Huang et al. 2016, arXiv:1603.09382). README: "Noise on purpose".
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from transformer import TransformerBlock


def drop_branch(update: Tensor, rate: float) -> Tensor:
    """Zero a branch's output (B, …) for each row of the batch with probability `rate`, and divide
    the others by 1 - rate, so that the mean over draws is the output itself.

    Raises:
        ValueError: a rate outside [0, 1).
    """
    _check_rate(rate)
    if not rate:
        return update
    shape = (update.shape[0],) + (1,) * (update.ndim - 1)
    return update * update.new_empty(shape).bernoulli_(1 - rate).div_(1 - rate)  # (B, …)


def add_stochastic_depth(model: nn.Module, last_rate: float) -> int:
    """Make each branch of layer l of L leave rows out with probability l / L * last_rate, in
    training mode: early layers feed all later ones and are dropped least (the paper's linear rule,
    section 3). Names in the state dict stay. Returns the number of branches.

    Raises:
        ValueError: a rate outside [0, 1), or a model without blocks.
    """
    _check_rate(last_rate)
    blocks = [module for module in model.modules() if isinstance(module, TransformerBlock)]
    if not blocks:
        raise ValueError(f"{type(model).__name__} holds no TransformerBlock")
    for number, block in enumerate(blocks, start=1):
        rate = number / len(blocks) * last_rate

        def hook(module: nn.Module, args: Any, output: Tensor, rate: float = rate) -> Tensor:
            return drop_branch(output, rate) if module.training else output

        block.attention.register_forward_hook(hook)
        block.feed_forward.register_forward_hook(hook)
    return 2 * len(blocks)


def _check_rate(rate: float) -> None:
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"the rate must lie in [0, 1), got {rate}")
