"""A model's weights, laid out for decoding one token at a time on a CPU.

With one token, a linear layer is a matrix-vector product: each weight is read from memory, used
once and thrown away, so memory traffic is all there is to it. The layout that training wants,
(out, in), is a poor one for that: the kernel for a single row reads it at about half the speed
that the memory has, and on one core, however many there are.

Here the matrix is transposed and cut into blocks of output columns, one for each thread, and the
layer becomes one batched product: a batch is what the library shares out among threads. The
weights are the same numbers; only the order in which a sum's terms are added may differ.

README, "The KV cache"; `benchmarks/decoding.py` measures what it gains.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

_Model = TypeVar("_Model", bound=nn.Module)


def decoding_copy(model: _Model, *, threads: int | None = None) -> _Model:
    """Return a copy of a model, on the CPU, that decodes small batches faster; same results.

    Every `nn.Linear` in it is replaced, so it cannot be trained or saved, and its memory is its
    own: later changes of `model` do not reach it. A tied output layer gets its own matrix. Long
    prompts and large batches are not its purpose: they are a little slower than in `model`.

    Args:
        model: any model built of `nn.Linear` layers, such as `GPT` or `Llama`.
        threads: how many blocks to cut each matrix into; None = `torch.get_num_threads()`.

    Raises:
        ValueError: fewer than one thread, or a model that is not on the CPU.
    """
    threads = torch.get_num_threads() if threads is None else threads
    if threads < 1:
        raise ValueError(f"threads is {threads}; it must be at least 1")
    devices = {parameter.device.type for parameter in model.parameters()}
    if devices != {"cpu"}:
        raise ValueError(f"the model is on {sorted(devices)}; this layout is for CPUs")
    # deepcopy takes what it finds in this table for copied already.
    replaced = {
        id(module): _BlockedLinear(module, threads)
        for module in model.modules()
        if isinstance(module, nn.Linear)
    }
    twin = copy.deepcopy(model, memo=dict(replaced))
    return twin.eval().requires_grad_(False)


class _BlockedLinear(nn.Module):
    """`nn.Linear` as one batched product over blocks of its outputs."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, blocks: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        width = -(-self.out_features // blocks)  # outputs a block; the last may be padded
        padding = width * blocks - self.out_features
        weight = nn.functional.pad(linear.weight.detach(), (0, 0, 0, padding))
        weight = weight.view(blocks, width, self.in_features).transpose(1, 2).contiguous()
        self.register_buffer("weight", weight)  # (blocks, in, width)
        bias = linear.bias
        if bias is not None:
            bias = nn.functional.pad(bias.detach(), (0, padding)).view(blocks, 1, width).clone()
        self.register_buffer("bias", bias)  # (blocks, 1, width)
        self.blocks = blocks

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        shape = x.shape
        rows = x.reshape(1, -1, self.in_features).expand(self.blocks, -1, -1)  # (blocks, N, in)
        if self.bias is None:
            out = torch.bmm(rows, self.weight)  # (blocks, N, width)
        else:
            out = torch.baddbmm(self.bias, rows, self.weight)  # (blocks, N, width)
        if rows.shape[1] > 1:
            out = out.transpose(0, 1)  # (N, blocks, width)
        return out.reshape(*shape[:-1], -1)[..., : self.out_features]
