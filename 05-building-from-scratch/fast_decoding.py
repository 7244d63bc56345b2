"""A model's weights, laid out for decoding one token at a time on a CPU.

With one token, a linear layer is a matrix-vector product: each weight is read from memory, used
once and thrown away, so memory traffic is all there is to it. The layout that training wants,
(out, in), is a poor one for that: the kernel for a single row reads it at about half the speed
that the memory has, and on one core, however many there are.

Here the matrix is transposed and cut into blocks of output columns, one for each thread, and the
layer becomes one batched product: a batch is what the library shares out among threads. The
weights are the same numbers; only the order in which a sum's terms are added may differ. Layers
that read the same input, an attention's queries, keys and values, become one product: a small
model's token is dozens of products of some tens of microseconds, and starting one costs several.

README, "The KV cache"; `benchmarks/decoding.py` measures what it gains.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from transformer import TransformerBlock

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
    replaced: dict[int, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, TransformerBlock):
            attention = module.attention
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            if len({layer.in_features for layer in projections}) == 1:
                joint = _JointLinear(projections, threads)
                replaced.update({id(layer): _Part(joint, i) for i, layer in enumerate(projections)})
    for module in model.modules():
        if isinstance(module, nn.Linear) and id(module) not in replaced:
            replaced[id(module)] = _BlockedLinear(module.weight, module.bias, threads)
    twin = copy.deepcopy(model, memo=dict(replaced))
    return twin.eval().requires_grad_(False)


class _BlockedLinear(nn.Module):
    """`nn.Linear` as one batched product over blocks of its outputs."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, blocks: int) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        width = -(-self.out_features // blocks)  # outputs a block; the last may be padded
        padding = width * blocks - self.out_features
        weight = nn.functional.pad(weight.detach(), (0, 0, 0, padding))
        weight = weight.view(blocks, width, self.in_features).transpose(1, 2).contiguous()
        self.register_buffer("weight", weight)  # (blocks, in, width)
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


class _JointLinear(nn.Module):
    """Linear layers of one input as one product, which the first to be asked computes."""

    def __init__(self, layers: Sequence[nn.Linear], blocks: int) -> None:
        super().__init__()
        self.sizes = [layer.out_features for layer in layers]
        bias = None
        if any(layer.bias is not None for layer in layers):
            bias = torch.cat(
                [
                    layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
                    for layer in layers
                ]
            )
        self.product = _BlockedLinear(torch.cat([layer.weight for layer in layers]), bias, blocks)
        self._seen: tuple[Tensor, tuple[Tensor, ...]] | None = None

    def part(self, index: int, x: Tensor) -> Tensor:
        """Layer `index` of x; the same tensor is multiplied once for all layers."""
        seen = self._seen
        if seen is None or seen[0] is not x:
            seen = (x, self.product(x).split(self.sizes, dim=-1))
        # Nothing is held on to after the last layer has had its part.
        self._seen = None if index == len(self.sizes) - 1 else seen
        return seen[1][index]


class _Part(nn.Module):
    """One of the layers that a `_JointLinear` computes together."""

    def __init__(self, joint: _JointLinear, index: int) -> None:
        super().__init__()
        self.joint, self.index = joint, index
        self.in_features, self.out_features = joint.product.in_features, joint.sizes[index]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.joint.part(self.index, x)
