"""Trade time for memory: recompute what a block computed instead of keeping it.

A backward pass needs what the forward pass computed: in half precision some 34 bytes a token and
unit of width for each block, attention's matrix aside (Korthikanti et al. 2022, eq. 1). Keeping
each block's input alone, 2 bytes, and running its forward pass a second time when its turn comes
adds a third to the work: a step is 1 forward and about 2 forwards' worth of backward, then 2 + 2.
README: "Activation checkpointing".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint

from transformer import TransformerBlock


def checkpoint_activations(model: nn.Module, block_type: type[nn.Module] = TransformerBlock) -> int:
    """Make every block of the model keep its input alone and compute the rest again when the
    backward pass comes by (Chen et al. 2016). Gradients are the same, dropout included; names in
    the state dict too. Returns the number of blocks.

    Raises:
        ValueError: the model holds no `block_type`.
    """
    blocks = [module for module in model.modules() if isinstance(module, block_type)]
    if not blocks:
        raise ValueError(f"{type(model).__name__} holds no {block_type.__name__} to recompute")
    for block in blocks:
        if not isinstance(block.forward, functools.partial):  # asked for twice
            block.forward = functools.partial(_recomputed, block.forward)
    return len(blocks)


def _recomputed(forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Any:
    if not is_grad_enabled():  # nothing is kept for a backward pass that does not come
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
