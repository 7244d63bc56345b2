"""One small decoder with six ways to know positions: what the topic's comparisons train.

The model is a stack of this course's `TransformerBlock`s; only `scheme` changes, and with it
where the position enters: in the embeddings, in the scores, in queries and keys, or nowhere.
The page's section "Six ways to say where" derives each.

Letters: B batch, T positions, D model width, H heads, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from attention import MultiHeadAttention
from numerics import cross_entropy, nats_to_bits
from positional_encoding import (
    LearnedPositions,
    T5RelativeBias,
    alibi_bias,
    sinusoidal_encoding,
)
from rope_encoding import RoPE
from sublayers import FeedForward, LayerNorm
from transformer import TransformerBlock, TransformerStack

PositionScheme = Literal["sinusoidal", "learned", "t5", "alibi", "rope", "none"]


class SchemeLM(nn.Module):
    """A decoder-only language model that is told positions in one of six ways.

    Args:
        scheme: one of `PositionScheme`.
        max_seq_len: rows of the learned table; no other scheme needs it.
        pre_norm: where the norms stand.

    Weights are N(0, 0.02²), those that write to the stream divided by √(2L); the output matrix
    is the embedding. Drawn from `seed`, so that two schemes start from the same matrices.

    Raises:
        ValueError: an unknown scheme, or sizes that do not fit.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        num_heads: int,
        num_layers: int,
        scheme: PositionScheme = "rope",
        max_seq_len: int = 512,
        pre_norm: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if scheme not in get_args(PositionScheme):
            raise ValueError(f"scheme is {scheme!r}; it must be one of {get_args(PositionScheme)}")
        self.scheme = scheme
        self.num_heads = num_heads
        self.embedding = nn.Embedding(vocab_size, d_model)
        blocks = [
            TransformerBlock(
                attention=MultiHeadAttention(d_model, num_heads),
                feed_forward=FeedForward(d_model, 4 * d_model),
                norm=partial(LayerNorm, d_model),
                pre_norm=pre_norm,
            )
            for _ in range(num_layers)
        ]
        self.stack = TransformerStack(blocks, LayerNorm(d_model) if pre_norm else None)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                writes = name.endswith(("out_proj.weight", "down.weight"))
                std = 0.02 / (2 * num_layers) ** 0.5 if writes and pre_norm else 0.02
                nn.init.normal_(parameter, std=std, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        self.learned = LearnedPositions(max_seq_len, d_model) if scheme == "learned" else None
        if self.learned is not None:
            nn.init.normal_(self.learned.weight, std=0.02, generator=generator)
        self.t5 = T5RelativeBias(num_heads, bidirectional=False) if scheme == "t5" else None
        if self.t5 is not None:
            nn.init.normal_(self.t5.weight, std=0.02, generator=generator)
        self.rope = RoPE(d_model // num_heads) if scheme == "rope" else None

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> logits of the next id (B, T, V). Raises ValueError for another shape."""
        if ids.dim() != 2 or not ids.shape[1]:
            raise ValueError(f"ids have shape {tuple(ids.shape)}; they must be (batch, length)")
        T = ids.shape[1]
        x = self.embedding(ids)  # (B, T, D)
        bias = rotary = None
        if self.scheme == "sinusoidal":
            # Embeddings have std 0.02 here; at full size the sinusoids would drown them.
            x = x + 0.02 * sinusoidal_encoding(T, x.shape[-1], device=x.device)
        elif self.learned is not None:
            x = x + self.learned(torch.arange(T, device=x.device))
        elif self.t5 is not None:
            bias = self.t5(T)  # (1, H, T, T)
        elif self.scheme == "alibi":
            bias = alibi_bias(self.num_heads, T, device=x.device)  # (1, H, T, T)
        elif self.rope is not None:
            rotary = self.rope.at(torch.arange(T, device=x.device))
        x = self.stack(x, causal=True, bias=bias, rotary=rotary)  # (B, T, D)
        return x @ self.embedding.weight.T  # (B, T, V)


def language_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean nats of each next id of (B, T + 1) ids."""
    return cross_entropy(model(ids[:, :-1]), ids[:, 1:])


@torch.no_grad()
def bits_by_position(model: nn.Module, ids: Tensor, *, batch_size: int = 8) -> Tensor:
    """Mean bits at each position of windows (N, T + 1): (T,), position 0 having no context.

    Raises ValueError for no windows, or windows of fewer than two ids.
    """
    if ids.dim() != 2 or not len(ids) or ids.shape[1] < 2:
        raise ValueError(f"windows have shape {tuple(ids.shape)}; they must be (N ≥ 1, T + 1 ≥ 2)")
    total = torch.zeros(ids.shape[1] - 1, dtype=torch.float64)
    for windows in ids.split(batch_size):
        losses = cross_entropy(model(windows[:, :-1]), windows[:, 1:], reduction="none")
        total += losses.double().sum(dim=0)
    return nats_to_bits(total / len(ids))
