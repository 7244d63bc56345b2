"""Bugs that look right: each breaks a healthy GPT or its training in one way that does not crash.

The clinic of this topic plants them one at a time, runs every check of `debugging` and trains
for a short while, to see which check finds which bug and what the bug costs when nobody looks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from attention import scaled_dot_product_attention, sdpa_attention
from debugging import LossFunction, shifted_loss
from gpt import GPT
from numerics import cross_entropy


@dataclass(frozen=True, kw_only=True)
class PlantedBug:
    """A bug: what to do to a model, or to how its loss is taken, and what it looks like.

    plant: changes a fresh GPT in place.
    loss_of: (model, ids, targets) -> the mean loss that is trained on; `shifted_loss` when healthy.
    """

    name: str
    looks_like: str
    plant: Callable[[GPT], None] = lambda model: None
    loss_of: LossFunction = shifted_loss


def planted_bugs() -> tuple[PlantedBug, ...]:
    """The clinic's patients, a healthy one first."""
    return (
        PlantedBug(name="none", looks_like="a healthy model"),
        PlantedBug(
            name="targets not shifted",
            looks_like="loss near zero; writes one token for ever",
            loss_of=_unshifted_loss,
        ),
        PlantedBug(
            name="mask off by one",
            looks_like="loss far too good; nonsense when sampled",
            plant=lambda model: _attend_with(model, _sees_next),
        ),
        PlantedBug(
            name="heads cut across positions",
            looks_like="trains, to a worse loss",
            plant=_cut_heads_across_positions,
        ),
        PlantedBug(
            name="no 1/√K",
            looks_like="trains, slower",
            plant=lambda model: _attend_with(model, _unscaled),
        ),
        PlantedBug(
            name="positions left out",
            looks_like="trains, to a worse loss",
            plant=_drop_positions,
        ),
        PlantedBug(
            name="embeddings of std 1",
            looks_like="starts at tens of nats",
            plant=lambda model: _rescale_embeddings(model, 50.0),
        ),
        PlantedBug(
            name="residual dropped",
            looks_like="hardly trains",
            plant=_drop_residual,
        ),
        PlantedBug(
            name="final norm left out",
            looks_like="trains, starts slowly",
            plant=_drop_final_norm,
        ),
        PlantedBug(
            name="attention detached",
            looks_like="trains, to a worse loss",
            plant=_detach_attention,
        ),
        PlantedBug(
            name="softmax taken twice",
            looks_like="loss stuck near ln V",
            loss_of=_softmax_twice,
        ),
        PlantedBug(
            name="dead feed-forward",
            looks_like="trains, to a worse loss",
            plant=_kill_feed_forward,
        ),
    )


def _unshifted_loss(model: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    """Scores each position on its own input."""
    return cross_entropy(model(ids), ids)


def _softmax_twice(model: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    """Hands probabilities to a loss that expects logits."""
    return cross_entropy(model(ids).softmax(dim=-1), targets)


def _blocks(model: GPT) -> list[Any]:
    """The blocks, as what can be tampered with."""
    return list(model.blocks)


def _attend_with(model: GPT, attend: Callable[..., Tensor]) -> None:
    for block in _blocks(model):
        block.attention.attend = attend


def _sees_next(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, **options) -> Tensor:
    """Causal attention whose triangle is one too wide."""
    T, S = q.shape[2], k.shape[2]
    keep = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T + 1)
    return scaled_dot_product_attention(q, k, v, **{**options, "keep": keep})


def _unscaled(q: Tensor, k: Tensor, v: Tensor, **options) -> Tensor:
    """Attention that forgets to divide by the root of the head's width."""
    return sdpa_attention(q, k, v, **{**options, "scale": 1.0})


def _cut_heads_across_positions(model: GPT) -> None:
    """`view(B, H, T, K)` where `view(B, T, H, K).transpose(1, 2)` was meant: shapes agree."""

    def forward(self, x: Tensor, *args, causal: bool = False, **options) -> Tensor:
        B, T, _ = x.shape
        shape = (B, self.num_heads, T, self.head_dim)
        q, k, v = (layer(x).view(shape) for layer in (self.q_proj, self.k_proj, self.v_proj))
        out = self.attend(q, k, v, causal=causal)  # (B, H, T, K)
        return self.out_proj(out.reshape(B, T, -1))

    for block in _blocks(model):
        block.attention.forward = MethodType(forward, block.attention)


def _drop_positions(model: GPT) -> None:
    model.position_embedding.weight.data.zero_()
    model.position_embedding.weight.requires_grad_(False)


def _rescale_embeddings(model: GPT, factor: float) -> None:
    model.token_embedding.weight.data.mul_(factor)


def _drop_residual(model: GPT) -> None:
    for block in _blocks(model):
        block._add = MethodType(lambda self, x, update, norm: update, block)


def _drop_final_norm(model: GPT) -> None:
    model.final_norm = nn.Identity()  # type: ignore[assignment]


def _detach_attention(model: GPT) -> None:
    """The sublayer's output is added, but no gradient reaches its weights."""
    for block in _blocks(model):
        block.attention.register_forward_hook(lambda module, args, out: out.detach())


def _kill_feed_forward(model: GPT) -> None:
    """A bias so negative that no unit of the hidden layer is ever active."""
    for block in _blocks(model):
        block.feed_forward.up.bias.data.fill_(-20.0)
