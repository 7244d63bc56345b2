"""T5: every task is text to text, and one encoder-decoder does them all.

Raffel et al. 2020 changed the transformer of 2017 in five small ways: the norm stands before each
sublayer and has neither mean nor bias (`RMSNorm`), no layer has a bias, positions are a learned
number for each bucket of distance, which all layers of a stack share (`T5RelativeBias`), the scores
are not divided by √K (the initial weights make up for it), and, where the output layer is the
embedding, its input is divided by √D. Version 1.1 gates the feed-forward and gives the output a
matrix of its own.

`seq2seq_weights` exchanges weights with `transformers`. README, "Encoder-decoders".
Letters: B batch, T target length, S source length, D model width,
H heads, K head width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention import MultiHeadAttention
from masks import keep_over_keys
from matmul_attention import fast_attention
from positional_encoding import T5RelativeBias
from sublayers import Activation, FeedForward, GatedFeedForward, RMSNorm
from transformer import (
    DecoderCache,
    TransformerBlock,
    TransformerStack,
    Translator,
    beam_translate,
    greedy_translate,
)


@dataclass(frozen=True, kw_only=True)
class T5Config:
    """The shape of a `T5`; the defaults are version 1.0's.

    Args:
        vocab_size, d_model, num_heads, num_layers, d_ff: V, D, H, the encoder's layers and F.
        num_decoder_layers: None = as many as the encoder's.
        head_dim: head width K; None = D/H. Free: T5-11B has H·K = 16·D.
        num_buckets, max_distance: see `positional_encoding.relative_position_bucket`.
        dropout: on embeddings, attention weights, sublayers' outputs, both stacks' results and,
            in an ungated feed-forward, the hidden units.
        norm_eps: added to the mean square in every norm.
        activation, gated: of the feed-forward; "relu" alone is 1.0, gated "gelu_tanh" is 1.1.
        tie_embeddings: the output layer is the embedding, and reads its input divided by √D.
        pad_id: padding in a source, hidden from attention. eos_id: what ends a text.
        start_id: what a target begins with; T5 takes its padding.
        max_seq_len: the longest text to write. Reading has no limit: distances never run out.

    Raises:
        ValueError: a size below 1, a head width that does not follow, or a dropout outside [0, 1).
    """

    vocab_size: int
    d_model: int
    num_heads: int
    num_layers: int
    d_ff: int
    num_decoder_layers: int | None = None
    head_dim: int | None = None
    num_buckets: int = 32
    max_distance: int = 128
    dropout: float = 0.1
    norm_eps: float = 1e-6
    activation: Activation = "relu"
    gated: bool = False
    tie_embeddings: bool = True
    pad_id: int = 0
    eos_id: int = 1
    start_id: int = 0
    max_seq_len: int = 512

    def __post_init__(self) -> None:
        if self.num_decoder_layers is None:
            object.__setattr__(self, "num_decoder_layers", self.num_layers)
        if self.head_dim is None:
            if self.d_model % max(self.num_heads, 1):
                raise ValueError(
                    f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}; "
                    "give head_dim to choose the width of a head yourself"
                )
            object.__setattr__(self, "head_dim", self.d_model // max(self.num_heads, 1))
        for name in (
            *("vocab_size", "d_model", "num_heads", "num_layers", "d_ff", "max_seq_len"),
            *("num_decoder_layers", "head_dim"),
        ):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} is {size!r}; it must be a whole number of at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")

    @property
    def num_parameters(self) -> int:
        """How many numbers the model learns; a tied matrix counts once."""
        D, V = self.d_model, self.vocab_size
        attention, feed_forward = self._layer_weights
        # Each sublayer has a norm of D weights.
        encoder = self.num_layers * (attention + feed_forward + 2 * D)
        decoder = self.decoder_layers * (2 * attention + feed_forward + 3 * D)
        biases = 2 * self.num_buckets * self.num_heads
        embeddings = V * D * (1 if self.tie_embeddings else 2)
        return embeddings + encoder + decoder + biases + 2 * D

    def flops_per_pair(self, source: int, target: int) -> int:
        """FLOPs of a training step's forward and backward for one source of S and target of T.

        Six a weight that a token meets, counted as in `gpt.GPTConfig.flops_per_token`. The
        encoder's tokens meet its weights and those of the decoder's cross-attention that project
        keys and values; the decoder's tokens meet the rest and the output layer. Scores and mixes
        cost 12·H·K for each pair of positions.
        """
        D, width = self.d_model, self.num_heads * self.head_width
        attention, feed_forward = self._layer_weights
        crossing = self.decoder_layers * 2 * D * width
        encoder = self.num_layers * (attention + feed_forward) + crossing
        decoder = self.decoder_layers * (2 * attention + feed_forward) - crossing
        pairs = self.num_layers * source**2 + self.decoder_layers * target * (target + source)
        words = self.vocab_size * D
        return 6 * (encoder * source + (decoder + words) * target) + 12 * width * pairs

    @property
    def decoder_layers(self) -> int:
        """The decoder's layers."""
        assert self.num_decoder_layers is not None, "__post_init__ fills it in"
        return self.num_decoder_layers

    @property
    def head_width(self) -> int:
        """The width K of a head."""
        assert self.head_dim is not None, "__post_init__ fills it in"
        return self.head_dim

    @property
    def _layer_weights(self) -> tuple[int, int]:
        """Weights in one attention's four matrices, and in one feed-forward's two or three."""
        attention = 4 * self.d_model * self.num_heads * self.head_width
        return attention, (3 if self.gated else 2) * self.d_model * self.d_ff


# Name: d_model, num_heads, head_dim, num_layers, d_ff.
_SIZES = {
    "small": (512, 8, 64, 6, 2048),
    "base": (768, 12, 64, 12, 3072),
    "large": (1024, 16, 64, 24, 4096),
    "v1.1-small": (512, 6, 64, 8, 1024),
    "v1.1-base": (768, 12, 64, 12, 2048),
    "v1.1-large": (1024, 16, 64, 24, 2816),
}


def t5_preset(name: str, **overrides: Any) -> T5Config:
    """Return a published shape: "small", "base", "large", or one of them after "v1.1-".

    Raises:
        ValueError: no preset of that name. TypeError: no such field in `overrides`.
    """
    if name not in _SIZES:
        raise ValueError(f"no preset {name!r}; there are {', '.join(_SIZES)}")
    fields = ("d_model", "num_heads", "head_dim", "num_layers", "d_ff")
    shape: dict[str, Any] = {**dict(zip(fields, _SIZES[name], strict=True)), "vocab_size": 32_128}
    if name.startswith("v1.1"):
        shape |= {"gated": True, "activation": "gelu_tanh", "tie_embeddings": False}
    return T5Config(**{**shape, **overrides})


class T5(nn.Module):
    """An encoder-decoder: a source and the target so far in, logits of the next target out.

    Args:
        config: its shape.
        generator: random numbers for the initial weights; None = PyTorch's global generator.
    """

    def __init__(self, config: T5Config, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.pad_id = config.pad_id
        self.max_seq_len = config.max_seq_len
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        relative = partial(
            T5RelativeBias,
            config.num_heads,
            num_buckets=config.num_buckets,
            max_distance=config.max_distance,
        )
        self.encoder_bias = relative(bidirectional=True)
        self.decoder_bias = relative(bidirectional=False)
        self.encoder = _t5_stack(config, config.num_layers, cross=False)
        self.decoder = _t5_stack(config, config.decoder_layers, cross=True)
        self.unembed = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.unembed.weight = self.embedding.weight
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights as T5 does: N(0, 1/fan_in), and queries smaller by another √K.

        That is where the missing 1/√K of the scores went. The embedding is N(0, 1), so that a
        tied output layer, which reads a vector divided by √D, starts with logits of variance 1; a
        matrix of its own starts at N(0, 1/D) for the same.
        """
        config = self.config
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name == "embedding.weight":
                parameter.normal_(std=1.0, generator=generator)
            elif name.endswith("_bias.weight"):
                parameter.normal_(std=config.d_model**-0.5, generator=generator)
            else:
                fan_in = parameter.shape[1]
                if name.endswith("q_proj.weight"):
                    fan_in *= config.head_width
                parameter.normal_(std=fan_in**-0.5, generator=generator)

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
        """Return the logits of each next target token, given all earlier ones and the source.

        Args:
            src: ids (B, S); None where `memory` is given.
            tgt: ids (B, T), beginning with `start_id` (see `shift_right`); with a cache, those
                that are new to it.
            src_keep: bool (B, S), True = a real token; None = wherever src is not `pad_id`.
            tgt_keep: bool (B, T); None = all. Padding at the end needs none, since a causal
                decoder cannot look there.
            memory: the encoder's output (B, S, D) for a source read before. Without a src_keep
                all of it counts as real.
            cache: from `new_cache`.

        Returns:
            (B, T, V).

        Raises:
            ValueError: neither or both of src and memory, ids out of range, wrong shapes.
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
        x = self._embed(src)  # (B, S, D)
        mask = keep_over_keys("src_keep", src_keep, src)  # (B, 1, 1, S)
        bias = self.encoder_bias(src.shape[1])  # (1, H, S, S)
        return self._drop(self.encoder(x, keep=mask, bias=bias))

    def decode(
        self,
        tgt: Tensor,
        memory: Tensor,
        *,
        memory_keep: Tensor | None = None,
        tgt_keep: Tensor | None = None,
        cache: DecoderCache | None = None,
    ) -> Tensor:
        """Target ids (B, T) and memory (B, S, D) -> logits (B, T, V).

        With a `cache`, `tgt` holds only tokens new to it; `tgt_keep` still covers all of them.
        """
        start = 0 if cache is None else cache.length
        x = self._embed(tgt)  # (B, T, D)
        T = tgt.shape[1]
        x = self.decoder(
            x,
            memory=memory,
            keep=None if tgt_keep is None else tgt_keep[:, None, None, :],
            memory_keep=keep_over_keys("memory_keep", memory_keep, memory),
            causal=True,
            bias=self.decoder_bias(T, start + T),  # (1, H, T, start + T)
            caches=None if cache is None else cache.own,
            cross_caches=None if cache is None else cache.cross,
        )
        x = self._drop(x)
        if self.config.tie_embeddings:
            x = x * self.config.d_model**-0.5
        return self.unembed(x)  # (B, T, V)

    def new_cache(self) -> DecoderCache:
        """Return an empty cache for `decode`."""
        return DecoderCache(len(self.decoder))

    def _embed(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)."""
        if ids.dim() != 2 or ids.shape[1] == 0:
            raise ValueError(f"ids has shape {tuple(ids.shape)}; it must be (batch, length >= 1)")
        try:
            return self._drop(self.embedding(ids))
        except IndexError as error:
            raise ValueError(
                f"ids from {int(ids.min())} to {int(ids.max())} must lie in "
                f"[0, vocab_size={self.config.vocab_size})"
            ) from error

    def _drop(self, x: Tensor) -> Tensor:
        dropout = self.config.dropout
        return F.dropout(x, dropout) if dropout and self.training else x


def shift_right(targets: Tensor, start_id: int, *, pad_id: int = 0) -> Tensor:
    """What a decoder reads when it is to write `targets`: everything one step later.

    Args:
        targets: ids (B, T); -100 (no loss here) is read as pad_id.
        start_id: what the first step reads.

    Returns:
        (B, T). [7, 8, 1, -100] becomes [start, 7, 8, 1].
    """
    shifted = targets.roll(1, dims=1)
    shifted[:, 0] = start_id
    return shifted.masked_fill(shifted == -100, pad_id)


def generate_from(
    model: Translator,
    src: Tensor,
    *,
    num_beams: int = 1,
    max_new_tokens: int | None = None,
    src_keep: Tensor | None = None,
    length_penalty: float = 0.0,
) -> list[list[int]]:
    """Write the answer to each source, with topic 04's greedy or beam search and a cache.

    Args:
        model: a `T5` or a `bart.Bart`; its config says how a text begins and ends.
        src: ids (B, S); src_keep as in `T5.forward`.
        num_beams: 1 = greedy.
        max_new_tokens: the longest answer; None = S + 50.
        length_penalty: see `transformer.beam_translate`.

    Returns:
        One list of ids a source, without its first and last special token.

    Raises:
        ValueError: wrong shapes, lengths or counts.
    """
    config: Any = getattr(model, "config", None)
    ends = {"bos_id": config.start_id, "eos_id": config.eos_id}
    options = {"max_new_tokens": max_new_tokens, "src_keep": src_keep}
    if num_beams == 1:
        return greedy_translate(model, src, **ends, **options)
    return beam_translate(
        model, src, num_beams=num_beams, length_penalty=length_penalty, **ends, **options
    )


def _t5_stack(config: T5Config, num_layers: int, *, cross: bool) -> TransformerStack:
    """An encoder or a decoder, with the norm at its end."""
    norm = partial(RMSNorm, config.d_model, eps=config.norm_eps)

    def attention() -> MultiHeadAttention:
        return MultiHeadAttention(
            config.d_model,
            config.num_heads,
            head_dim=config.head_width,
            attend=fast_attention,
            bias=False,
            dropout=config.dropout,
            scale=1.0,
        )

    def feed_forward() -> nn.Module:
        sizes: dict[str, Any] = {"activation": config.activation, "bias": False}
        if config.gated:
            return GatedFeedForward(config.d_model, config.d_ff, **sizes)
        return FeedForward(config.d_model, config.d_ff, dropout=config.dropout, **sizes)

    blocks = [
        TransformerBlock(
            attention=attention(),
            feed_forward=feed_forward(),
            norm=norm,
            cross_attention=attention() if cross else None,
            dropout=config.dropout,
        )
        for _ in range(num_layers)
    ]
    return TransformerStack(blocks, norm())
