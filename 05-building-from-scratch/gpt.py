"""GPT: token ids in, the logits of every next token out.

The arrangement is GPT-2's (Radford et al. 2019): learned positions, blocks with the norm before
each sublayer, a norm after the last block, GELU in its tanh form, and an output layer that is the
embedding table read backwards. With weights copied over, the logits are `transformers`' GPT-2's.

There is little here to see, which is the point: attention is topic 03's, the block, the norms and
the feed-forward layer are topic 04's, and decoding knows the model only by what every decoder of
this course has: `forward(ids, *, cache, keep, positions, last_only)`, `config`, `new_cache`.

README, "From an empty file, one part at a time". Letters: B batch, T new tokens, S all tokens so
far, D model width, V vocabulary, L layers, F feed-forward width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from attention import MultiHeadAttention
from kv_cache import KVCache
from masks import causal_mask
from matmul_attention import fast_attention
from positional_encoding import LearnedPositions
from sublayers import Activation, FeedForward, LayerNorm
from transformer import TransformerBlock


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The shape of a `GPT`.

    Args:
        vocab_size, d_model, num_heads, num_layers: V, D, H and L; H divides D.
        max_seq_len: positions there is a learned vector for; no text can be longer.
        d_ff: feed-forward width F; None = 4·D (and the field then reads 4·D).
        dropout: on the embeddings, the attention weights and both sublayers' outputs.
        activation: of the feed-forward layers, as in `sublayers`.
        tie_embeddings: the output layer's matrix is the token embedding's.
        norm_eps: added to the variance in every norm.
        bias: whether linear layers and norms have one.

    Raises:
        ValueError: a size below 1, heads that do not divide the width, or a dropout outside
            [0, 1).
    """

    vocab_size: int
    d_model: int
    num_heads: int
    num_layers: int
    max_seq_len: int
    d_ff: int | None = None
    dropout: float = 0.0
    activation: Activation = "gelu_tanh"
    tie_embeddings: bool = True
    norm_eps: float = 1e-5
    bias: bool = True

    def __post_init__(self) -> None:
        if self.d_ff is None:
            object.__setattr__(self, "d_ff", 4 * self.d_model)
        for name in ("vocab_size", "d_model", "num_heads", "num_layers", "max_seq_len", "d_ff"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} is {size!r}; it must be a whole number of at least 1")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")

    @property
    def num_parameters(self) -> int:
        """How many numbers the model learns; a tied matrix counts once. See `parameter_count`."""
        D, V = self.d_model, self.vocab_size
        norms = (2 * self.num_layers + 1) * D * (1 + self.bias)
        biases = self.num_layers * (4 * D + self._ff_width + D) * self.bias
        embeddings = self.max_seq_len * D + V * D * (1 if self.tie_embeddings else 2)
        return embeddings + self.num_layers * self._block_matrices + norms + biases

    def flops_per_token(self, seq_len: int) -> int:
        """FLOPs of one training step's forward and backward, for each of `seq_len` tokens.

        Six for each weight that a token is multiplied with: a multiplication and an addition in
        the forward pass, and twice that in the backward pass, for the gradients of the input and
        of the weight. Looking an embedding up is free; the output layer, tied or not, is V·D.
        Attention adds 2·T·D for the scores and as much for the mix, likewise times three. A
        kernel that skips the masked half of the T² does fewer; the custom is to count all.
        """
        matrices = self.num_layers * self._block_matrices + self.vocab_size * self.d_model
        return 6 * matrices + 12 * self.num_layers * self.d_model * seq_len

    @property
    def _ff_width(self) -> int:
        assert self.d_ff is not None, "__post_init__ fills it in"
        return self.d_ff

    @property
    def _block_matrices(self) -> int:
        """Weights in one block's matrices: q, k, v and out are D·D each, up and down D·F."""
        return 4 * self.d_model**2 + 2 * self.d_model * self._ff_width


class GPT(nn.Module):
    """A decoder-only transformer language model: ids in, logits out.

    Args:
        config: its shape.
        generator: random numbers for the initial weights; None = PyTorch's global generator.

    Example: at initialisation the logits are close to 0, so every next token is about equally
    likely and the loss is close to ln V: 3.33 for 28 characters, 10.82 for GPT-2's 50,257 tokens.
    """

    def __init__(self, config: GPTConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = LearnedPositions(config.max_seq_len, config.d_model)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.num_layers))
        self.final_norm = _norm(config)
        self.unembed = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.unembed.weight = self.token_embedding.weight
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights as GPT-2 does: N(0, 0.02²), and 0.02/√(2L) where a branch ends.

        Each block adds two branches to the residual stream, so 2L of them are summed by the last
        layer; the sum of 2L independent terms has 2L times the variance of one. Dividing by
        √(2L) keeps the stream's size the same whatever the depth.
        """
        branch_std = 0.02 / math.sqrt(2 * self.config.num_layers)
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name.endswith("bias"):
                parameter.zero_()
            elif name.endswith(("out_proj.weight", "down.weight")):
                parameter.normal_(std=branch_std, generator=generator)
            else:
                parameter.normal_(std=0.02, generator=generator)

    def forward(
        self,
        ids: Tensor,
        *,
        cache: KVCache | None = None,
        keep: Tensor | None = None,
        positions: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Return the logits of the token after each position.

        Args:
            ids: (B, T) int64, the tokens that follow what the cache holds (or all of them).
            cache: keys and values of the tokens before, from `new_cache`; this call adds its own.
            keep: bool, broadcastable to (B, H, T, S), True = may attend; on top of causality and
                of what a ragged cache hides (see `masks.padding_mask`, `masks.document_mask`).
            positions: int64 (T,) or (B, T); None = they go on from the cache's, or from 0.
            last_only: compute the logits after the last position only, which is all that
                decoding needs of a prompt.

        Returns:
            (B, T, V), or (B, 1, V) with `last_only`.

        Raises:
            ValueError: ids that are not (B, T) or not in [0, V), more tokens than `max_seq_len`,
                or a cache without room.
        """
        hidden = self.hidden_states(ids, cache=cache, keep=keep, positions=positions)  # (B, T, D)
        return self.unembed(hidden[:, -1:] if last_only else hidden)  # (B, T, V)

    def hidden_states(
        self,
        ids: Tensor,
        *,
        cache: KVCache | None = None,
        keep: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Return what the output layer reads, (B, T, D). Arguments and errors as in `forward`."""
        if ids.dim() != 2 or ids.shape[1] == 0:
            raise ValueError(f"ids has shape {tuple(ids.shape)}; it must be (batch, length >= 1)")
        T = ids.shape[1]
        if cache is not None and cache.num_layers != len(self.blocks):
            raise ValueError(f"a cache of {cache.num_layers} layers for {len(self.blocks)} blocks")
        past = 0 if cache is None else cache.length
        if past + T > self.config.max_seq_len:
            raise ValueError(
                f"{past + T} tokens are more than the model's max_seq_len {self.config.max_seq_len}"
            )
        x = self._embed_tokens(ids) + self._embed_positions(T, cache, positions)  # (B, T, D)
        x = self.embedding_dropout(x)

        # One mask for all layers, and none where causality is the whole of it.
        ragged = None if cache is None else cache.keep(T)  # (B, 1, T, S)
        if ragged is not None:
            keep = ragged if keep is None else keep & ragged  # (B, H or 1, T, S)
        elif keep is not None and T > 1:
            keep = keep & causal_mask(T, past + T, device=ids.device)  # (…, T, S)
        for index, block in enumerate(self.blocks):
            x = block(
                x,
                keep=keep,
                causal=keep is None,
                cache=None if cache is None else cache.layer(index),
            )
        if cache is not None:
            cache.advance(T)
        return self.final_norm(x)  # (B, T, D)

    def new_cache(self, batch_size: int, max_seq_len: int | None = None) -> KVCache:
        """Return an empty cache for `batch_size` texts of up to `max_seq_len` (the config's)."""
        config = self.config
        weight = self.token_embedding.weight
        return KVCache(
            config.num_layers,
            batch_size,
            config.num_heads,
            config.max_seq_len if max_seq_len is None else max_seq_len,
            config.d_model // config.num_heads,
            dtype=weight.dtype,
            device=weight.device,
        )

    def _embed_tokens(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)."""
        try:
            return self.token_embedding(ids)
        except IndexError as error:
            raise ValueError(
                f"ids from {int(ids.min())} to {int(ids.max())} must lie in "
                f"[0, vocab_size={self.config.vocab_size})"
            ) from error

    def _embed_positions(self, T: int, cache: KVCache | None, positions: Tensor | None) -> Tensor:
        """Return (T, D), or (B, T, D) where the rows are not at the same positions."""
        if positions is None and cache is not None and cache.starts is not None:
            positions = cache.positions(T)  # (B, T)
        if positions is not None:
            return self.position_embedding(positions)
        # Consecutive positions are consecutive rows: a slice, with no index to build or check.
        first = 0 if cache is None else cache.length
        return self.position_embedding.weight[first : first + T]  # (T, D)


class CountsParameters(Protocol):
    """A config that knows its own size: every decoder's of this course."""

    @property
    def num_parameters(self) -> int: ...
    def flops_per_token(self, seq_len: int) -> int: ...


def parameter_count(config: CountsParameters) -> int:
    """Return how many parameters a model of this shape has, without building it.

    GPT-2: V·D + S·D for the embeddings, L·(12·D² + 13·D) for the blocks and 2·D for the last
    norm. For the smallest that is 124,439,808.
    """
    return config.num_parameters


def flops_per_token(config: CountsParameters, seq_len: int) -> int:
    """Return the FLOPs of training on one token: 6 a weight in a matrix, and attention's."""
    return config.flops_per_token(seq_len)


# Name: vocab_size, max_seq_len, d_model, num_heads, num_layers.
_PRESETS = {
    # To train here; "0.8M" is a character-level model.
    "0.8M": (128, 256, 128, 4, 4),
    "3M": (4096, 512, 192, 6, 5),
    "12M": (4096, 512, 384, 6, 6),
    "25M": (8192, 512, 512, 8, 7),
    # Radford et al. 2019, table 2, with the parameters of the released checkpoints.
    "gpt2": (50_257, 1024, 768, 12, 12),
    "gpt2-medium": (50_257, 1024, 1024, 16, 24),
    "gpt2-large": (50_257, 1024, 1280, 20, 36),
    "gpt2-xl": (50_257, 1024, 1600, 25, 48),
}


def gpt_preset(name: str, **overrides: Any) -> GPTConfig:
    """Return a named shape: "0.8M" to "25M" for training here, or a published GPT-2.

    Args:
        name: "0.8M", "3M", "12M", "25M", "gpt2" (124,439,808 parameters), "gpt2-medium"
            (354,823,168), "gpt2-large" (774,030,080) or "gpt2-xl" (1,557,611,200).
        overrides: `GPTConfig` fields to change, above all `vocab_size` and `max_seq_len`.

    Raises:
        ValueError: no preset of that name. TypeError: no such field.
    """
    if name not in _PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(_PRESETS)}")
    fields = ("vocab_size", "max_seq_len", "d_model", "num_heads", "num_layers")
    return GPTConfig(**{**dict(zip(fields, _PRESETS[name], strict=True)), **overrides})


def _norm(config: GPTConfig) -> LayerNorm:
    """Return one of the model's norms."""
    return LayerNorm(config.d_model, eps=config.norm_eps, bias=config.bias)


def _block(config: GPTConfig) -> TransformerBlock:
    """Return one layer: norm, attention, add; norm, feed-forward, add."""
    return TransformerBlock(
        attention=MultiHeadAttention(
            config.d_model,
            config.num_heads,
            attend=fast_attention,
            bias=config.bias,
            dropout=config.dropout,
        ),
        feed_forward=FeedForward(
            config.d_model, config._ff_width, activation=config.activation, bias=config.bias
        ),
        norm=lambda: _norm(config),
        dropout=config.dropout,
    )
