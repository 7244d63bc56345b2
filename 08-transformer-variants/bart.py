"""BART: the encoder-decoder of 2017, trained to restore a damaged text.

Lewis et al. 2020 join BERT's encoder and GPT's decoder: the arrangement of "Attention Is All You
Need" (`transformer.Transformer`) with GELU, learned positions that begin at row 2 of their table
(an inheritance from RoBERTa's code), and a norm on the embeddings. What was new is the training:
the source is a text with spans hidden, deleted and shuffled, the target is the text.

`seq2seq_weights` exchanges weights with `transformers`; `t5.generate_from` writes answers.
README, "Encoder-decoders". Letters: B batch, T target length, S source length, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention import MultiHeadAttention
from masks import keep_over_keys
from matmul_attention import fast_attention
from positional_encoding import LearnedPositions
from sublayers import Activation, FeedForward, LayerNorm
from transformer import DecoderCache, TransformerBlock, TransformerStack

_POSITION_OFFSET = 2


@dataclass(frozen=True, kw_only=True)
class BartConfig:
    """The shape of a `Bart`; the defaults are BART-large's.

    Args:
        vocab_size, d_model, num_heads, num_layers, d_ff: V, D, H, the encoder's layers and F.
        num_decoder_layers: None = as many as the encoder's.
        max_seq_len: the longest source or target.
        dropout: on the embeddings and the sublayers' outputs.
        attention_dropout, activation_dropout: on attention weights and feed-forward hidden units.
        activation: of the feed-forward layers.
        init_std: standard deviation of new matrices.
        pad_id: padding in a source, hidden from attention.
        eos_id: what ends a text. start_id: what a target begins with; BART takes its end.

    Raises:
        ValueError: a size that is not positive or does not divide, or a dropout outside [0, 1).
    """

    vocab_size: int
    d_model: int
    num_heads: int
    num_layers: int
    d_ff: int
    num_decoder_layers: int | None = None
    max_seq_len: int = 1024
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    activation: Activation = "gelu"
    init_std: float = 0.02
    pad_id: int = 1
    eos_id: int = 2
    start_id: int = 2

    def __post_init__(self) -> None:
        if self.num_decoder_layers is None:
            object.__setattr__(self, "num_decoder_layers", self.num_layers)
        sizes = ("vocab_size", "d_model", "num_heads", "num_layers", "d_ff", "num_decoder_layers")
        for name in (*sizes, "max_seq_len"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} is {size!r}; it must be a whole number of at least 1")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}"
            )
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")

    @property
    def tie_embeddings(self) -> bool:
        """True: one matrix embeds the source, embeds the target and gives the logits."""
        return True

    @property
    def decoder_layers(self) -> int:
        """The decoder's layers."""
        assert self.num_decoder_layers is not None, "__post_init__ fills it in"
        return self.num_decoder_layers


class Bart(nn.Module):
    """An encoder-decoder that is called like `t5.T5`.

    Args:
        config: its shape.
        generator: random numbers for the initial weights; None = PyTorch's global generator.
    """

    def __init__(self, config: BartConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.pad_id = config.pad_id
        self.max_seq_len = config.max_seq_len
        D, rows = config.d_model, config.max_seq_len + _POSITION_OFFSET
        self.embedding = nn.Embedding(config.vocab_size, D)
        self.encoder_positions = LearnedPositions(rows, D)
        self.decoder_positions = LearnedPositions(rows, D)
        self.encoder_norm = LayerNorm(D)
        self.decoder_norm = LayerNorm(D)
        self.encoder = _bart_stack(config, config.num_layers, cross=False)
        self.decoder = _bart_stack(config, config.decoder_layers, cross=True)
        self.unembed = nn.Linear(D, config.vocab_size, bias=False)
        self.unembed.weight = self.embedding.weight
        # Published files hold it, and it is not trained. A parameter, so that it is not lost.
        zeros = torch.zeros(1, config.vocab_size)
        self.logits_bias = nn.Parameter(zeros, requires_grad=False)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw matrices from N(0, init_std²); biases become 0, norms' weights 1."""
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(std=self.config.init_std, generator=generator)

    def forward(
        self,
        src: Tensor | None,
        tgt: Tensor,
        *,
        src_keep: Tensor | None = None,
        tgt_keep: Tensor | None = None,
        memory: Tensor | None = None,
        cache: DecoderCache | None = None,
    ) -> Tensor:
        """Return the logits of each next target token. Arguments and errors as in `t5.T5.forward`,
        and ValueError for a text longer than `max_seq_len`.
        """
        if (src is None) == (memory is None):
            raise ValueError("give either src or memory")
        if src is not None:
            src_keep = src != self.pad_id if src_keep is None else src_keep
            memory = self.encode(src, src_keep=src_keep)
        assert memory is not None, "one of the two was given"
        return self.decode(tgt, memory, memory_keep=src_keep, tgt_keep=tgt_keep, cache=cache)

    def encode(self, src: Tensor, *, src_keep: Tensor | None = None) -> Tensor:
        """Source ids (B, S) -> memory (B, S, D)."""
        src_keep = src != self.pad_id if src_keep is None else src_keep
        x = self._embed(src, 0, self.encoder_positions, self.encoder_norm)  # (B, S, D)
        return self.encoder(x, keep=keep_over_keys("src_keep", src_keep, src))

    def decode(
        self,
        tgt: Tensor,
        memory: Tensor,
        *,
        memory_keep: Tensor | None = None,
        tgt_keep: Tensor | None = None,
        cache: DecoderCache | None = None,
    ) -> Tensor:
        """Target ids (B, T) and memory (B, S, D) -> logits (B, T, V); see `t5.T5.decode`."""
        start = 0 if cache is None else cache.length
        x = self._embed(tgt, start, self.decoder_positions, self.decoder_norm)  # (B, T, D)
        x = self.decoder(
            x,
            memory=memory,
            keep=None if tgt_keep is None else tgt_keep[:, None, None, :],
            memory_keep=keep_over_keys("memory_keep", memory_keep, memory),
            causal=True,
            caches=None if cache is None else cache.own,
            cross_caches=None if cache is None else cache.cross,
        )
        return self.unembed(x) + self.logits_bias  # (B, T, V)

    def new_cache(self) -> DecoderCache:
        """Return an empty cache for `decode`."""
        return DecoderCache(len(self.decoder))

    def _embed(
        self, ids: Tensor, start: int, positions: LearnedPositions, norm: LayerNorm
    ) -> Tensor:
        """Embed ids (B, T) that stand at positions start, start + 1, …: (B, T, D)."""
        if ids.dim() != 2 or ids.shape[1] == 0:
            raise ValueError(f"ids has shape {tuple(ids.shape)}; it must be (batch, length >= 1)")
        end = start + ids.shape[1]
        if end > self.max_seq_len:
            raise ValueError(f"{end} positions; this model has max_seq_len {self.max_seq_len}")
        try:
            x = self.embedding(ids)  # (B, T, D)
        except IndexError as error:
            raise ValueError(
                f"ids from {int(ids.min())} to {int(ids.max())} must lie in "
                f"[0, vocab_size={self.config.vocab_size})"
            ) from error
        x = norm(x + positions.weight[start + _POSITION_OFFSET : end + _POSITION_OFFSET])
        dropout = self.config.dropout
        return F.dropout(x, dropout) if dropout and self.training else x


def _bart_stack(config: BartConfig, num_layers: int, *, cross: bool) -> TransformerStack:
    """An encoder or a decoder of post-norm blocks."""

    def attention() -> MultiHeadAttention:
        return MultiHeadAttention(
            config.d_model,
            config.num_heads,
            attend=fast_attention,
            dropout=config.attention_dropout,
        )

    blocks = [
        TransformerBlock(
            attention=attention(),
            feed_forward=FeedForward(
                config.d_model,
                config.d_ff,
                activation=config.activation,
                dropout=config.activation_dropout,
            ),
            norm=partial(LayerNorm, config.d_model),
            pre_norm=False,
            cross_attention=attention() if cross else None,
            dropout=config.dropout,
        )
        for _ in range(num_layers)
    ]
    return TransformerStack(blocks)
