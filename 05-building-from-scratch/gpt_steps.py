"""GPT from an empty file: nine models, each the one before with one part added.

Every step keeps the shape (B, T) ids -> (B, T, V) logits, and each is there to be compared with
its neighbours: what can it express that the one before could not, and what is it worth? The parts
are those of topics 03 and 04; the last step is `gpt.GPT` itself.

README, "From an empty file, one part at a time". Letters: B batch, T positions, D model width,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attention import MultiHeadAttention
from gpt import GPT, GPTConfig
from positional_encoding import LearnedPositions
from sublayers import FeedForward, LayerNorm
from transformer import TransformerBlock


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the construction: its number, its name, and what it adds to the one before."""

    number: int
    name: str
    adds: str


STEPS = (
    Step(number=1, name="bigram", adds="a table of what follows what"),
    Step(number=2, name="causal mean", adds="the mean of all tokens so far"),
    Step(number=3, name="one head", adds="weights that depend on the content"),
    Step(number=4, name="positions", adds="a learned vector for each place"),
    Step(number=5, name="heads", adds="several heads in the same width"),
    Step(number=6, name="feed-forward", adds="a network at each position"),
    Step(number=7, name="block", adds="residual stream and norms"),
    Step(number=8, name="depth", adds="more blocks"),
    Step(number=9, name="GPT", adds="tied embeddings and GPT-2's initialisation"),
)


class StepModel(nn.Module):
    """Embed, transform, unembed: what all steps have in common.

    Args:
        vocab_size, d_model: V and D.
        body: (B, T, D) -> (B, T, D), the part that differs.
        positions: learned vectors that are added to the embeddings, or None.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        body: nn.Module,
        positions: LearnedPositions | None = None,
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.positions = positions
        self.body = body
        self.unembed = nn.Linear(d_model, vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, V) logits."""
        x = self.token_embedding(ids)  # (B, T, D)
        if self.positions is not None:
            x = x + self.positions.weight[: ids.shape[1]]  # (B, T, D)
        return self.unembed(self.body(x))  # (B, T, V)


class CausalMean(nn.Module):
    """Each position's mean of itself and all before it: attention whose weights are all equal."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        counts = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)  # (T,)
        return x.cumsum(dim=1) / counts[:, None]  # (B, T, D)


class CausalAttention(nn.Module):
    """Attention in which no position sees a later one."""

    def __init__(self, attention: MultiHeadAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.attention(x, causal=True)


class CausalBlock(nn.Module):
    """A `TransformerBlock` whose attention is causal."""

    def __init__(self, block: TransformerBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.block(x, causal=True)


def build_step(
    number: int,
    *,
    vocab_size: int,
    d_model: int,
    num_heads: int,
    num_layers: int,
    max_seq_len: int,
    seed: int = 0,
) -> nn.Module:
    """A new model of step `number`, with weights drawn from `seed`.

    Steps 1-8 start as PyTorch's layers start, step 9 as GPT-2 does.

    Raises:
        ValueError: a number that is not 1 … 9, or sizes that do not fit together.
    """
    if not 1 <= number <= len(STEPS):
        raise ValueError(f"step {number} is not one of 1 to {len(STEPS)}")
    if number == 9:
        config = GPTConfig(
            vocab_size=vocab_size,
            d_model=d_model,
            num_heads=num_heads,
            num_layers=num_layers,
            max_seq_len=max_seq_len,
        )
        return GPT(config, generator=torch.Generator().manual_seed(seed))
    # PyTorch's layers draw from the global generator: lend it our seed and give it back.
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        heads = 1 if number < 5 else num_heads
        positions = LearnedPositions(max_seq_len, d_model) if number >= 4 else None
        if positions is not None:
            # On the scale of PyTorch's token embeddings, or they would be drowned by them.
            nn.init.normal_(positions.weight)
        return StepModel(
            vocab_size=vocab_size,
            d_model=d_model,
            body=_body(number, d_model=d_model, num_heads=heads, num_layers=num_layers),
            positions=positions,
        )


def _body(number: int, *, d_model: int, num_heads: int, num_layers: int) -> nn.Module:
    """What stands between the embedding and the output matrix at steps 1 to 8."""
    if number == 1:
        return nn.Identity()
    if number == 2:
        return CausalMean()
    if number <= 5:
        return CausalAttention(MultiHeadAttention(d_model, num_heads))
    if number == 6:
        attention = CausalAttention(MultiHeadAttention(d_model, num_heads))
        return nn.Sequential(attention, FeedForward(d_model, 4 * d_model, activation="gelu_tanh"))
    blocks = [
        CausalBlock(
            TransformerBlock(
                attention=MultiHeadAttention(d_model, num_heads),
                feed_forward=FeedForward(d_model, 4 * d_model, activation="gelu_tanh"),
                norm=lambda: LayerNorm(d_model),
            )
        )
        for _ in range(1 if number == 7 else num_layers)
    ]
    return nn.Sequential(*blocks, LayerNorm(d_model))
